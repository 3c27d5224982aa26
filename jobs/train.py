"""`panoptic train`: train DETR panoptic on a COCO panoptic dataset, with Ray Train.

This file parses, checks and reports; each worker runs pipeline/train/loop.py. The same command
continues a stopped training from OUT/checkpoint.pt. A continued training must have the same
settings, except --steps, and the same data and weights.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final, cast, get_args

import typer

from detr.config import DetrConfig
from detr.training.phases import Phase, learns_masks
from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, Verbose, example_option, from_file
from pipeline.amounts import counted, duration
from pipeline.errors import UserError
from pipeline.run.lease import lease
from pipeline.storage.storage import Storage
from pipeline.train.dataset import LEFT, TURNED, PanopticDataset, hold_out, open_dataset

# Below this PQ hardly any image gets a segment; MORE_STEPS is then the advice
# (docs/your-own-labels.md).
TOO_LITTLE_PQ: Final = 0.05
MORE_STEPS: Final = {"from scratch": 4000, "from weights": 500}
Data = "Data"
Recipe = "What is learnt (fixed once a training has begun)"


def _option(text: str, panel: str | None = None, **bounds: float) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, **bounds)  # type: ignore[arg-type]


def train(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="COCO panoptic JSON, or its folder; any URL.")
    ],
    out: Annotated[str, _option("Folder for checkpoint and best weights; any fsspec URL.")],
    images: Annotated[
        str | None, _option("Folder of images; images/ beside the JSON.", Data)
    ] = None,
    masks: Annotated[str | None, _option("Folder of PNGs; default: the JSON's name.", Data)] = None,
    val: Annotated[
        str | None, _option("Validation JSON; default: held out of DATASET.", Data)
    ] = None,
    val_images: Annotated[str | None, _option("Folder of --val's images.", Data)] = None,
    val_masks: Annotated[str | None, _option("Folder of --val's PNGs.", Data)] = None,
    exif: Annotated[
        bool,
        typer.Option(
            "--exif/--no-exif",
            help="Turn a photo by its EXIF tag if both orientations fit the truth's map.",
            rich_help_panel=Data,
        ),
    ] = True,
    hold: Annotated[
        int | None,
        typer.Option(
            "--hold-out",
            help="Images held out for validation; default: a tenth, at most 500.",
            rich_help_panel=Data,
            min=1,
        ),
    ] = None,
    weights: Annotated[
        str | None, _option("Start from r50, r50-dc5, r101 or a file.", Recipe)
    ] = None,
    categories: Annotated[
        str | None,
        _option("COCO categories JSON of --weights' classes, if the file has none.", Recipe),
    ] = None,
    architecture: Annotated[
        str, _option("From scratch: small, r50, r50-dc5, r101, or a TOML file.", Recipe)
    ] = "small",
    size: Annotated[
        int | None, _option("Shorter side of the model's input, in pixels.", Recipe, min=32)
    ] = None,
    phase: Annotated[
        str,
        _option(
            "joint; boxes, masks (the paper's); from scratch backbone, detector, masks.",
            Recipe,
        ),
    ] = "joint",
    steps: Annotated[
        int, _option("Optimiser steps in all; may be changed later.", Recipe, min=1)
    ] = 5000,
    batch_size: Annotated[int, _option("Images a step and worker.", Recipe, min=1)] = 16,
    lr: Annotated[
        float | None,
        _option("Learning rate; default: 5e-4 from scratch, 1e-4 from weights.", Recipe, min=0),
    ] = None,
    backbone_lr: Annotated[
        float | None,
        _option("The backbone's; default: --lr from scratch, else a tenth.", Recipe, min=0),
    ] = None,
    warmup: Annotated[int, _option("Steps of rising learning rate.", Recipe, min=0)] = 100,
    cooldown: Annotated[
        float,
        _option("Share of the steps in which the learning rate falls to 0.", Recipe, min=0, max=1),
    ] = 0.3,
    clip: Annotated[float, _option("Largest norm of the gradient.", Recipe, min=0)] = 1.0,
    weight_decay: Annotated[float, _option("AdamW's weight decay.", Recipe, min=0)] = 1e-4,
    mask_weight: Annotated[
        float, _option("Factor on the published weights of the mask losses.", Recipe, min=0)
    ] = 1.0,
    no_object_weight: Annotated[
        float,
        _option(
            "Class-loss weight of queries without an object; more if few queries serve many.",
            Recipe,
            min=0,
        ),
    ] = 0.1,
    dense_weight: Annotated[
        float | None,
        _option(
            "Weight of the dense head's loss; default: 2 without frozen norms, else 0.",
            Recipe,
            min=0,
        ),
    ] = None,
    seed: Annotated[int, _option("Seed of weights, batches, augmentation.", Recipe, min=0)] = 0,
    threshold: Annotated[
        float | None,
        _option(
            "Least score of a segment at validation; also the threshold that the weights "
            "recommend. Default: 0.5 from scratch, else what --weights recommend, or 0.85.",
            min=0,
            max=1,
        ),
    ] = None,
    half: Annotated[bool, _option("Write the best weights as float16.")] = False,
    validate_every: Annotated[int, _option("Steps between validations.", min=1)] = 500,
    validate_images: Annotated[int, _option("Images of a validation, at most.", min=1)] = 200,
    save_seconds: Annotated[float, _option("Seconds between checkpoints.", min=0)] = 60.0,
    workers: Annotated[
        int, _option("Ray Train workers; one GPU each if the cluster has enough.", min=1)
    ] = 1,
    address: Annotated[str | None, _option("Ray cluster; default: this machine.")] = None,
    config_file: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            is_eager=True,
            callback=from_file,
            help="TOML file of these settings; flags win.",
        ),
    ] = None,
    example: Annotated[bool, example_option("train.toml")] = False,
    json_output: JsonOutput = False,
    verbose: Verbose = False,
) -> None:
    """Train DETR panoptic on the classes of DATASET.

    The best weights by validation PQ are written to OUT/weights.safetensors, with architecture and
    label set, for `panoptic segment --weights`. The same command continues a stopped training.

        panoptic train data/panoptic.json --out runs/own --weights r50 --steps 20000

        panoptic train data/panoptic.json --out runs/tiny --architecture small --size 256

        panoptic train --example > train.toml && panoptic train --config train.toml
    """
    checked_phase = _phase(phase)
    console = plain_console(stderr=True)
    training = open_dataset(dataset, images=images, masks=masks, exif=exif)
    training, validation = _validation(training, val, val_images, val_masks, hold)
    import ray

    from pipeline.cluster import ray_session
    from pipeline.train.init_weights import digest, start, usual_threshold
    from pipeline.train.loop import WEIGHTS, Plan, Schedule, Task, read_checkpoint
    from pipeline.train.workers import launch

    config, initial = start(
        weights, architecture, size, training.categories, phase, known=categories
    )
    lr = (5e-4 if initial is None else 1e-4) if lr is None else lr
    if backbone_lr is None:
        backbone_lr = lr if initial is None else lr / 10
    plan = Plan(
        phase=checked_phase,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        backbone_lr=backbone_lr,
        weight_decay=weight_decay,
        warmup=warmup,
        cooldown=cooldown,
        clip=clip,
        mask_weight=mask_weight,
        no_object_weight=no_object_weight,
        dense_weight=(0.0 if config.frozen_norm else 2.0) if dense_weight is None else dense_weight,
    )
    schedule = Schedule(
        save_seconds=save_seconds,
        validate_every=validate_every,
        validate_images=validate_images,
        threshold=usual_threshold(weights) if threshold is None else threshold,
        half=half,
    )
    storage = Storage(out)
    origin = {"data": training.digest(), "weights": digest(initial)}
    task = Task(
        plan, schedule, config, training.categories, training, validation, storage, initial, origin
    )
    started = time.monotonic()
    with lease(storage):
        begun = _check_same(storage, plan, config, origin)
        console.print(
            f"{counted(len(training.examples), 'image')} to learn from, "
            f"{len(validation.examples):,} to validate on, {len(training.categories)} classes; "
            f"step {begun:,} of {steps:,}"
        )
        if not begun and (turns := training.check() + validation.check()):
            console.print(
                f"photos with an EXIF turn: {turns[TURNED]:,} turned upright as their maps "
                f"are, {turns[LEFT]:,} left as stored"
            )
        ray_session.join_ray(address, verbose=verbose)
        use_gpu = ray.cluster_resources().get("GPU", 0) >= workers
        launch(
            task,
            workers=workers,
            use_gpu=use_gpu,
            tell=lambda news: console.print(line(news, steps)),
        )
    state = read_checkpoint(storage)
    assert state is not None, "a training that ended has saved"
    summary = {
        "weights": storage.join(WEIGHTS),
        "steps": state["step"],
        "best_pq": state["best"],
        "history": state["history"],
        "seconds": round(time.monotonic() - started),
        "device": "cuda" if use_gpu else f"cpu ({platform.machine()})",
        "date": datetime.now(UTC).date().isoformat(),
        "plan": asdict(plan),
        "config": config.to_dict(),
    }
    if json_output:
        print_json(summary)
    else:
        url = storage.join(WEIGHTS)
        print(f"best PQ {100 * state['best']:.1f}; weights: {url}")
        print(next_step(state, url, checked_phase, schedule.threshold, scratch=initial is None))


def next_step(
    state: Mapping[str, Any], weights: str, phase: Phase, threshold: float, *, scratch: bool
) -> str:
    """Advice for the user after a training, by its best PQ; `state` is the last checkpoint's."""
    if not learns_masks(phase):
        return f"next: --phase {phase} learns no masks: panoptic train with --weights {weights}"
    step, best = state["step"], state["best"]
    if best >= TOO_LITTLE_PQ:
        return f"next: panoptic segment PHOTOS --out OUT --weights {weights}"
    more = MORE_STEPS["from scratch" if scratch else "from weights"]
    return (
        f"PQ {100 * best:.1f} is too little to segment with: at threshold {threshold:g} hardly an "
        f"image would have a segment\nnext: the same command with --steps {step + more}, which "
        f"goes on from step {step}"
    )


def line(news: dict[str, Any], steps: int) -> str:
    """A line about losses or a validation: `step 40 of 5,000: loss 12.1 (label 1.5 ...)`."""
    text = f"step {news['step']:,} of {steps:,}: "
    if "losses" in news:
        terms = {name: value for name, value in news["losses"].items() if name != "total"}
        shown = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
        left = duration(news["seconds_left"])
        return f"{text}loss {news['losses']['total']:.2f} ({shown}), {left} left"
    groups = news["validation"].items()
    figures = ", ".join(f"{g} {100 * pq:.1f}" for g, pq in groups if pq is not None)
    return f"{text}PQ {figures}{' (best so far, kept)' if news['kept'] else ''}"


def _validation(
    training: PanopticDataset,
    val: str | None,
    images: str | None,
    masks: str | None,
    hold: int | None,
) -> tuple[PanopticDataset, PanopticDataset]:
    """(training, validation): the dataset of --val, or images held out of `training`."""
    if val is None:
        count = max(1, min(500, len(training.examples) // 10)) if hold is None else hold
        return hold_out(training, count)
    validation = open_dataset(
        val, images=images, masks=masks, categories=training.categories, exif=training.exif
    )
    return training, validation


def _phase(phase: str) -> Phase:
    if phase not in get_args(Phase):
        raise UserError(f"--phase must be one of {', '.join(get_args(Phase))}, not {phase!r}")
    return cast(Phase, phase)


def _check_same(out: Storage, plan: Any, config: DetrConfig, origin: Mapping[str, str]) -> int:
    """The step that the training in `out` has reached, 0 if there is none.

    Raises UserError if the training has other settings, data or weights.
    """
    from pipeline.train.loop import read_checkpoint

    state = read_checkpoint(out)
    if state is None:
        return 0
    before = {**state["plan"], **state["config"]}
    now = {**asdict(plan), **config.to_dict()}
    advice = "continue it with the same settings, or choose another --out"
    for name, value in now.items():
        if name != "steps" and before.get(name) != value:
            raise UserError(
                f"{out.url} holds a training with {name} {before.get(name)!r}, not {value!r}: "
                f"{advice}"
            )
    for name, value in state.get("origin", {}).items():
        if origin.get(name, value) != value:
            of = "on other images (DATASET, --hold-out)" if name == "data" else "of other --weights"
            raise UserError(f"{out.url} holds a training {of}: {advice}")
    return state["step"]
