"""`panoptic status` and `panoptic errors`: progress and failed images of a run folder (no Ray)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.table import Table

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, OutFolder, OutOptions, parse_options
from pipeline.amounts import counted, duration
from pipeline.run.lease import read_holder
from pipeline.run.publish import footers
from pipeline.run.run import Run, open_run
from pipeline.run.stats import read_stats
from pipeline.schema import ERROR_CODES, TRANSIENT_CODES
from pipeline.sharding import Generation, missing


def status(out: OutFolder, out_option: OutOptions = None, json_output: JsonOutput = False) -> None:
    """Show the progress of a run and what is published.

    panoptic status s3://bucket/out
    """
    run = open_run(out, parse_options(out_option, "--out-option"))
    facts = print_generation(run)
    if json_output:
        print_json(facts)
        return
    console = plain_console()
    console.print(f"{facts['out']}  (from {facts['source']})")
    console.print(
        f"generation {facts['generation']} ({facts['reason']}): {facts['shards_done']:,} of "
        f"{counted(facts['shards'], 'shard')}, {counted(facts['ok'], 'image')} ok, "
        f"{counted(facts['error'], 'error')}, "
        f"{facts['images']:,} in all"
    )
    if facts["computed"]:
        console.print(
            f"computed {counted(facts['computed'], 'image')} in {duration(facts['seconds'])}, "
            f"{facts['images_per_second']:.3g} images/s"
        )
    published = facts["snapshot"]
    console.print(f"published: snapshot {published}" if published else "nothing published yet")
    if facts["writer"]:
        console.print("lease held by process {pid} on {host}".format(**facts["writer"]))


def print_generation(run: Run) -> dict[str, Any]:
    """The object that `status --json` prints, with the newest generation's counts."""
    generations = run.generations()
    stats = [entry for number in generations for entry in read_stats(run, number)]
    seconds = sum(entry["seconds"] for entry in stats)
    computed = sum(entry["done"] for entry in stats)
    newest = generations[max(generations)] if generations else None
    holder = read_holder(run.storage)
    return {
        "out": run.storage.url,
        "source": run.info.source["source"],
        "fingerprint": run.info.fingerprint,
        "generation": newest.number if newest else 0,
        "reason": newest.reason if newest else "not listed yet",
        **(_counts(run, newest) if newest else dict.fromkeys(_COUNTS, 0)),
        "computed": computed,
        "seconds": round(seconds, 3),
        "images_per_second": round(computed / seconds, 3) if seconds else 0.0,
        "snapshot": run.latest(),
        "writer": holder and {name: holder[name] for name in ("host", "pid", "submission")},
    }


_COUNTS = ("images", "ok", "error", "shards", "shards_done")


def _counts(run: Run, generation: Generation) -> dict[str, int]:
    if generation.number in run.snapshot_numbers():
        snapshot = run.snapshot(generation.number)
        shards = len(snapshot.shards)
        values = (snapshot.rows, snapshot.ok, snapshot.error, shards, shards)
        return dict(zip(_COUNTS, values, strict=True))
    sizes = run.present()
    missing_paths = {unit.path for unit in missing(generation, sizes)}
    done_paths = [unit.path for unit in generation.units() if unit.path not in missing_paths]
    done = footers(run, done_paths, sizes)
    ok, error = sum(f.ok for f in done), sum(f.error for f in done)
    shards = len(done_paths) + len(missing_paths)
    values = (generation.images, ok, error, shards, len(done_paths))
    return dict(zip(_COUNTS, values, strict=True))


def errors(
    out: OutFolder,
    code: Annotated[
        list[str] | None, typer.Option(help="Only errors of this code; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="List at most so many images; 0 is all.")] = 20,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """List the images that failed, by code.

    panoptic errors runs/photos --code truncated --limit 0

    `panoptic retry OUT` computes images with transient errors again.
    """
    check_codes(code)
    run = open_run(out, parse_options(out_option, "--out-option"))
    counts: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for row in error_rows(run):
        if not code or row["error_code"] in code:
            counts[row["error_code"]] += 1
            if not limit or len(rows) < limit:
                rows.append(row)
    if json_output:
        print_json({"errors": dict(counts), "images": rows})
        return
    console = plain_console()
    if not counts:
        console.print("no errors")
        return
    table = Table("code", "images", "kind", box=None)
    for name, count in counts.most_common():
        table.add_row(name, f"{count:,}", "transient" if name in TRANSIENT_CODES else "permanent")
    console.print(table)
    for row in rows:
        text = f"{row['error_code']}: {row['file_name']}: {row['error_message']}"
        console.print(text)
    if sum(counts.values()) > len(rows):
        console.print(f"... and {sum(counts.values()) - len(rows):,} more (--limit 0 lists all)")


def error_rows(run: Run) -> Iterator[dict[str, Any]]:
    """A dict of each failed image: `file_name`, `uri`, `error_code`, `error_message`.

    The images are those of the newest snapshot; without a snapshot, those of all written shards.
    """
    for path in failed_shards(run):
        table = run.read_shard(path, ["file_name", "uri", "error_code", "error_message"])
        yield from (row for row in table.to_pylist() if row["error_code"])


def failed_shards(run: Run) -> list[str]:
    """Shards with error rows: of the newest snapshot, or all shards if there is no snapshot."""
    numbers = run.snapshot_numbers()
    if numbers:
        return [entry.path for entry in run.snapshot(numbers[-1]).shards if entry.error]
    sizes = run.present()
    return [footer.path for footer in footers(run, sizes, sizes) if footer.error]


def check_codes(codes: list[str] | None) -> None:
    for code in codes or ():
        if code not in ERROR_CODES:
            raise typer.BadParameter(
                f"{code!r} is no error code; they are: {', '.join(sorted(ERROR_CODES))}",
                param_hint="--code",
            )
