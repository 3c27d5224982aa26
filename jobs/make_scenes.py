"""`panoptic scenes`: a synthetic COCO panoptic dataset, for trying the program or training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.console import ConsoleReporter, print_json
from jobs.options import JsonOutput
from pipeline.amounts import counted
from pipeline.errors import UserError
from pipeline.train.synthetic import write_scenes


def scenes(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder on this machine.")],
    images: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the demo's is 2026.")] = 1,
    broken: Annotated[int, typer.Option(min=0, help="Number of unreadable files to add.")] = 0,
    json_output: JsonOutput = False,
) -> None:
    """Make a small COCO panoptic dataset of synthetic scenes.

    Each scene shows 1 to 8 things on 1 to 3 kinds of stuff; there are nine classes. The photos go
    to FOLDER/images, their labels to FOLDER/panoptic.json and the PNGs in FOLDER/panoptic. The same
    seed gives the same scenes on every machine.

        panoptic scenes data/scenes --images 200

        panoptic train data/scenes/panoptic.json --out runs/scenes --steps 500
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"FOLDER {folder} is not empty: name a new one")
    reporter = ConsoleReporter()
    reporter.note(f"making {counted(images, 'scene')} in {folder}")
    write_scenes(folder, images, seed, broken=broken)
    truth = folder / "panoptic.json"
    if json_output:
        print_json({"images": images, "broken": broken, "seed": seed, "truth": str(truth)})
    else:
        print(f"{counted(images, 'scene')}: {folder / 'images'} and {truth}")
