"""Label sets: what is shipped, what a user's JSON may hold, how the head's classes map to it."""

from __future__ import annotations

import pytest

from detr.categories import COCO_PANOPTIC, Categories
from detr.config import ModelError


def test_coco_panoptic_is_shipped_whole() -> None:
    assert len(COCO_PANOPTIC) == 133
    assert sum(category.isthing for category in COCO_PANOPTIC) == 80
    person, rug = COCO_PANOPTIC.by_id(1), COCO_PANOPTIC.by_id(200)
    assert (person.name, person.isthing, person.color) == ("person", True, (220, 20, 60))
    assert (rug.name, rug.isthing) == ("rug-merged", False)
    # The published head's rule for COCO: a thing is an id up to 90.
    assert all(category.isthing == (category.id <= 90) for category in COCO_PANOPTIC)


def test_json_round_trip() -> None:
    assert Categories.from_json(COCO_PANOPTIC.to_json()) == COCO_PANOPTIC


def test_defaults_are_a_thing_with_a_colour_of_its_own() -> None:
    made = Categories.from_json([{"id": i, "name": f"part {i}"} for i in range(1, 30)])
    assert all(category.isthing for category in made)
    assert len({category.color for category in made}) == 29


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "empty"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "id 1 occurs twice"),
        ([{"name": "a"}], r"categories\[0\].id"),
        ([{"id": 1}], r"categories\[0\].name"),
        ([{"id": 1, "name": "a", "isthing": "yes"}], "isthing"),
        ([{"id": 1, "name": "a", "color": [300, 0, 0]}], "color"),
    ],
)
def test_a_bad_label_set_is_refused_by_name(entries: list[dict[str, object]], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Categories.from_json(entries)


def test_the_published_head_is_indexed_by_category_id() -> None:
    class_ids = COCO_PANOPTIC.class_ids(250)
    assert len(class_ids) == 250
    assert class_ids[1] == 1
    assert class_ids[12] is None  # "street sign" was never annotated
    assert [i for i in class_ids if i is not None] == list(COCO_PANOPTIC.ids)


def test_own_heads_are_indexed_by_position() -> None:
    made = Categories.from_json([{"id": 7, "name": "a"}, {"id": 3, "name": "b"}])
    assert made.class_ids(2) == (7, 3)
    with pytest.raises(ModelError, match="2 categories"):
        made.class_ids(5)
