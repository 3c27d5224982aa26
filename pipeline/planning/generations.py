"""Plans a generation: the first from a listing, later ones from failed images or a new listing.

Images to compute are packed into new shards; live shards that lose rows are copied without these
rows; other live shards stay. The manifest is written under names that no other plan has, then
`generation.json` commits the plan. So a late plan, or one that was not committed, changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.error_budget import exceeds
from pipeline.errors import UserError
from pipeline.layout import dropped_path
from pipeline.planning.manifest import (
    clear_other_plans,
    new_plan,
    stage_manifest,
    write_dropped,
    write_parts,
)
from pipeline.planning.object_info import OBJECT_INFO, stage_object_info, unknown_bytes
from pipeline.planning.scratch_db import Staging, quoted
from pipeline.planning.source import Source
from pipeline.run.folder import Snapshot
from pipeline.run.run import Run
from pipeline.schema import DROPPED_SCHEMA
from pipeline.sharding import Generation, rewrites_for, shard_count, shard_of

Progress = Callable[[int], None]
Note = Callable[[str], None]
_NOW = "case when object_info.file_name is null then manifest.{0} else object_info.{0} end"
# An image is changed if its object info is: the ETag if both have one, else size or time. The
# object info of a member is its archive's, which changes with any member: its CRC32 and size count.
CHANGED = """
    case when old.member_crc32 is not null and new.member_crc32 is not null
    then old.member_crc32 != new.member_crc32 or old.size != new.size
    when old.etag is not null and new.etag is not null then old.etag != new.etag
    else old.size is distinct from new.size or old.last_modified is distinct from new.last_modified
    end
"""


def stage_listing(
    staging: Staging,
    source: Source,
    limit: int | None,
    progress: Progress,
    note: Note = lambda text: None,
) -> tuple[int, int]:
    """Create the view `listing` of the source's images; returns (images, encoded bytes).

    The bytes of images without a listed size are estimated from a sample. limit: keep the images
    with the smallest hashes, a uniform sample that every larger one contains. progress: gets the
    number of images so far. note: gets a line about files that are left out. Raises UserError if
    there is no image or a name is repeated.
    """
    rows = staging.stage("everything", source.tables(progress))
    any_suffix = source.photos.any_suffix
    left_out = source.left_out.sentence(any_suffix=any_suffix)
    if not rows:
        hint = " with --include/--exclude as given" if source.include or source.exclude else ""
        other = "" if any_suffix else ", or name files of other suffixes with --include '*.xyz'"
        if source.kind != "folder":
            raise UserError(f"no images found in {source.url}: it lists none")
        raise UserError(
            f"no images found in {source.url}{hint}: check the path{other}"
            f"{f' ({left_out})' if left_out else ''}"
        )
    if left_out:
        note(left_out)
    staging.refuse_duplicates("everything")
    if limit:
        chosen = f"from everything order by hash, file_name limit {limit}"
        staging.connection.execute(f"create table chosen as {chosen}")
    staging.connection.execute(f"create view listing as from {'chosen' if limit else 'everything'}")
    images = staging.count("select count(*) from listing")
    known = staging.count("select cast(coalesce(sum(size), 0) as bigint) from listing")
    return images, known + unknown_bytes(staging, "listing", source.options)


def plan_first(
    run: Run, staging: Staging, images: int, total_bytes: int, images_per_shard: int | None
) -> Generation:
    """Plan and commit generation 1: all images of the view `listing`."""
    plan = new_plan()
    rows = write_parts(
        run.storage,
        1,
        shard_count(images, total_bytes, images_per_shard),
        staging.in_order("listing"),
        plan,
    )
    generation = Generation(1, "first", rows, total_bytes, counts={"new": images}, plan=plan)
    return _commit(run, generation)


def plan_retry(
    run: Run,
    codes: Sequence[str],
    images_per_shard: int | None,
    options: Mapping[str, str] | None = None,
) -> Generation | None:
    """Plan and commit a generation of the images that failed with one of `codes`; None if none did.

    options: of the source's storage; by default those that the run recorded.
    """
    kept: dict[str, str] = run.info.config.get("source_options", {})
    number = max(run.generations())
    base = run.snapshot(number)
    with Staging() as staging:
        if not staging.stage("failed", _failed(run, base, codes)):
            return None
        stage_manifest(staging, "manifest", run)
        # The old body of a replaced image is gone: plan it with its new object info.
        replaced = staging.connection.execute(
            "select file_name, uri from manifest join failed using (file_name) "
            "where error_code = 'changed'"
        ).fetchall()
        stage_object_info(staging, "object_info", replaced, kept if options is None else options)
        staging.connection.execute(
            "create table computed as select manifest.* exclude (generation) "
            "replace (cast(failed.attempts as integer) as attempts, "
            + ", ".join(f"{_NOW.format(column)} as {column}" for column in OBJECT_INFO)
            + ") from manifest join failed using (file_name)"
            + " left join object_info using (file_name)"
        )
        staging.connection.execute(
            "create table leaving as select hash, file_name, generation, 'retry' as reason "
            "from manifest semi join failed using (file_name)"
        )
        return _plan_next(run, staging, base, "retry", images_per_shard)


@dataclass(frozen=True)
class Brakes:
    """Limits of a refresh, as parts of the run's images, and the failed images that it retries.

    max_recompute: None for no limit. Images that failed with one of `retry_codes` are computed
    again until `retries` retries have failed.
    """

    max_removed_rate: float
    max_recompute: float | None = None
    retry_codes: tuple[str, ...] = ()
    retries: int = 0


def plan_refresh(
    run: Run,
    source: Source,
    limit: int | None,
    *,
    images_per_shard: int | None,
    brakes: Brakes,
    progress: Progress,
    note: Note = lambda text: None,
) -> Generation | None:
    """Plan and commit a generation of new, changed and retried images, without removed ones.

    None if the source has not changed and no image is retried. Raises UserError if more images are
    removed or to be computed than `brakes` allows, as after an incomplete listing or a copy of the
    bucket.
    """
    number = max(run.generations())
    base = run.snapshot(number)
    with Staging() as staging:
        images, _ = stage_listing(staging, source, limit, progress, note)
        stage_manifest(staging, "manifest", run)
        _as_planned(staging, source)
        before = staging.count("select count(*) from manifest")
        removed = staging.count("select count(*) from manifest anti join listing using (file_name)")
        if exceeds(removed, before, brakes.max_removed_rate):
            raise UserError(
                f"{removed} of {before} images are gone from {source.url} ({images} are there), "
                f"more than --max-removed-rate {brakes.max_removed_rate:g} allows: check the "
                "listing, or raise it"
            )
        staging.connection.execute(
            "create table computed as "
            "select new.* from listing new anti join manifest using (file_name) union all "
            f"select new.* from listing new join manifest old using (file_name) where {CHANGED}"
        )
        staging.connection.execute(
            "create table leaving as "
            "select old.hash, old.file_name, old.generation, 'removed' as reason "
            "from manifest old anti join listing using (file_name) union all "
            "select old.hash, old.file_name, old.generation, 'changed' "
            f"from manifest old join listing new using (file_name) where {CHANGED}"
        )
        _add_retries(run, staging, base, brakes)
        _brake(staging, before, brakes)
        return _plan_next(run, staging, base, "refresh", images_per_shard)


def _as_planned(staging: Staging, source: Source) -> None:
    """Cast the kept columns of `listing` to their types in the manifest.

    Raises UserError for a value that can't be cast.
    """
    before, now = staging.types("manifest"), staging.types("listing")
    casts = [
        f"cast({quoted(name)} as {before[name]}) as {quoted(name)}"
        for name, kind in now.items()
        if before.get(name, kind) != kind
    ]
    if not casts:
        return
    staging.connection.execute("alter view listing rename to listed")
    try:
        staging.connection.execute(
            f"create table listing as select * replace ({', '.join(casts)}) from listed"
        )
    except duckdb.Error as error:
        raise UserError(
            f"a kept column of {source.url} holds other values than when the run was made: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _add_retries(run: Run, staging: Staging, base: Snapshot, brakes: Brakes) -> None:
    """Add failed images to `computed` and `leaving`, unless they are changed or removed."""
    if not brakes.retry_codes:
        return
    failed = _failed(run, base, brakes.retry_codes, below=brakes.retries + 1)
    if not staging.stage("failed", failed):
        return
    staging.connection.execute(
        "create table again as select manifest.* "
        "replace (cast(failed.attempts as integer) as attempts) "
        "from manifest join failed using (file_name) anti join leaving using (file_name)"
    )
    staging.connection.execute(
        "insert into computed by name select * exclude (generation) from again"
    )
    staging.connection.execute(
        "insert into leaving select hash, file_name, generation, 'retry' from again"
    )


def _brake(staging: Staging, before: int, brakes: Brakes) -> None:
    if brakes.max_recompute is None or not before:
        return
    images = staging.count("select count(*) from computed")
    if not exceeds(images, before, brakes.max_recompute):
        return
    reasons = dict(
        staging.connection.execute(
            "select reason, count(*) from leaving where reason != 'removed' group by reason"
        ).fetchall()
    )
    new = {"new": images - sum(reasons.values())}
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in {**new, **reasons}.items() if count)
    raise UserError(
        f"{images:,} images to compute ({kinds}) beside {before:,} that are there, more than "
        f"--max-recompute {brakes.max_recompute:g} allows: if that is meant, add --allow-full"
    )


def _plan_next(
    run: Run, staging: Staging, base: Snapshot, reason: str, images_per_shard: int | None
) -> Generation | None:
    """Write and commit the generation after `base` from the tables `computed` and `leaving`."""
    images = staging.count("select count(*) from computed")
    dropped = staging.count("select count(*) from leaving")
    if not images and not dropped:
        return None
    number, plan = base.number + 1, new_plan()
    total_bytes = staging.count("select cast(coalesce(sum(size), 0) as bigint) from computed")
    rows: tuple[int, ...] = ()
    if images:
        rows = write_parts(
            run.storage,
            number,
            shard_count(images, total_bytes, images_per_shard),
            staging.in_order("computed"),
            plan,
        )
    shards = {number: generation.shards for number, generation in run.generations().items()}
    losses: Counter[tuple[int, int]] = Counter()
    reasons: Counter[str] = Counter()

    def departures() -> Iterator[pa.Table]:
        for table in staging.tables("from leaving order by generation, hash"):
            departing = _departing(table, shards)
            shards_of_rows = zip(
                departing["origin"].to_pylist(), departing["shard"].to_pylist(), strict=True
            )
            losses.update(shards_of_rows)
            reasons.update(departing["reason"].to_pylist())
            yield departing

    if dropped:
        write_dropped(run.storage, dropped_path(number, plan), departures())
    rewrites, gone = rewrites_for(number, [(s.path, s.rows) for s in base.shards], losses)
    counts = dict(reasons)
    counts["new"] = images - sum(counts.get(kind, 0) for kind in ("retry", "changed"))
    generation = Generation(
        number, reason, rows, total_bytes, base.number, dropped, rewrites, gone, counts, plan
    )
    return _commit(run, generation)


def _commit(run: Run, generation: Generation) -> Generation:
    run.write_generation(generation)
    clear_other_plans(run.storage, generation)
    return generation


def _departing(table: pa.Table, shards: dict[int, int]) -> pa.Table:
    """Rows of `leaving` as `DROPPED_SCHEMA`: the shard follows from hash and generation.

    shards: number of shards by generation.
    """
    origins = table["generation"].to_pylist()
    hashes = table["hash"].to_pylist()
    owner = [shard_of(h, shards[origin]) for h, origin in zip(hashes, origins, strict=True)]
    return pa.table(
        {
            "hash": table["hash"],
            "file_name": table["file_name"],
            "origin": pa.array(origins, pa.int32()),
            "shard": pa.array(owner, pa.int32()),
            "reason": table["reason"],
        }
    ).cast(DROPPED_SCHEMA)


def _failed(
    run: Run, base: Snapshot, codes: Sequence[str], below: int | None = None
) -> Iterator[pa.Table]:
    """file_name, error_code, attempts of images that failed with one of `codes`.

    below: only images with fewer attempts.
    """
    for entry in base.shards:
        if entry.error:
            table = run.read_shard(entry.path, ["file_name", "error_code", "attempts"])
            chosen = np.isin(table["error_code"].to_numpy(), list(codes))
            if below is not None:
                chosen &= table["attempts"].to_numpy() < below
            if chosen.any():
                yield table.filter(pa.array(chosen))
