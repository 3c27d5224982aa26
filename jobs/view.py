"""`panoptic view`: one photo with its segments over it, from a model or from a run."""

from __future__ import annotations

from io import BytesIO
from pathlib import PurePosixPath
from typing import Annotated, Final

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.console import print_json
from jobs.options import JsonOutput, OutOptions, parse_options
from pipeline.errors import UserError
from pipeline.report.view import View, view_photo, view_row
from pipeline.run.run import open_run
from pipeline.segmentation.model_spec import ModelSpec
from pipeline.storage.entry import as_user_error
from pipeline.storage.storage import open_file

_FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def view(
    target: Annotated[
        str, typer.Argument(metavar="PHOTO|OUT", help="A photo, or a run folder; any fsspec URL.")
    ],
    file_name: Annotated[
        str | None,
        typer.Argument(metavar="FILE_NAME", help="The image of the run, as in its shards."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="For a photo: r50, r50-dc5, r101, or a file or folder.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="Where to write; .png, .jpg or .webp. Default: NAME.panoptic.png here."),
    ] = None,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of the colours.")] = 0.5,
    labels: Annotated[
        bool, typer.Option(help="Write category and score into each segment.")
    ] = True,
    snapshot: Annotated[
        int | None, typer.Option(min=1, help="Of the run; default: the published one.")
    ] = None,
    model: Annotated[str, typer.Option(help="package.module:callable.")] = "detr:load",
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Least class probability of a segment.")
    ] = 0.85,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    source_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Storage option of the photos; repeatable."),
    ] = None,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Draw the segments of one image over it.

    panoptic view photo.jpg --weights r50

    panoptic view s3://bucket/out holiday/0042.jpg --output 0042.png
    """
    options = parse_options(source_option, "--source-option")
    if file_name is not None:
        if weights is not None:
            raise UserError("--weights is for a photo; a run's image is drawn from its own row")
        run = open_run(target, parse_options(out_option, "--out-option"))
        seen = view_row(run, file_name, number=snapshot, options=options)
    elif weights is None:
        raise UserError(
            f"say how to segment {target} with --weights (r50, or a file), or which image of a run "
            "to show: panoptic view OUT FILE_NAME"
        )
    else:
        spec = ModelSpec(model, weights, "auto", threshold, 1, device, options=options)
        seen = view_photo(target, spec, options)
    output = output or f"{PurePosixPath(file_name or target).stem}.panoptic.png"
    _write(seen.overlay(opacity=opacity, labels=labels), output)
    if json_output:
        height, width = seen.image.shape[:2]
        facts = {"output": output, "height": height, "width": width}
        print_json({**facts, "segments": seen.segments()})
    else:
        _print(seen, output)


def _write(picture: Image.Image, output: str) -> None:
    suffix = PurePosixPath(output).suffix.lower()
    if suffix not in _FORMATS:
        raise UserError(f"--output {output!r} must end in {', '.join(_FORMATS)}")
    data = BytesIO()
    picture.save(data, _FORMATS[suffix], quality=92)
    storage, name = open_file(output)
    try:
        storage.write(name, data.getvalue())
    except Exception as error:
        raise as_user_error(error, f"can't write --output {output}") from error


def _print(seen: View, output: str) -> None:
    console = Console(highlight=False)
    table = Table("id", "category", "kind", "score", "area", box=None)
    for row in seen.segments():
        kind = "thing" if row["isthing"] else "stuff"
        share = f"{100 * row['share']:.1f} %"
        # A user's label may hold brackets, which are markup to rich.
        table.add_row(str(row["id"]), Text(row["name"]), kind, f"{row['score']:.2f}", share)
    console.print(table if seen.panoptic.segments else "no segments", end="\n")
    console.print(Text(output), soft_wrap=True)
