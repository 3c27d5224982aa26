"""The checks of nightly before it computes: device, images with ground truth, brakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.cluster.device import Device, decide_device
from pipeline.error_budget import exceeds
from pipeline.errors import UserError
from pipeline.evaluation.truth_join import resolve, stage_truth
from pipeline.nightly.settings import NightlyConfig
from pipeline.planning.coco_panoptic import CocoFile
from pipeline.planning.scratch_db import Staging
from pipeline.run.snapshots import RunSnapshot
from pipeline.storage.objects import open_object


def night_device(
    live: RunSnapshot | None, config: NightlyConfig, note: Callable[[str], None]
) -> Device:
    """The device of the live run, unless the settings say another.

    So a night without changes needs no GPU only to learn the GPU's name.
    """
    if live is None or config.device != "auto":
        return decide_device(config, note)
    info = live.run.info
    dtype = str(info.config.get("dtype", config.dtype))
    if config.dtype not in ("auto", dtype):
        return decide_device(config, note)
    return Device("cpu" if info.device == "cpu" else "cuda", info.device, dtype)


def check_truth(truth: str, options: Mapping[str, str]) -> None:
    """Raises UserError if the file of the truth does not exist, before images are computed."""
    storage, name = open_object(truth, options)
    if not storage.exists(name):
        raise UserError(f"truth {truth} does not exist: check the path in the settings")


def only_with_truth(staging: Staging, truth: str, options: Mapping[str, str]) -> tuple[int, int]:
    """Reduce the view `listing` to the images with ground truth; returns their number and bytes.

    Raises UserError without such an image.
    """
    staging.connection.execute("create view manifest as from listing")
    stage_truth(staging, CocoFile(truth, options))
    resolve(staging, truth)
    staging.connection.execute(
        "create table judges as from listing semi join resolved using (hash)"
    )
    staging.connection.execute("drop view manifest")
    staging.connection.execute("create or replace view listing as from judges")
    images = staging.count("select count(*) from listing")
    if not images:
        raise UserError(
            f"no image of {truth} is in the source: new weights can't be judged; check truth"
        )
    return images, staging.count("select cast(coalesce(sum(size), 0) as bigint) from listing")


def refuse_short(images: int, live: RunSnapshot, config: NightlyConfig) -> None:
    """Raises UserError if a new run's listing has too few of the images of the live run.

    images: in the listing.
    """
    before = live.snapshot.rows
    if exceeds(before - images, before, config.max_removed_rate):
        raise UserError(
            f"{config.source} lists {images:,} images where {before:,} are live, fewer than "
            f"--max-removed-rate {config.max_removed_rate:g} allows: check the listing, or raise it"
        )


def brake_full(name: str, live: RunSnapshot, done: int, config: NightlyConfig) -> None:
    """Raises UserError if new weights have too many images to compute and allow_full is False.

    done: images computed already, those with ground truth.
    """
    total = live.snapshot.rows
    count = total - done
    if not config.allow_full and exceeds(count, total, config.max_recompute):
        passed = "they passed on the images with ground truth, but " if done else ""
        raise UserError(
            f"other weights or settings ({name}): {passed}{count:,} images must be computed, more "
            f"than --max-recompute {config.max_recompute:g} allows: if that is meant, add "
            "--allow-full"
        )
