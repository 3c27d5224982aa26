"""The summary of a call of nightly, as JSON and as text for cron mail: counts, PQ, errors, cost.

Work is counted once: a summary stores up to which entry of `stats/` it has counted (`counted`), and
the next summary counts the entries after it, also if a call was stopped or rolled back in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline.amounts import counted, duration
from pipeline.nightly.release_gate import Judged
from pipeline.run.publish import failures
from pipeline.run.run import Run
from pipeline.run.snapshots import RunSnapshot
from pipeline.run.stats import read_stats
from pipeline.sharding import Generation

# Run folder name -> {"generation": newest counted one, "entries": counted entries of its stats}.
Counted = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class NightWork:
    """The work since the last summary."""

    why: dict[str, int]  # images by reason: new, changed, retry, removed, or other weights
    computed: int
    seconds: float
    gpu_hours: float
    counted: Counted

    @property
    def images_per_second(self) -> float:
        return self.computed / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class NightSummary:
    """The summary of one call of `panoptic nightly`."""

    out: str
    run: str  # name of the run folder
    snapshot: int  # the one that was judged, or the live one if nothing changed
    published: bool  # readers see the snapshot, or will after the next write
    outcome: str  # "nothing to do", "published" or "stopped"
    reasons: tuple[str, ...]
    images: int
    ok: int
    errors: dict[str, int]
    why: dict[str, int]
    computed: int
    images_per_second: float
    gpu_hours: float
    cost: float | None
    pq: float | None
    pq_interval: list[float] | None
    pq_change: float | None
    pq_change_interval: tuple[float, float] | None
    scored: int
    seconds: float
    started: str
    counted: Counted = field(default_factory=dict)

    def text(self) -> str:
        """The summary as a few lines of text."""
        lines = [f"{self.outcome}: {self.run}, snapshot {self.snapshot} of {self.out}"]
        lines += [f"  {reason}" for reason in self.reasons]
        failed = sum(self.errors.values())
        kinds = ", ".join(f"{code} {count:,}" for code, count in self.errors.items())
        lines.append(
            f"{counted(self.images, 'image')}: {self.ok:,} ok, {counted(failed, 'error')}"
            + f" ({kinds})" * bool(kinds)
        )
        why = ", ".join(f"{count:,} {kind}" for kind, count in self.why.items() if count)
        rate = f" at {self.images_per_second:.3g} images/s" if self.computed else ""
        lines.append(f"computed {self.computed:,}{rate}" + f" ({why})" * bool(why))
        if self.pq is not None:
            low, high = self.pq_interval or (self.pq, self.pq)
            lines.append(
                f"PQ {100 * self.pq:.2f} ({100 * low:.2f} .. {100 * high:.2f}) on {self.scored:,} "
                f"images{self._change()}"
            )
        if self.cost is not None:
            lines.append(f"cost {self.cost:.2f} ({self.gpu_hours:.3g} GPU-hours)")
        lines.append(f"took {duration(self.seconds)}, started {self.started}")
        return "\n".join(lines) + "\n"

    def _change(self) -> str:
        if self.pq_change is None:
            return ""
        low, high = self.pq_change_interval or (self.pq_change, self.pq_change)
        return (
            f", {100 * self.pq_change:+.2f} ({100 * low:+.2f} .. {100 * high:+.2f}) against the "
            "baseline"
        )


def summarize(
    candidate: RunSnapshot,
    judged: Judged,
    outcome: str,
    *,
    out: str,
    live: RunSnapshot | None,
    price: float | None,
    seconds: float,
    started: datetime,
    counted: Counted | None = None,
) -> NightSummary:
    """The summary of a call that ends with `candidate`.

    price: per GPU-hour. seconds: of the call. counted: from the last summary; None without one.
    """
    snapshot = candidate.snapshot
    done = work_since(candidate.run, live, counted)
    result = judged.evaluation or {}
    overall = result.get("All", {})
    change = judged.comparison.groups["All"]["pq"] if judged.comparison else None
    return NightSummary(
        out=out,
        run=candidate.run.storage.url.rpartition("/")[2],
        snapshot=candidate.number,
        published=not judged.reasons,
        outcome=outcome,
        reasons=judged.reasons,
        images=snapshot.rows,
        ok=snapshot.ok,
        errors=errors_by_code(candidate),
        why=done.why,
        computed=done.computed,
        images_per_second=round(done.images_per_second, 3),
        gpu_hours=round(done.gpu_hours, 6),
        cost=round(done.gpu_hours * price, 4) if price is not None else None,
        pq=overall.get("pq"),
        pq_interval=overall.get("pq_interval"),
        pq_change=change.difference if change else None,
        pq_change_interval=change.interval if change else None,
        scored=result.get("images", {}).get("scored", 0),
        seconds=round(seconds, 3),
        started=started.isoformat(timespec="seconds"),
        counted=done.counted,
    )


def work_since(run: Run, live: RunSnapshot | None, counted: Counted | None = None) -> NightWork:
    """The work in a run after `counted` of the last summary.

    A call writes its stats under the newest generation, so older generations get no new entries.
    counted: None without a summary; then the generations up to the live snapshot and the withdrawn
    ones do not count again.
    """
    same = live is not None and live.run.storage.url == run.storage.url
    name = run.storage.url.rpartition("/")[2]
    generations = run.generations()
    if counted is not None:
        last = counted.get(name, {"generation": 0, "entries": 0})
    else:
        withdrawn = (run.pointer() or {}).get("withdrawn", ())
        newest = max([live.number if same and live is not None else 0, *withdrawn])
        last = {"generation": newest, "entries": len(read_stats(run, newest))}
    stats = {n: read_stats(run, n) for n in generations if n >= last["generation"]}
    entries = [
        entry
        for number, made in stats.items()
        for entry in made[last["entries"] if number == last["generation"] else 0 :]
    ]
    fresh = {n: generation for n, generation in generations.items() if n > last["generation"]}
    newest = max(generations, default=0)
    now = {"generation": newest, "entries": len(stats.get(newest, ()))}
    return NightWork(
        why=_reasons(fresh, other_weights=live is not None and not same),
        computed=sum(entry["done"] for entry in entries),
        seconds=sum(entry["seconds"] for entry in entries),
        gpu_hours=sum(_gpu_hours(entry) for entry in entries),
        counted={**(counted or {}), name: now},
    )


def _reasons(generations: dict[int, Generation], *, other_weights: bool) -> dict[str, int]:
    why: Counter[str] = Counter()
    for generation in generations.values():
        why.update(generation.counts)
    if other_weights:  # the images are new to the run but not to the user
        return {"other weights": why.total() - why["removed"]}
    return {kind: why[kind] for kind in ("new", "changed", "retry", "removed") if why[kind]}


def _gpu_hours(entry: dict[str, Any]) -> float:
    """GPU-hours of a call (GPUs of the cluster while it computed); machine-hours without a GPU."""
    seconds = entry["seconds"]
    if entry.get("placement", {}).get("actor_gpus", 0):
        seconds = entry.get("gpu_seconds", seconds)  # older entries lack it: at least one GPU
    return seconds / 3600


def errors_by_code(candidate: RunSnapshot) -> dict[str, int]:
    """Failed images by error code, the most frequent first."""
    by_code = failures(candidate.run, candidate.snapshot)
    return dict(Counter({code: failed.count for code, failed in by_code.items()}).most_common())
