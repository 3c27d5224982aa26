"""The label set of a Hugging Face folder: `id2label` of its config, and which of them are things.

`id2label` names class indices. transformers fills it with LABEL_0, LABEL_1, ... where nobody gave
names, and the published panoptic models' has COCO's names at COCO's ids. So a set that says COCO's
names is COCO's; any other is the folder's own, however many classes there are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from detr.categories import COCO_PANOPTIC, Categories, as_int

FILES: Final = ("config.json", "preprocessor_config.json")
_NO_NAME: Final = re.compile(r"LABEL_\d+|N/?A|-|", re.IGNORECASE)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file. Raises ValueError."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    return content if isinstance(content, dict) else {}


def own_labels(folder: Path, num_classes: int) -> Categories | None:
    """The label set that a folder's files name; None where they name none, or COCO's."""
    contents = [_object(folder / name) for name in FILES]
    names = _names(contents[0].get("id2label"), num_classes)
    said = {index: name for index, name in names.items() if not _NO_NAME.fullmatch(name)}
    if not names or (num_classes == COCO_CLASSES and _is_coco(said)):
        return None
    things = _things(contents, set(names))
    coco = {category.name: category.isthing for category in COCO_PANOPTIC}
    chosen = said if said and num_classes > len(said) else names
    return Categories.from_json(
        [
            {
                "id": index,
                "name": name,
                "isthing": int(index in things if things is not None else coco.get(name, True)),
            }
            for index, name in sorted(chosen.items())
        ]
    )


COCO_CLASSES: Final = 250


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError:  # config.json was read before; the other says nothing then
        return {}


def _names(id2label: Any, num_classes: int) -> dict[int, str]:
    if not isinstance(id2label, Mapping):
        return {}
    keyed = {
        (int(key) if isinstance(key, str) and key.isdecimal() else as_int(key)): name
        for key, name in id2label.items()
    }
    return {
        index: name
        for index, name in keyed.items()
        if index is not None and index < num_classes and isinstance(name, str)
    }


def _is_coco(said: Mapping[int, str]) -> bool:
    """Whether no name contradicts COCO's at its id, and none stands where COCO has none."""
    coco = {category.id: _plain(category.name) for category in COCO_PANOPTIC}
    return all(coco.get(index) == _plain(name) for index, name in said.items())


def _plain(name: str) -> str:
    """COCO's names as others write them: `tree-merged` is `tree`."""
    return re.sub(r"-(merged|other|stuff)|[^a-z]", "", name.lower())


def _things(contents: list[dict[str, Any]], indices: set[int]) -> set[int] | None:
    """The class indices that are things, where a file says so."""
    for content in contents:
        metadata = content.get("metadata")
        for each in (content, metadata if isinstance(metadata, Mapping) else {}):
            if isinstance(each.get("thing_ids"), list):
                return {number for v in each["thing_ids"] if (number := as_int(v)) is not None}
            if isinstance(each.get("label_ids_to_fuse"), list):  # stuff, of which one is one
                return indices - {as_int(value) for value in each["label_ids_to_fuse"]}
    return None
