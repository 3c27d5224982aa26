"""Label sets: what a class index of the model means.

A `Categories` is the `categories` list of a COCO JSON, checked once and frozen: id, name, thing or
stuff, colour. COCO panoptic's 133 are shipped; a user's set comes from the user's JSON and is kept
in the project's weight files. The head of the published models is indexed by COCO category id (250
classes, 133 of them categories), the head of a user's model by position in the list. `class_ids`
alone decides between the two.
"""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, overload

from detr.config import ModelError


@dataclass(frozen=True)
class Category:
    """One entry of a label set. `isthing`: countable objects; otherwise stuff.

    `color` is for drawing only and no part of equality: COCO's own truth files leave colours out.
    """

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int] = field(compare=False)  # RGB, 0..255


class Categories(Sequence[Category]):
    """An immutable label set in its file's order, ids unique."""

    def __init__(self, categories: Iterable[Category]) -> None:
        self._categories = tuple(categories)
        self._by_id = {category.id: category for category in self._categories}
        if len(self._by_id) != len(self._categories):
            ids = [category.id for category in self._categories]
            twice = next(i for i in ids if ids.count(i) > 1)
            raise ModelError(f"category id {twice} occurs twice in the label set: ids must differ")

    @classmethod
    def from_json(cls, categories: Sequence[Mapping[str, Any]]) -> Categories:
        """A label set from the `categories` list of a COCO JSON.

        A category without `isthing` (as in instance files) is a thing; a category without a valid
        `color` gets a colour computed from its id. Raises ModelError naming the entry at fault.
        """
        if not isinstance(categories, Sequence) or isinstance(categories, (str, bytes)):
            raise ModelError(f"`categories` must be a list, not {str(categories)[:80]!r}")
        if not categories:
            raise ModelError("the label set is empty: `categories` must list at least one category")
        return cls(_category(index, entry) for index, entry in enumerate(categories))

    def to_json(self) -> list[dict[str, Any]]:
        """The `categories` list of a COCO panoptic JSON; `from_json` gives an equal set back."""
        return [
            {"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": list(c.color)}
            for c in self._categories
        ]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._by_id)

    def by_id(self, category_id: int) -> Category:
        """Raises KeyError for an id outside of the set."""
        return self._by_id[category_id]

    def class_ids(self, num_classes: int) -> tuple[int | None, ...]:
        """Category id of each class index of a head of `num_classes` (no-object not counted).

        A head exactly as long as the set is indexed by position. A longer one that has room for
        every id is indexed by category id, as the published models are (250 classes, 133 of them
        categories); the indices between are None. Raises ModelError if neither fits.
        """
        if num_classes == len(self):
            return self.ids
        if num_classes > max(self.ids) and min(self.ids) >= 0:
            return tuple(i if i in self._by_id else None for i in range(num_classes))
        raise ModelError(
            f"the model has {num_classes} classes, the label set {len(self)} categories with ids "
            f"up to {max(self.ids)}: give the label set that the model was trained on"
        )

    @overload
    def __getitem__(self, index: int) -> Category: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Category]: ...
    def __getitem__(self, index: int | slice) -> Category | Sequence[Category]:
        return self._categories[index]

    def __len__(self) -> int:
        return len(self._categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self._categories)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Categories) and self._categories == other._categories

    def __hash__(self) -> int:
        return hash(self._categories)

    def __repr__(self) -> str:
        things = sum(category.isthing for category in self._categories)
        return f"Categories({things} things, {len(self) - things} stuff)"


def as_int(value: Any) -> int | None:
    """A value of a JSON as int if it is a whole number (7 or 7.0), else None.

    None also for a boolean, a string, and a float of 2**53 or more, which may have been rounded.
    7.0 is taken because pandas writes ids as floats, and because 7.0 and 7 are one key of a Python
    dict, hence one id for panopticapi.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return None


def as_flag(value: Any) -> bool | None:
    """A flag of a JSON as bool: 0, 1, true, false and "0"; any other value gives None.

    panopticapi tests `== 1`. The string "1" fails that test, though its writer means true: None.
    """
    if isinstance(value, str):
        return False if value == "0" else None
    return value == 1 if value in (0, 1) else None


def is_text(value: str) -> bool:
    """Whether `value` can be encoded: JSON's escapes can hold half of a surrogate pair."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


_ISTHING = re.compile(r"is[_ -]?thing", re.IGNORECASE)


def _category(index: int, entry: Mapping[str, Any]) -> Category:
    if not isinstance(entry, Mapping):
        raise ModelError(f"categories[{index}] must be an object with id and name, not {entry!r}")
    stated, name = entry.get("id"), entry.get("name")
    category_id = as_int(stated)
    if category_id is None or not 0 <= category_id < 2**31:
        raise ModelError(
            f"categories[{index}].id must be a whole number in 0..2147483647, not {stated!r}"
        )
    if not isinstance(name, str) or not name.strip() or not is_text(name):
        raise ModelError(f"categories[{index}].name must be a name, not {name!r}")
    spelt = next((key for key in entry if _ISTHING.fullmatch(str(key)) and key != "isthing"), None)
    if spelt is not None and "isthing" not in entry:
        raise ModelError(f"categories[{index}] has {spelt!r}: the key is called isthing")
    isthing = as_flag(entry.get("isthing", 1))  # instance files have none
    if isthing is None:
        raise ModelError(
            f"categories[{index}].isthing must be the number 0 or 1, not {entry['isthing']!r}"
        )
    return Category(
        category_id,
        name,
        isthing,
        _stated_color(entry.get("color")) or _color(category_id),
    )


def _stated_color(value: Any) -> tuple[int, int, int] | None:
    """RGB of a list of three or four numbers, or of "#rrggbb"; None of anything else.

    An invalid colour is no error, since colours are for drawing only.
    """
    if isinstance(value, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", value):
        digits = value.removeprefix("#")
        red, green, blue = (int(digits[k : k + 2], 16) for k in (0, 2, 4))
        return red, green, blue
    if isinstance(value, (list, tuple)) and len(value) in (3, 4):
        numbers = [as_int(channel) for channel in value[:3]]
        if all(number is not None and 0 <= number <= 255 for number in numbers):
            red, green, blue = (number or 0 for number in numbers)
            return red, green, blue
    return None


def _color(category_id: int) -> tuple[int, int, int]:
    """RGB of an id: hues in steps of the golden ratio, so that neighbouring ids differ."""
    hue = category_id * 0.6180339887498949 % 1.0
    lightness = (0.45, 0.6, 0.35)[category_id % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def _coco_panoptic() -> Categories:
    text = resources.files("detr").joinpath("coco_panoptic.json").read_text("utf-8")
    return Categories.from_json(json.loads(text))


COCO_PANOPTIC = _coco_panoptic()
"""The 133 categories of COCO panoptic (80 things, 53 stuff), as in its own categories file."""
