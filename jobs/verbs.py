"""The verbs of `panoptic` with their modules and summaries, and the typer program of them.

Options are parsed before slow imports: only the module of the requested verb is imported, and a
verb that needs Ray or torch imports them inside its function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer

# Verb -> (module:function, first line of the function's docstring).
VERBS = {
    "demo": ("jobs.demo:demo", "Segment and score synthetic scenes on this machine; start here."),
    "doctor": ("jobs.doctor:doctor", "Check this machine, the bucket and the weights."),
    "plan": ("jobs.plan:plan", "Show what `segment` would do; write nothing."),
    "segment": ("jobs.segment:segment", "Segment every image of SOURCE into a run folder."),
    "status": ("jobs.status:status", "Show the progress of a run and what is published."),
    "errors": ("jobs.status:errors", "List the images that failed, by code."),
    "retry": ("jobs.retry:retry", "Compute the failed images of OUT again."),
    "verify": (
        "jobs.verify:verify",
        "Check that every image of OUT's manifest has exactly one row.",
    ),
    "evaluate": (
        "jobs.evaluate:evaluate",
        "Score predictions against ground truth: PQ, SQ and RQ with 95 % intervals.",
    ),
    "compare": (
        "jobs.compare:compare",
        "Compare B with A: PQ by class with paired intervals, and a quality gate.",
    ),
    "report": (
        "jobs.report:report",
        "Write a run's contents and quality as one HTML file with pictures.",
    ),
    "view": (
        "jobs.view:view",
        "Draw segments over an image; for several images, also make a contact sheet.",
    ),
    "inspect": (
        "jobs.inspect_photo:inspect",
        "Show how the model segments a photo: every stage with its shape, and a page of pictures.",
    ),
    "sql": (
        "jobs.sql:sql",
        "Answer an SQL query over the views images, segments, categories and per_image of OUT.",
    ),
    "export": (
        "jobs.export:export",
        "Write a run as COCO JSON, with PNGs for panopticapi or with RLE for pycocotools.",
    ),
    "scenes": (
        "jobs.make_scenes:scenes",
        "Make a small COCO panoptic dataset of synthetic scenes.",
    ),
    "submit": (
        "jobs.submit:submit",
        "Run a verb as a job of a Ray cluster, follow it, and end with its exit code.",
    ),
    "jobs": ("jobs.submit:jobs", "List the jobs that `submit` started on a cluster."),
    "nightly": (
        "jobs.nightly:nightly",
        "Bring a folder of nights up to date: list, compute the difference, check, publish.",
    ),
    "rollback": ("jobs.rollback:rollback", "Set OUT back to what was published before."),
    "prune": ("jobs.prune:prune", "List or delete objects of OUT that no kept snapshot uses."),
    "train": ("jobs.train:train", "Train DETR panoptic on the classes of DATASET."),
}


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """The typer program. Only the verb in `arguments` is loaded; the others have a summary."""
    app = typer.Typer(
        name="panoptic",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help="DETR panoptic segmentation of millions of images as one Ray job: "
        "a bucket in, Parquet shards of RLE masks and exact PQ out.",
    )
    app.callback()(_options)
    wanted = next((text for text in arguments if not text.startswith("-")), None)
    for verb, (_, summary) in VERBS.items():
        function = load_verb(verb) if verb == wanted else _not_loaded
        text = help_text(function.__doc__) if verb == wanted else summary
        app.command(verb, help=text)(function)
    return app


def load_verb(verb: str) -> Callable[..., Any]:
    """The function behind a verb."""
    module, _, name = VERBS[verb][0].partition(":")
    return getattr(import_module(module), name)


def help_text(documentation: str | None) -> str:
    """A docstring as typer's help: one line per paragraph; indented examples keep their lines."""
    paragraphs = inspect.cleandoc(documentation or "").split("\n\n")
    flowing = (p if p.startswith(" ") else " ".join(p.split()) for p in paragraphs)
    return "\n\n".join(flowing)


def _not_loaded() -> None:
    """The function of every verb but the requested one."""


def _show_version(wanted: bool) -> None:
    if wanted:
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        libraries = f"ray {version('ray')}, torch {torch.__version__}, device {device}"
        print(f"panoptic {version('detr-panoptic')} ({libraries})")
        raise typer.Exit


def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions."),
    ] = False,
) -> None:
    """Options before the verb."""
