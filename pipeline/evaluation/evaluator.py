"""PQ of a run against ground truth: Ray tasks score shards, one actor adds the sums.

A task reads a shard and the truth of its hash range and writes the per-image rows itself, so only
sums of fixed size (5 MB at most) travel. The actor counts each shard once, also if Ray runs a task
twice. The per-image rows lie in a fresh folder that `pq.json`, written last, names: readers see all
of them at once.

Shards and images that can't be scored (a broken shard, an overlap, another size) are listed. All
others are scored and written before the evaluation raises `InvalidError`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from detr.categories import Categories
from pipeline.amounts import counted
from pipeline.errors import TryAgainError, UserError
from pipeline.evaluation.category_map import FLAG, CategoryMap, read_map
from pipeline.evaluation.fresh import fresh_name, sweep
from pipeline.evaluation.truth import Truth, TruthPart, check_categories, load_truth, prepare
from pipeline.layout import PQ_FILE, evaluation_folder, part_name, truth_folder
from pipeline.panoptic.figures import per_class_table, results
from pipeline.panoptic.pq import Sums
from pipeline.panoptic.score import (
    NAMED,
    Partial,
    broken_shard,
    hashes_of,
    refuse_invalid,
    score_rows,
)
from pipeline.planning.scratch_db import Staging
from pipeline.run.folder import parquet_bytes
from pipeline.run.run import Run, open_run
from pipeline.secrets import refuse_secrets
from pipeline.storage.storage import Storage, normalize_url, open_file

POLL_SECONDS: Final = 2.0
IN_FLIGHT_PER_CPU: Final = 2
# Set for each task: a segmentation in this process may have set Ray's default to retries without a
# limit, and a task that kills its worker each time would then never end.
TASK_RETRIES: Final = 3
LOST: Final = (NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
ROW_KINDS: Final = ("scored", "failed", "without_truth", "invalid")  # kinds with a per-image row


@dataclass(frozen=True)
class LiveShards:
    """The shards to score. number: of the snapshot, or of the generation in work."""

    number: int
    paths: tuple[str, ...]
    complete: bool


@ray.remote(num_cpus=0)
class PqActor:
    """Adds the sums of the shards; each shard counts once, also if its task ran twice."""

    def __init__(self, category_list: list[dict[str, Any]]) -> None:
        self._categories = Categories.from_json(category_list)
        self._total = Partial(Sums.zero(len(self._categories)))
        self._seen: set[str] = set()

    def add(self, shard: str, part: Partial) -> bool:
        """Add the sums of a shard; False if this shard was added before."""
        if shard in self._seen:
            return False
        self._seen.add(shard)
        self._total.add(part)
        return True

    def total(self) -> Partial:
        return self._total

    def progress(self) -> tuple[int, dict[str, int], float | None]:
        """Number of shards so far, images by kind, and PQ (0 to 1) of all classes."""
        figures = results(self._total.sums, self._categories)
        return len(self._seen), dict(self._total.counts), figures["All"]["pq"]


def score_shard(
    run: Run, path: str, truth: Truth, folder: str, mapping: CategoryMap | None = None
) -> Partial:
    """Score one shard and write its per-image rows into `folder` of the run.

    mapping: to a common label set; None: the label set of the truth. A shard that can't be read is
    counted as broken and writes no rows.
    """
    category_ids = (mapping or truth).categories.ids
    try:
        predictions = run.read_shard(path)
    except UserError as error:
        return broken_shard(path, str(error), len(category_ids))
    rows = truth.rows(hashes_of(predictions["file_name"].to_pylist()))
    if mapping is not None:
        predictions, rows = mapping.apply(predictions, "model"), mapping.apply(rows, "truth")
    partial, table = score_rows(predictions, rows, category_ids, path)
    run.storage.write(f"{folder}/{part_name(path)}", parquet_bytes(table))
    return partial


@ray.remote(num_cpus=1, max_retries=TASK_RETRIES)
def _score(
    run: Run, path: str, truth: Truth, folder: str, mapping: CategoryMap | None, actor: Any
) -> None:
    ray.get(actor.add.remote(path, score_shard(run, path, truth, folder, mapping)))


@ray.remote(num_cpus=1, max_retries=TASK_RETRIES)
def _convert(conversion: Callable[[], TruthPart]) -> TruthPart:
    return conversion()


def evaluate_run(
    out: str,
    truth: str,
    masks: str | None = None,
    *,
    map_categories: str | None = None,
    name: str | None = None,
    snapshot: int | None = None,
    follow: bool = False,
    address: str | None = None,
    options: dict[str, str] | None = None,
    truth_options: dict[str, str] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Score a run's shards against ground truth; write `pq.json` and return its contents.

    truth: a COCO panoptic JSON, or the `truth` folder of an earlier evaluation of this run. masks:
    the folder of the truth's PNGs; None: the folder named as the JSON. truth_options: storage
    options of the truth; None: those of the run, if the truth lies in the run folder.
    map_categories: a file that renames, merges or leaves out categories of truth and model
    (category_map.py). snapshot: None scores the published one; in a run without one, the shards
    written so far (each is a uniform sample of the images). follow: also score the shards that a
    running job writes, until its generation is complete.

    Raises UserError before anything is scored; InvalidError, with the result, if an image or a
    shard could not be scored.
    """
    from pipeline.cluster.ray_session import join_ray  # imports torch, which readers do not need

    urls = ((truth, "--truth"), (masks, "--truth-masks"), (map_categories, FLAG))
    for url, flag in urls:
        refuse_secrets(url or "", flag)  # `pq.json` holds these URLs
    run = open_run(out, options)
    if (size := run.info.config.get("output_size", "original")) != "original":
        raise UserError(
            f"{out} has masks of --output-size {size}, and truth has the images' own: segment into "
            "another --out without that option"
        )
    if snapshot is not None and follow:
        raise UserError("--follow takes what is being made now: leave out --snapshot")
    live = _chosen(run, snapshot, follow=follow)
    name = name or default_name(truth, map_categories)
    folder = evaluation_folder(live.number, name)
    started = time.monotonic()
    join_ray(address)
    if truth_options is None and normalize_url(truth).startswith(f"{run.storage.url}/"):
        truth_options = run.storage.options
    mapping: CategoryMap | None = None

    def check(categories: Categories) -> None:
        nonlocal mapping
        if map_categories is None:
            check_categories(run.info.categories, categories, truth)
        else:
            mapping = read_map(
                map_categories,
                truth=categories,
                model=run.info.categories,
                options=truth_options,
            )

    converted = load_truth(*open_file(truth, truth_options))
    if converted is not None:
        check(converted[0].categories)
        prepared = converted[0]
    else:
        prepared = prepare(
            run,
            truth_folder(folder),
            truth,
            masks,
            options=truth_options,
            convert=_in_parallel,
            check=check,
            note=note,
        )
    categories = (mapping or prepared).categories
    rows = fresh_name()
    # On the driver's node: the sums would be lost with a spot node.
    strategy = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = PqActor.options(scheduling_strategy=strategy).remote(categories.to_json())
    rows_folder = f"{folder}/per_image/{rows}"
    done = _score_all(run, live, follow, prepared, rows_folder, mapping, actor, note)
    total: Partial = ray.get(actor.total.remote())
    ray.kill(actor)
    count = sum(total.counts[kind] for kind in ROW_KINDS)
    _count_unpredicted(run, prepared, rows_folder, total)
    result = {
        "run": run.storage.url,
        "snapshot": done.number,
        "complete": done.complete,
        "shards": len(done.paths),
        "name": name,
        "truth": truth,
        "truth_sha256": mapping.identity(prepared.sha256) if mapping else prepared.sha256,
        "per_image": f"per_image/{rows}",
        "rows": count,
        "files": len(done.paths) - total.counts["broken_shards"],
        **_label_set(run, prepared, mapping),
        "fingerprint": run.info.fingerprint,
        **results(total.sums, categories),
        **total.facts(),
        "area_mismatches": prepared.mismatched,
        "seconds": round(time.monotonic() - started, 3),
    }
    classes = per_class_table(result, categories)
    run.storage.write(f"{folder}/per_class.parquet", parquet_bytes(classes))
    before = _former_rows(run.storage, folder)
    run.storage.write(f"{folder}/{PQ_FILE}", (json.dumps(result, indent=1) + "\n").encode())
    sweep(run.storage, f"{folder}/per_image", keep=rows, replaced=before)
    refuse_invalid(result, total)
    return result


def _label_set(run: Run, truth: Truth, mapping: CategoryMap | None) -> dict[str, Any]:
    """`pq.json`: the category map, or the truth's categories that the run does not predict."""
    if mapping is not None:
        return {"category_map": mapping.to_json()}
    ids = run.info.categories.ids
    return {"more_categories": [entry for entry in truth.category_list if entry["id"] not in ids]}


def _former_rows(storage: Storage, folder: str) -> str | None:
    """The name of the fresh folder in `pq.json` before this evaluation replaces it."""
    try:
        former = json.loads(storage.read(f"{folder}/{PQ_FILE}"))
    except (FileNotFoundError, ValueError):
        return None
    return str(former.get("per_image", "")).rpartition("/")[2]


def default_name(truth: str, map_categories: str | None = None) -> str:
    """`.../panoptic_val2017.json` and `.../panoptic_val2017/truth` -> `panoptic_val2017`; with the
    map `vehicles.toml` -> `panoptic_val2017-vehicles`."""
    name = truth.rstrip("/").removesuffix("/truth").rpartition("/")[2].removesuffix(".json")
    return f"{name}-{PurePosixPath(map_categories).stem}" if map_categories else name


def live_shards(run: Run, number: int) -> LiveShards:
    """The shards of snapshot `number`; before it is made, those written or kept so far."""
    if number in run.snapshot_numbers():
        return LiveShards(number, tuple(s.path for s in run.snapshot(number).shards), True)
    generation = run.generation(number)
    planned = {unit.path for unit in generation.units()} | {r.path for r in generation.rewrites}
    paths = sorted(planned & run.present(number).keys())
    if generation.base is not None:
        leaving = {*generation.gone, *(rewrite.source for rewrite in generation.rewrites)}
        paths += [s.path for s in run.snapshot(generation.base).shards if s.path not in leaving]
    return LiveShards(number, tuple(paths), False)


def _chosen(run: Run, snapshot: int | None, *, follow: bool) -> LiveShards:
    """The shards of `snapshot`; None: of the published one, else of the newest generation.

    Raises UserError if no shard is there and `follow` is False.
    """
    if snapshot is not None:
        return LiveShards(snapshot, tuple(s.path for s in run.snapshot(snapshot).shards), True)
    newest = max(run.generations(), default=None)
    number = newest if follow else run.latest() or newest
    live = live_shards(run, number) if number is not None else None
    if live is None or not (live.paths or follow):
        raise UserError(f"{run.storage.url} has no shards yet: run `panoptic segment` first")
    return live


def _score_all(
    run: Run,
    live: LiveShards,
    follow: bool,
    truth: Truth,
    folder: str,
    mapping: CategoryMap | None,
    actor: Any,
    note: Callable[[str], None],
) -> LiveShards:
    """Score every live shard, with `follow` also those that a running job adds; returns all."""
    shared = ray.put(truth)
    sent: set[str] = set()
    while True:
        new = [path for path in live.paths if path not in sent]
        last_note = time.monotonic()
        for _ in _bounded(_score.remote(run, path, shared, folder, mapping, actor) for path in new):
            if time.monotonic() - last_note > POLL_SECONDS:
                _tell(actor, len(live.paths), note)
                last_note = time.monotonic()
        sent.update(new)
        if new:
            _tell(actor, len(live.paths), note)
        if live.complete or not follow:
            return live
        time.sleep(POLL_SECONDS)
        live = live_shards(run, live.number)


def _tell(actor: Any, shards: int, note: Callable[[str], None]) -> None:
    done, counts, pq = ray.get(actor.progress.remote())
    figure = "no classes yet" if pq is None else f"PQ {100 * pq:.2f}"
    images = counted(counts.get("scored", 0), "image")
    note(f"{done:,} of {counted(shards, 'shard')}, {images}: {figure}")


def _in_parallel(conversions: Iterable[Callable[[], TruthPart]]) -> Iterator[TruthPart]:
    return _bounded(_convert.remote(conversion) for conversion in conversions)


def _bounded(tasks: Iterator[ray.ObjectRef]) -> Iterator[Any]:
    """Results in order of completion; few tasks are in flight, which saves memory on the driver."""
    limit = max(2, int(IN_FLIGHT_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    waiting: list[ray.ObjectRef] = []
    for task in tasks:
        waiting.append(task)
        if len(waiting) >= limit:
            [ready], waiting = ray.wait(waiting, num_returns=1)
            yield _result(ready)
    while waiting:
        [ready], waiting = ray.wait(waiting, num_returns=1)
        yield _result(ready)


def _result(task: ray.ObjectRef) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except LOST as error:
        first = str(error).strip().split("\n", 1)[0]
        raise TryAgainError(
            f"the cluster lost a task of the evaluation {TASK_RETRIES + 1} times "
            f"({type(error).__name__}: {first}): most likely it ran out of memory; run the same "
            "command again, on larger nodes if it goes on"
        ) from error


def _count_unpredicted(run: Run, truth: Truth, folder: str, total: Partial) -> None:
    """Add to `total` the number of truth images without a prediction, and NAMED of their names."""
    predicted = sum(total.counts[kind] for kind in ("scored", "failed", "invalid"))
    total.counts["without_prediction"] = truth.absent + truth.images - predicted
    names = list(truth.absent_names)
    if predicted < truth.images:
        with Staging() as staging:
            written = [entry.path for entry in run.storage.list(folder)]
            rows = staging.stage("rows", _columns(run.storage, written, ["hash"]))
            parts = [f"{truth.folder}/{path}" for path in truth.paths]
            staging.stage("truth", _columns(truth.storage, parts, ["hash", "file_name"]))
            without = "anti join rows using (hash)" if rows else ""
            query = f"select file_name from truth {without} order by file_name limit {NAMED}"
            names += [name for (name,) in staging.connection.execute(query).fetchall()]
    total.named["without_prediction"] = sorted(names)[:NAMED]


def _columns(store: Storage, paths: list[str], columns: list[str]) -> Iterator[pa.Table]:
    for path in paths:
        with store.open(path) as file:
            yield pq.ParquetFile(file).read(columns=columns)
