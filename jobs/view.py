"""`panoptic view`: pictures of photos with their segments drawn over, from a model or a run."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final

import typer
from PIL import Image
from rich.table import Table

from jobs.console import plain_console, print_json
from jobs.options import (
    JsonOutput,
    LabelSet,
    OutOptions,
    PhotoOptions,
    ShownSnapshot,
    Threshold,
    parse_options,
)
from pipeline.amounts import counted
from pipeline.errors import UserError
from pipeline.report.overlay import OPACITY
from pipeline.report.selection import nearest_names, random_names, worst_names
from pipeline.report.view import View, contact_sheet, view_photo, view_row
from pipeline.run.lookup import NoImageError
from pipeline.run.run import Run, open_run
from pipeline.segmentation.model_spec import ModelSpec
from pipeline.storage.entry import as_user_error
from pipeline.storage.storage import normalize_url, open_file

_FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
FOLDER: Final = "panoptic-views"
SHEET: Final = "contact-sheet.jpg"


def view(
    target: Annotated[
        str, typer.Argument(metavar="PHOTO|OUT", help="A photo, or a run folder; any fsspec URL.")
    ],
    file_names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE_NAME]...",
            help="Images of the run, as in its shards.",
            show_default=False,
        ),
    ] = None,
    at_random: Annotated[
        int | None, typer.Option("--random", min=1, help="Number of random images of the run.")
    ] = None,
    worst: Annotated[
        int | None, typer.Option(min=1, help="Number of images of the run with the lowest PQ.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option(help="The evaluation that --worst uses. Default: the newest.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of --random.")] = 0,
    weights: Annotated[
        str | None, typer.Option(help="For a photo: r50, r50-dc5, r101, or a file or folder.")
    ] = None,
    categories: LabelSet = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="File of a single picture; .png, .jpg or .webp. Default: "
            "NAME.panoptic.png in this folder, or in the temporary folder if photos are here."
        ),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            help="Folder of several pictures and contact-sheet.jpg. Default: "
            f"{FOLDER} in this folder, or in the temporary folder if photos are here."
        ),
    ] = None,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Opacity of the colours.")] = OPACITY,
    labels: Annotated[
        bool, typer.Option(help="Write category and score into each segment.")
    ] = True,
    snapshot: ShownSnapshot = None,
    model: Annotated[str, typer.Option(help="package.module:callable.")] = "detr:load",
    threshold: Threshold = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    source_option: PhotoOptions = None,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Draw segments over an image; for several images, also make a contact sheet.

    panoptic view photo.jpg --weights r50

    panoptic view s3://bucket/out holiday/0042.jpg --output 0042.png

    panoptic view s3://bucket/out --worst 20 --folder worst
    """
    options = parse_options(source_option, "--source-option")
    if len([way for way in (file_names, at_random, worst) if way]) > 1:
        raise UserError("choose images by name, by --random or by --worst: one of them at a time")
    single = folder is None and not (at_random or worst) and len(set(file_names or ())) < 2
    if not single and output is not None:
        raise UserError("--output is for one image: several go into --folder")
    if file_names or at_random or worst:
        if weights is not None:
            raise UserError("--weights is for a photo; a run's image is drawn from its own row")
        run = open_run(target, parse_options(out_option, "--out-option"))
        if at_random:
            names = random_names(run, at_random, snapshot=snapshot, seed=seed)
        elif worst:
            names = worst_names(run, worst, snapshot=snapshot, evaluation=evaluation)
        else:
            names = list(dict.fromkeys(file_names or ()))
        views = _views(run, names, snapshot, options, skip=bool(at_random or worst))
        photos = str(run.info.source.get("source", ""))
    elif weights is None:
        raise UserError(
            f"say how to segment {target} with --weights (r50, or a file), or which images of a "
            "run to show: panoptic view OUT FILE_NAME, or --random 20"
        )
    else:
        spec = ModelSpec(
            *(model, weights, "auto", threshold, 1, device),
            options=options,
            categories=categories,
            categories_options=options,
        )
        views = {target: view_photo(target, spec, options, plain_console(stderr=True).print)}
        photos = normalize_url(target).rpartition("/")[0]
    drawn = {name: seen.overlay(opacity=opacity, labels=labels) for name, seen in views.items()}
    if single:
        [(name, seen)] = views.items()
        path = output or _beside_no_photo(f"{PurePosixPath(name).stem}.panoptic.png", photos)
        _write(drawn[name], path, "--output")
        facts = _facts(seen, path)
        if json_output:
            print_json(facts)
        else:
            _print(seen, path)
        return
    path = folder or _beside_no_photo(FOLDER, photos)
    outputs = {
        name: f"{path}/{file}" for name, file in zip(drawn, _flat_names(list(drawn)), strict=True)
    }
    for name, picture in drawn.items():
        _write(picture, outputs[name], "--folder")
    sheet = f"{path}/{SHEET}"
    _write(contact_sheet(drawn), sheet, "--folder")
    if json_output:
        images = [{"file_name": n, **_facts(seen, outputs[n])} for n, seen in views.items()]
        print_json({"contact_sheet": sheet, "images": images})
        return
    console = plain_console()
    for name, seen in views.items():
        segments = counted(len(seen.panoptic.segments), "segment")
        console.print(f"{outputs[name]}  {segments}")
    console.print(f"{sheet}  all of them")


def _views(
    run: Run, names: Sequence[str], snapshot: int | None, options: dict[str, str], *, skip: bool
) -> dict[str, View]:
    """The images' views by name.

    skip: leave out images that can't be drawn, with a note. Raises UserError if none can be drawn.
    """
    views: dict[str, View] = {}
    for name in names:
        try:
            views[name] = _view_row(run, name, snapshot, options)
        except UserError as error:
            if not skip or (name == names[-1] and not views):
                raise
            print(f"left out: {error}", file=sys.stderr)
    if not views:
        raise UserError(f"{run.storage.url} has no segmented image to show")
    return views


def _view_row(run: Run, name: str, snapshot: int | None, options: dict[str, str]) -> View:
    try:
        return view_row(run, name, number=snapshot, options=options)
    except NoImageError as error:
        nearest = nearest_names(run, name, run.snapshot(snapshot))
        if not nearest:
            raise
        listed = ", ".join(repr(near) for near in nearest)
        raise NoImageError(
            f"{run.storage.url} has no image {name!r}; nearest are {listed}"
        ) from error


def _beside_no_photo(name: str, photos: str) -> str:
    """`name` in the current folder, or in the temporary folder if the current folder is within
    `photos`: a later listing of the photos would find the picture.

    photos: the folder or list that the photos come from.
    """
    source = Path(photos).resolve()
    here = Path.cwd()
    if "://" in photos or not (here == source or source in here.parents):
        return name
    return str(Path(tempfile.gettempdir()) / name)


def _flat_names(names: Sequence[str]) -> list[str]:
    """A unique file name for each image, without folders: `a/b.jpg` is `a_b.panoptic.png`."""
    taken: dict[str, None] = {}  # an ordered set
    for name in names:
        stem = str(PurePosixPath(name).with_suffix("")).strip("/").replace("/", "_")
        file, number = f"{stem}.panoptic.png", 2
        while file in taken:
            file, number = f"{stem}-{number}.panoptic.png", number + 1
        taken[file] = None
    return list(taken)


def _write(picture: Image.Image, output: str, option: str) -> None:
    suffix = PurePosixPath(output).suffix.lower()
    if suffix not in _FORMATS:
        raise UserError(f"--output {output!r} must end in {', '.join(_FORMATS)}")
    data = BytesIO()
    picture.save(data, _FORMATS[suffix], quality=92)
    storage, name = open_file(output)
    try:
        storage.write(name, data.getvalue())
    except Exception as error:
        raise as_user_error(error, f"can't write {option} {output}") from error


def _facts(seen: View, output: str) -> dict[str, Any]:
    height, width = seen.image.shape[:2]
    return {"output": output, "height": height, "width": width, "segments": seen.segments()}


def _print(seen: View, output: str) -> None:
    console = plain_console()
    table = Table("id", "category", "kind", "score", "area", box=None)
    for row in seen.segments():
        kind = "thing" if row["isthing"] else "stuff"
        share = f"{100 * row['share']:.1f} %"
        table.add_row(str(row["id"]), row["name"], kind, f"{row['score']:.2f}", share)
    console.print(table if seen.panoptic.segments else "no segments", end="\n")
    console.print(output)
