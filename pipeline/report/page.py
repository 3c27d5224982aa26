"""The report of a run: one HTML file that needs no server, no network and no other files.

Style, script and pictures are embedded. A Content Security Policy with the hashes of the style and
the script blocks all requests and all other scripts, even if escaping fails. Names and labels are
users' text: jinja2 escapes them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.amounts import duration
from pipeline.evaluation.category_map import CategoryMap
from pipeline.evaluation.compare import Comparison, compare
from pipeline.layout import report_path
from pipeline.report.difference import CHANGES, KINDS
from pipeline.report.facts import Facts, gather
from pipeline.report.gallery import Budget, Card, Illustrator
from pipeline.run.run import Run
from pipeline.run.snapshots import RunSnapshot
from pipeline.storage.entry import as_user_error
from pipeline.storage.storage import open_file
from pipeline.version import code_version

MAX_BYTES: Final = 15_000_000
# Base64 makes 4 bytes of 3; the page without pictures (133 classes, errors, script) is below 1 MB.
PICTURE_BYTES: Final = (MAX_BYTES - 1_500_000) * 3 // 4
CARDS: Final = 8


@dataclass(frozen=True)
class Gallery:
    """Images under a title. id: the anchor. cut: the page had no bytes left for more images."""

    id: str
    title: str
    about: str
    cards: Sequence[Card]
    cut: bool


@dataclass(frozen=True)
class Written:
    """The URL and size of a report."""

    url: str
    bytes: int


def write_report(
    run_snapshot: RunSnapshot,
    *,
    evaluation: str | None = None,
    other: RunSnapshot | None = None,
    cards: int = CARDS,
    output: str | None = None,
    options: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Written:
    """Write the report of a snapshot to `output` (a URL), by default OUT/report/000N.html.

    evaluation: a name, by default the newest. other: an earlier snapshot to compare with. cards:
    images per gallery. options: storage options of the photos, added to those of the run. Raises
    UserError.
    """
    note("reading the run")
    facts = gather(run_snapshot, evaluation)
    comparison = None
    if other is not None:
        note(f"comparing with {other.url}")
        comparison = compare(other, run_snapshot, evaluation)
    page = _render(facts, comparison, _galleries(facts, comparison, other, cards, options, note))
    if output is None:
        storage, name = run_snapshot.run.storage, report_path(run_snapshot.number)
        output = storage.join(name)
    else:
        storage, name = open_file(output)
    try:
        storage.write(name, page)
    except Exception as error:
        raise as_user_error(error, f"can't write the report to {output}") from error
    return Written(output, len(page))


def _render(facts: Facts, comparison: Comparison | None, galleries: list[Gallery]) -> bytes:
    """The page as UTF-8."""
    template = environment().get_template("report.html.j2")
    page = template.render(
        facts=facts,
        run=facts.run,
        number=facts.run_snapshot.number,
        settings=settings(facts.run),
        stages=stage_seconds(facts.calls),
        stage_color=_STAGE_COLORS,
        galleries=galleries,
        kinds=KINDS,
        changes=CHANGES,
        max_bytes=MAX_BYTES,
        names={entry.category.id: entry.category.name for entry in facts.classes},
        comparison=comparison,
        changed={entry.file_name: entry for entry in comparison.changed} if comparison else {},
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        made_by=code_version(),
    )
    return page.encode()


def _galleries(
    facts: Facts,
    comparison: Comparison | None,
    other: RunSnapshot | None,
    cards: int,
    options: Mapping[str, str] | None,
    note: Callable[[str], None],
) -> list[Gallery]:
    quality = facts.quality
    artist = Illustrator.of(facts.run_snapshot, quality.result if quality else None, options)
    names = sorted(facts.names)
    random.Random(facts.run_snapshot.number).shuffle(names)
    wanted: list[tuple[str, str, str, Sequence[str], Sequence[Illustrator]]] = []
    if comparison is not None and other is not None:
        changed = [change.file_name for change in comparison.changed]
        mapping = CategoryMap.of_result(other.result(comparison.truth))
        before = replace(Illustrator.of(other, None, options), mapping=mapping)
        about = "those whose own PQ differs most between before and now"
        wanted.append(("changed", "Changed most", about, changed, [before]))
    if quality is not None:
        about = "lowest PQ of the image, all its classes together"
        wanted.append(("worst", "Worst", about, quality.worst, ()))
        where = f" in {quality.sampled}" if quality.sampled else ""
        about = f"highest PQ of the image{where}; of equals, those with most segments"
        wanted.append(("best", "Best", about, quality.best, ()))
    wanted.append(("random", "Random", "drawn by lot", names, ()))
    bytes_left, galleries = PICTURE_BYTES, []
    for position, (name, title, about, files, others) in enumerate(wanted):
        note(f"drawing: {title.lower()}")
        share = bytes_left // (len(wanted) - position)  # later galleries get the unused bytes
        budget = Budget(share)
        shown = artist.cards(files, cards, budget, others)
        bytes_left -= share - budget.left
        galleries.append(Gallery(name, title, about, shown, cut=budget.spent))
    return [gallery for gallery in galleries if gallery.cards or gallery.cut]


def settings(run: Run) -> list[tuple[str, str]]:
    """The fields of the fingerprint as (name, text), without weights_sha256."""
    return [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in run.info.fingerprint_fields.items()
        if name != "weights_sha256"
    ]


def stage_seconds(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    """The stages in `calls` in pipeline order, without `total`, which includes other stages."""
    names = {name for call in calls for name in call.get("stage_seconds", {})} - {"total"}
    return sorted(
        names, key=lambda name: (_STAGES.index(name) if name in _STAGES else len(_STAGES), name)
    )


_STAGES: Final = ("fetch", "decode", "model", "encode", "write")
_STAGE_COLORS: Final = ("#cc79a7", "#56b4e9", "#0072b2", "#009e73", "#e69f00", "#9aa3ab")


@cache
def environment() -> Environment:
    """The jinja2 environment of the pages; an undefined name is an error."""
    templates = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters.update(
        points=points, signed=signed, count=count, duration=duration, size=size
    )
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    templates.globals.update(style=Markup(style), script=Markup(script), policy=policy)
    return templates


def _asset(name: str) -> str:
    return resources.files("pipeline.report").joinpath("templates", name).read_text("utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def points(fraction: float | None, digits: int = 1) -> str:
    """A fraction (0 to 1) in percent, without the sign; an en dash for None."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def signed(fraction: float | None, digits: int = 2) -> str:
    """A difference of fractions in points (times 100), with + or U+2212; an en dash for None."""
    return "–" if fraction is None else f"{100 * fraction:+.{digits}f}".replace("-", "−")


def count(number: float) -> str:
    return f"{number:,.0f}"


def size(value: float) -> str:
    """Bytes as `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
