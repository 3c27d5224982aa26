"""Label sets: what is shipped, what a user's JSON may hold, how the head's classes map to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr.categories import COCO_PANOPTIC, Categories, as_flag, as_int
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
        ([{"id": True, "name": "a"}], r"categories\[0\].id"),
        ([{"id": "1", "name": "a"}], r"categories\[0\].id"),
        ([{"id": 2**31, "name": "a"}], r"categories\[0\].id"),
        ([{"id": 1, "name": "a", "isthing": None}], "isthing"),
        ([{"id": 1, "name": "a", "isthing": "1"}], "isthing"),
        ([{"id": 1, "name": " "}], r"categories\[0\].name"),
        ([{"id": 1, "name": "a", "isThing": 0}], "the key is called isthing"),
        ([{"id": 1, "name": "a", "is_thing": False}], "the key is called isthing"),
        (["cat"], r"categories\[0\]"),
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


@pytest.mark.parametrize(
    ("color", "expected"),
    [
        ([1, 2, 3], (1, 2, 3)),
        ([1.0, 2.0, 3.0], (1, 2, 3)),
        ([1, 2, 3, 255], (1, 2, 3)),
        ("#0a0B0c", (10, 11, 12)),
        ("0a0b0c", (10, 11, 12)),
        *((odd, None) for odd in ("crimson", [300, 0, 0], [1, 2], [], 7, None, [None] * 3, {})),
    ],
)
def test_an_odd_colour_is_no_reason_to_refuse_a_label_set(
    color: object, expected: tuple[int, int, int] | None
) -> None:
    [category] = Categories.from_json([{"id": 1, "name": "a", "color": color}])
    [plain] = Categories.from_json([{"id": 1, "name": "a"}])
    assert category.color == (expected or plain.color)


JSON_VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
)


@given(JSON_VALUES)
def test_a_number_is_taken_as_the_reference_s_dicts_take_it(value: object) -> None:
    number = as_int(value)
    if number is None:
        assert not isinstance(value, int) or isinstance(value, bool)
        assert not isinstance(value, float) or not value.is_integer() or abs(value) >= 2**53
    else:
        assert number == value
        assert {value: "found"}[number] == "found"  # what panopticapi does with an id


@given(JSON_VALUES | st.sampled_from(["0", "1", "true", 0.0, 1.0]))
def test_a_flag_never_means_other_than_the_reference_s_test(value: object) -> None:
    flag = as_flag(value)
    assert flag is None or flag == (value == 1)
