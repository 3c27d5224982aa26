"""Reports in a browser: they work from a disk, load nothing, and say what the run holds.

That of a whole job on made scenes, as the demo ends in, is opened by test_readme_commands.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from detr.categories import COCO_PANOPTIC, Categories
from pipeline.report.page import MAX_BYTES, write_report
from pipeline.run.snapshots import open_snapshot
from pipeline.train.synthetic import write_scenes
from tests.browser import opened
from tests.factories import damaged, evaluate_rows, made_scenes, make_run, shard_row
from tests.spoilt import EVIL, coco_run, evaluate


@pytest.fixture(scope="module")
def coco_report(
    coco_val100: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The report of the 128 COCO photos compared with another run, and the evaluation's result."""
    folder = tmp_path_factory.mktemp("coco")
    truth = coco_val100 / "panoptic_val2017.json"
    evaluate(coco_run(folder / "before", coco_val100, 0), truth)
    result = evaluate(coco_run(folder / "now", coco_val100, 1), truth)
    now, before = (open_snapshot(str(folder / name)) for name in ("now", "before"))
    written = write_report(now, other=before, cards=2, output=str(folder / "report.html"))
    assert written.bytes <= MAX_BYTES
    return folder / "report.html", result


def test_the_report_of_128_coco_photos(coco_report: tuple[Path, dict[str, Any]]) -> None:
    path, result = coco_report
    with opened(path) as seen:
        page = seen.page
        # Nothing is loaded, nothing is wrong, and a name that is a script is text.
        assert seen.requests == [path.as_uri()]
        page.get_by_text("not_found: examples").click()
        assert page.get_by_text(EVIL, exact=True).is_visible()
        assert page.get_by_text("<b>no such</b> object").is_visible()
        # Figures are those of the evaluation.
        all_pq = result["All"]["pq"]
        assert f"{100 * all_pq:.1f}" in page.get_by_role("row", name="All").first.inner_text()
        # A click sorts, another turns it round.
        table = page.locator("#class-table")
        table.get_by_role("button", name="PQ", exact=True).click()
        first = _shown(page, 2)
        assert first == sorted(first, reverse=True)
        table.get_by_role("button", name="PQ", exact=True).click()
        assert _shown(page, 2) == sorted(first)
        assert table.locator("th[aria-sort=ascending]").inner_text().startswith("PQ")
        # A filter leaves what fits and says how many.
        tools = page.locator(".tools[data-table=class-table]")
        tools.get_by_label("Name contains").fill("MERGED wall")
        names = table.locator("tbody tr:visible th").all_inner_texts()
        assert names == ["wall-other-merged"]
        assert tools.get_by_role("status").inner_text() == f"1 of {len(COCO_PANOPTIC)} classes"
        tools.get_by_label("Name contains").fill("")
        tools.get_by_label("Kind").select_option("stuff")
        kinds = set(table.locator("tbody tr:visible td:nth-child(2)").all_inner_texts())
        assert kinds == {"stuff"}
        # Every picture says what it shows; one is enlarged and put away by the keyboard alone.
        alts = page.locator("figure img").evaluate_all("all => all.map(e => e.alt)")
        assert len(alts) >= 2 * (5 + 2 * 4 + 2)  # what is chosen at random may have no truth
        assert all(alts)
        button = page.locator("#worst ~ .card figure button").nth(1)
        button.focus()
        page.keyboard.press("Enter")
        assert page.locator("dialog img").is_visible()
        assert page.locator("dialog img").get_attribute("alt") == alts[2 * 5 + 1]
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()
        assert page.evaluate("document.activeElement.matches('figure button')")
        # The comparison is there, and names both.
        assert page.get_by_role("heading", name="Changed most").is_visible()
        assert seen.low_contrasts() == []
        assert (seen.overflow(400), seen.overflow(1400)) == (0, 0)
        assert seen.errors == []


def _shown(page: Page, column: int) -> list[float]:
    cells = page.locator(f"#class-table tbody tr:visible td:nth-child({column + 1})")
    values = cells.evaluate_all("all => all.map(e => e.dataset.value)")
    return [float(value) for value in values if value]


@pytest.fixture(scope="module")
def made_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of made scenes, compared; their predictions are spoilt in different places."""
    folder = tmp_path_factory.mktemp("made")
    truth = made_scenes(6)
    write_scenes(folder / "scenes", len(truth), 7)
    for place, name in enumerate(("before", "now")):
        rows = {
            photo: shard_row(
                photo,
                damaged(true, 50 * place + number),
                uri=str(folder / "scenes" / "images" / photo),
            )
            for number, (photo, true) in enumerate(truth.items())
        }
        evaluate_rows(make_run(folder / name, rows), truth)
    now, before = (open_snapshot(str(folder / name)) for name in ("now", "before"))
    return Path(write_report(now, other=before, cards=2, output=str(folder / "report.html")).url)


# Of each picture's names that show: their boxes beside the picture's, and the size of the letters.
NAMES = """() => [...document.querySelectorAll("figure svg.labels")].map((svg) => {
  const frame = svg.getBoundingClientRect(), x = frame.left, y = frame.top;
  const shown = [...svg.querySelectorAll("text")].filter(
    (text) => text.getAttribute("visibility") !== "hidden");
  const boxes = shown.map((text) => text.getBoundingClientRect());
  return { width: frame.width, font: getComputedStyle(shown[0] ?? svg).fontSize,
    boxes: boxes.map((b) => [b.left - x, b.top - y, b.right - x, b.bottom - y]) };
})"""


def test_names_over_pictures_are_legible_and_apart_at_any_width(made_report: Path) -> None:
    with opened(made_report) as seen:
        page = seen.page
        for width in (400, 1400):
            assert seen.overflow(width) == 0
            page.wait_for_timeout(200)  # what is observed is told after a frame
            pictures = page.evaluate(NAMES)
            assert len(pictures) >= 10
            assert sum(len(picture["boxes"]) for picture in pictures) > 2 * len(pictures)
            for picture in pictures:
                assert picture["font"] == "12px"
                boxes = picture["boxes"]
                for number, (left, top, right, bottom) in enumerate(boxes):
                    assert left >= 0
                    assert top >= -1
                    assert right <= picture["width"] + 1
                    for other in boxes[:number]:
                        apart = left >= other[2] or other[0] >= right
                        assert apart or top >= other[3] or other[1] >= bottom
            tables = page.locator(".wide.more").count()
            assert (tables > 0) == (width == 400)
        button = page.locator("#worst ~ .card figure button").nth(1)
        names = button.locator("text").count()
        button.click()
        assert page.locator("dialog svg.labels text").count() == names > 0
        assert seen.errors == []


def test_intervals_of_a_comparison_end_within_their_axis(made_report: Path) -> None:
    with opened(made_report) as seen:
        ends = seen.page.locator("#change-table svg.bar line").evaluate_all(
            "all => all.flatMap((e) => [e, e]).map((e, i) => "
            "parseFloat(e.getAttribute(i % 2 ? 'x2' : 'x1')))"
        )
        assert len(ends) > 20
        assert min(ends) >= 0
        assert max(ends) <= 100
        assert min(min(ends), 100 - max(ends)) < 2  # the longest nearly reaches the edge
        assert seen.page.get_by_text("Difference, before to now").count() == 2


def test_labels_of_users_stay_text(tmp_path: Path) -> None:
    """Without truth, statistics or photos; every text that a user gives is markup."""
    evil = '"><img src=x onerror=alert(1)>'
    categories = Categories.from_json([{"id": 1, "name": evil}, {"id": 2, "name": "</script>"}])
    scene_map, _ = made_scenes(1)["000000.jpg"]
    segments = [
        {"id": int(scene_map.max()), "category_id": 1},
        {"id": int(scene_map[scene_map > 0].min()), "category_id": 2},
    ]
    rows = {f"{evil}.jpg": shard_row(f"{evil}.jpg", (scene_map, segments))}
    rows["'.jpg"] = shard_row("'.jpg", "empty")
    run = make_run(tmp_path / evil / "run", rows, categories=categories)
    path = Path(write_report(open_snapshot(run.storage.url)).url)
    with opened(path) as seen:
        page = seen.page
        assert page.get_by_role("heading", level=1).inner_text() == run.storage.url
        assert page.locator("#class-table").get_by_text(evil, exact=True).is_visible()
        assert page.locator("img[src=x]").count() == 0
        assert page.get_by_text("no photo:").is_visible()
        assert (seen.errors, len(seen.requests)) == ([], 1)


def test_an_empty_snapshot_has_a_report(tmp_path: Path) -> None:
    """Every image failed: no classes, no pictures, the errors all the same."""
    rows = {name: shard_row(name, "empty") for name in ("a.jpg", "b.jpg")}
    run = make_run(tmp_path / "run", rows)
    page = Path(write_report(open_snapshot(run.storage.url)).url).read_text()
    assert "2 images failed" in page
    assert "a.jpg" in page
