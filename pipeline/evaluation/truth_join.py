"""The join of a COCO panoptic JSON with the run's manifest by image name, in DuckDB.

A truth names its images as COCO does (`000000000139.jpg`), a run as its source does
(`val2017/000000000139.jpg`, or a whole URI). Equal names belong together; else one name must be the
tail of the other's path, and of no second path. An ambiguous name raises UserError, since a guess
could score the wrong photo.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from detr.categories import Categories
from pipeline.errors import UserError
from pipeline.planning.coco_panoptic import CocoFile, categories_of, panoptic
from pipeline.planning.scratch_db import Staging, parquet

STAGED_ROWS: Final = 2_000
_SEGMENTS: Final = [
    ("segment_id", pa.list_(pa.int64())),
    ("category_id", pa.list_(pa.int64())),
    ("iscrowd", pa.list_(pa.bool_())),
    ("area", pa.list_(pa.int64())),
]
ANNOTATIONS: Final = pa.schema([("image_id", pa.string()), ("png", pa.string()), *_SEGMENTS])
IMAGES: Final = pa.schema([("image_id", pa.string()), ("name", pa.string())])


def check_categories(run: Categories, truth: Categories, truth_url: str) -> None:
    """Raises UserError unless the truth has each category of the run with its name and kind."""
    known = {category.id: category for category in truth}
    for category in run:
        same = known.get(category.id)
        if same is None:
            raise UserError(
                f"the run predicts category {category.id} ({category.name}), which {truth_url} "
                "doesn't have: evaluate with truth of the run's own categories"
            )
        if same.name != category.name or same.isthing != category.isthing:
            kind, other = ("thing" if c.isthing else "stuff" for c in (category, same))
            raise UserError(
                f"category {category.id} is {category.name!r} ({kind}) in the run and "
                f"{same.name!r} ({other}) in {truth_url}: evaluate with truth of the run's own "
                "categories"
            )


def stage_truth(staging: Staging, file: CocoFile) -> Categories:
    """Make the tables `annotations` and `images` (image_id, name) of a panoptic JSON, and the view
    `truth` (image_id, name) of the images with an annotation; returns the categories.

    Raises UserError for a JSON without annotations, or one whose annotation has no image.
    """
    listed = _stage(staging, file, truth=True, prefix="")
    for image_id, png in staging.connection.execute(
        "select image_id, png from annotations anti join images using (image_id) limit 1"
    ).fetchall():
        raise UserError(
            f"{file.url}: image {image_id} ({png}) has an annotation but is not in its images"
        )
    staging.connection.execute(
        "create view truth as select image_id, images.name from annotations join images "
        "using (image_id)"
    )
    if not staging.count("select count(*) from truth"):
        raise UserError(f"{file.url} has no annotations: is this a panoptic JSON?")
    return categories_of(listed, file)


def stage_predictions(staging: Staging, file: CocoFile) -> list[dict[str, Any]]:
    """Make the tables `predicted_images` and `predicted_annotations` of a JSON of predictions.

    Returns the entries of the JSON's `categories` unchecked, an empty list if it has none. Raises
    UserError for a malformed value.
    """
    return _stage(staging, file, truth=False, prefix="predicted_")


def _stage(staging: Staging, file: CocoFile, *, truth: bool, prefix: str) -> list[dict[str, Any]]:
    """Stream the lists of the JSON to Parquet, then into tables; returns the categories."""
    listed: list[dict[str, Any]] = []
    schemas = {"image": IMAGES, "annotation": ANNOTATIONS}
    paths = {kind: staging.path / f"{prefix}{kind}.parquet" for kind in schemas}
    rows: dict[str, list[Any]] = {kind: [] for kind in schemas}
    writers = {kind: pq.ParquetWriter(paths[kind], schema) for kind, schema in schemas.items()}

    def flush(kind: str) -> None:
        writers[kind].write_table(pa.Table.from_pylist(rows[kind], schema=schemas[kind]))
        rows[kind].clear()

    for kind, item in panoptic(file, truth=truth):
        if isinstance(item, list):
            listed = item
            continue
        rows[kind].append(item)
        if len(rows[kind]) == STAGED_ROWS:
            flush(kind)
    for kind, writer in writers.items():
        flush(kind)
        writer.close()
        # Of repeated ids the last wins, as in panopticapi's dicts.
        staging.connection.execute(
            f"create table {prefix}{kind}s as select * exclude file_row_number "
            f"from {parquet(paths[kind], numbered=True)} "
            "qualify row_number() over (partition by image_id order by file_row_number desc) = 1"
        )
    return listed


def resolve(staging: Staging, truth_url: str) -> None:
    """Make the table `resolved`: the annotations with hash and file_name of the run's manifest.

    Needs the tables or views truth (image_id, name), annotations and manifest (hash, file_name).
    Names match as the module says. Raises UserError with an ambiguous name.
    """
    connection = staging.connection
    connection.execute(
        "create table exact as select image_id, name, file_name, hash from truth "
        "join (select hash, file_name from manifest) on name = file_name"
    )
    connection.execute(
        "create table tails as "
        "with t as (select *, parse_filename(name) as base from truth anti join exact "
        "using (image_id)), "
        "m as (select hash, file_name, parse_filename(file_name) as base from manifest "
        "anti join exact using (file_name)) "
        "select image_id, name, file_name, hash from t join m using (base) "
        "where ends_with(file_name, '/' || name) or ends_with(name, '/' || file_name)"
    )
    both = "(from exact union all from tails)"
    for one, other, what in (("name", "file_name", "truth"), ("file_name", "name", "the run")):
        for name, count, some in connection.execute(
            f"select {one}, count(distinct {other}), min({other}) from {both} group by {one} "
            f"having count(*) > 1 order by {one} limit 1"
        ).fetchall():
            raise UserError(
                f"image {name!r} of {what} is ambiguous: {count} names match it, one of them "
                f"{some!r}; give the images of {truth_url} longer paths, or segment fewer"
            )
    connection.execute(
        "create table resolved as select hash, file_name, annotations.* from annotations "
        f"join (select image_id, file_name, hash from {both}) using (image_id)"
    )
