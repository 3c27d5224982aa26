"""`panoptic inspect`: the stages of DETR on one photo, as a table and an HTML page.

The file is not named inspect.py: scripts in this folder would import it instead of the standard
library's module.
"""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, LabelSet, Threshold, parse_options
from pipeline.errors import UserError
from pipeline.report.view import load_model, photo_pixels
from pipeline.segmentation.model_spec import ModelSpec
from pipeline.storage.entry import as_user_error
from pipeline.storage.storage import open_file

if TYPE_CHECKING:
    from pipeline.report.inspect import Inspection


def inspect(
    photo: Annotated[str, typer.Argument(metavar="PHOTO", help="A photo; any fsspec URL.")],
    weights: Annotated[str, typer.Option(help="r50, r50-dc5, r101, or a file or folder.")],
    categories: LabelSet = None,
    queries: Annotated[
        int, typer.Option(min=0, max=100, help="Number of kept queries to show, best score first.")
    ] = 8,
    output: Annotated[
        str | None, typer.Option(help="Where to write. Default: NAME.inspect.html here.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    threshold: Threshold = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    source_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Storage option of photo and weights; repeatable."),
    ] = None,
    json_output: JsonOutput = False,
) -> None:
    """Show how the model segments a photo: every stage with its shape, and a page of pictures.

    panoptic inspect photo.jpg --weights r50 --open

    The page shows attention maps, intermediate masks and the panoptic map; docs/model.md explains
    the stages.
    """
    from detr.inference.predictor import Predictor
    from pipeline.report.inspect import inspect_image
    from pipeline.report.inspect_page import render_inspect

    options = parse_options(source_option, "--source-option")
    image = photo_pixels(photo, options)
    spec = ModelSpec(
        *("detr:load", weights, dtype, threshold, 1, device),
        options=options,
        categories=categories,
        categories_options=options,
    )
    model = load_model(spec, plain_console(stderr=True).print)
    if not isinstance(model, Predictor):
        raise UserError("inspect looks into DETR; other models have no such stages")
    seen = inspect_image(model, image, queries)
    output = output or f"{PurePosixPath(photo).stem}.inspect.html"
    storage, name = open_file(output)
    try:
        storage.write(name, render_inspect(seen, model.categories, photo=photo, weights=weights))
    except Exception as error:
        raise as_user_error(error, f"can't write --output {output}") from error
    if json_output:
        listed = [
            {"part": stage.part, "stage": stage.name, "shape": list(stage.shape)}
            for stage in seen.stages
        ]
        print_json({"output": output, "kept": seen.kept, "stages": listed})
    else:
        _print(seen, output)
    if open_it and storage.is_local and not webbrowser.open(Path(storage.key(name)).as_uri()):
        print("no browser is to be had here: copy the page to where one is", file=sys.stderr)


def _print(seen: Inspection, output: str) -> None:
    console = plain_console()
    table = Table("stage", "shape", "in letters", box=None)
    part = ""
    for stage in seen.stages:
        if stage.part != part:
            part = stage.part
            table.add_row(Text(part, style="bold"))
        shape = " x ".join(str(side) for side in stage.shape)
        table.add_row(f"  {stage.name}", shape, stage.letters)
    console.print(table)
    console.print(output)
