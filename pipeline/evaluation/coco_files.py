"""PQ of any model's COCO panoptic files: two JSONs and their PNG folders, without Ray.

Conversion, kernel and sums are those of a run, so a run and its export have exactly the same
figures. Threads convert the images; PNG decoding and the kernels release the GIL. The JSONs are
staged in DuckDB and the PNGs read in chunks, so some hundred thousand images fit in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa

from pipeline.amounts import counted
from pipeline.evaluation.category_map import CategoryMap, read_map
from pipeline.evaluation.truth import convert_row, masks_of
from pipeline.evaluation.truth_join import stage_predictions, stage_truth
from pipeline.evaluation.truth_png import table_of
from pipeline.panoptic.figures import results
from pipeline.panoptic.pq import Sums
from pipeline.panoptic.score import NAMED, Invalid, Partial, refuse_invalid, score_rows
from pipeline.planning.coco_panoptic import CocoFile, categories_of, category_names, renamed
from pipeline.planning.scratch_db import Staging
from pipeline.sharding import name_hash
from pipeline.storage.archive_folder import folder_at
from pipeline.storage.storage import Storage

THREADS: Final = 8
CHUNK: Final = 256


def evaluate_files(
    predictions: str,
    truth: str,
    prediction_masks: str | None = None,
    truth_masks: str | None = None,
    *,
    map_categories: str | None = None,
    options: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Score `predictions` against `truth`, both COCO panoptic JSONs, joined by image_id.

    prediction_masks, truth_masks: the folders of the PNGs; None: the folder named as the JSON.
    options: of the storage of all files. map_categories: as of `evaluate_run`; predictions that
    list no categories have those of the truth. Returns figures with the names of `evaluate_run`.

    Raises UserError for files that can't be read; InvalidError, with the figures of all other
    images, for images that can't be scored. An image of the truth without a prediction is such an
    image, as in panopticapi.
    """
    started = time.monotonic()
    folders = {
        "prediction": folder_at(prediction_masks or masks_of(predictions), options),
        "truth": folder_at(truth_masks or masks_of(truth), options),
    }
    with Staging() as staging:
        categories = stage_truth(staging, CocoFile(truth, options))
        file = CocoFile(predictions, options)
        listed = stage_predictions(staging, file)
        mapping: CategoryMap | None = None
        if map_categories is not None:
            model = categories_of(listed, file) if listed else categories
            mapping = read_map(map_categories, truth=categories, model=model, options=options)
            categories = mapping.categories
        else:
            for number, true_name, other_name in renamed(categories, category_names(listed))[:1]:
                note(
                    f"category {number} is {other_name!r} in {predictions} and {true_name!r} in "
                    f"{truth}: are they of one label set? Only ids are compared "
                    "(--map-categories FILE says which are the same)"
                )
        # `score_rows` joins rows by name, and two images of a JSON may share a name.
        staging.connection.execute(
            "create view named as select image_id, case when count(*) over (partition by name) > 1 "
            "then name || ' (id ' || image_id || ')' else name end as name from images"
        )
        total = Partial(Sums.zero(len(categories)))
        missing = "annotations join named using (image_id) anti join predicted_annotations "
        count = staging.count(f"select count(*) from {missing} using (image_id)")
        total.counts["without_prediction"] = total.counts["invalid"] = count
        for image_id, name in staging.connection.execute(
            f"select image_id, name from {missing} using (image_id) order by name limit {NAMED}"
        ).fetchall():
            for kind in ("without_prediction", "invalid"):
                total.named.setdefault(kind, []).append(name)
            total.invalid.append(Invalid("", name, f"image id {image_id} has no prediction"))
        without = "predicted_annotations anti join annotations using (image_id)"
        total.counts["without_truth"] = staging.count(f"select count(*) from {without}")
        total.named["without_truth"] = [
            f"id {image_id}"
            for (image_id,) in staging.connection.execute(
                f"select image_id from {without} order by image_id limit {NAMED}"
            ).fetchall()
        ]
        pairs = (
            "from annotations as t join predicted_annotations as p using (image_id) "
            "join named using (image_id) order by image_id"
        )
        columns = ", ".join(
            f"{side}.{name} as {side}_{name}"
            for side in ("t", "p")
            for name in ("png", "segment_id", "category_id", "iscrowd", "area")
        )
        for chunk in staging.tables(f"select image_id, named.name, {columns} {pairs}"):
            for first in range(0, chunk.num_rows, CHUNK):
                rows = chunk.slice(first, CHUNK).to_pylist()
                total.add(_score_chunk(rows, folders, categories.ids, mapping))
                note(f"{counted(total.counts['scored'], 'image')} scored")
    result = {
        "predictions": predictions,
        "truth": truth,
        **({"category_map": mapping.to_json()} if mapping else {}),
        **results(total.sums, categories),
        **total.facts(),
        "seconds": round(time.monotonic() - started, 3),
    }
    refuse_invalid(result, total)
    return result


def _score_chunk(
    rows: list[dict[str, Any]],
    folders: dict[str, Storage],
    category_ids: tuple[int, ...],
    mapping: CategoryMap | None,
) -> Partial:
    with ThreadPoolExecutor(THREADS) as threads:
        true = list(threads.map(lambda row: _side(row, "t", folders["truth"]), rows))
        predicted = list(threads.map(lambda row: _side(row, "p", folders["prediction"]), rows))
    predictions, truth = table_of(predicted), table_of(true)
    if mapping is not None:
        predictions, truth = mapping.apply(predictions, "model"), mapping.apply(truth, "truth")
    broken = predictions["problem"].to_pylist()
    good = [problem is None for problem in broken]
    status = pa.array(["ok" if is_good else "error" for is_good in good])
    predictions = predictions.append_column("status", status).append_column("error_code", status)
    partial, _ = score_rows(predictions.filter(pa.array(good)), truth, category_ids)
    for row, problem in zip(rows, broken, strict=True):
        if problem is not None:
            partial.counts["invalid"] += 1
            partial.invalid.append(Invalid("", row["name"], f"prediction: {problem}"))
    return partial


def _side(row: dict[str, Any], side: str, masks: Storage) -> dict[str, Any]:
    annotation = {name[2:]: value for name, value in row.items() if name.startswith(f"{side}_")}
    name = row["name"]
    names = {"hash": name_hash(name), "file_name": name, "image_id": row["image_id"]}
    return convert_row({**annotation, **names}, masks, truth=side == "t")
