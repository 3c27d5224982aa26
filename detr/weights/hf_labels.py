"""The label set of a Hugging Face folder: the names in `id2label`, and which classes are things.

`id2label` names class indices. transformers writes LABEL_0, LABEL_1, ... for classes without a
name; the published panoptic models have COCO's names at COCO's ids. So names that agree with COCO's
mean COCO's label set; any other names are a label set of the folder's own.
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
    """The object in a JSON file; {} if the file is missing. Raises ValueError if it is not JSON."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    return content if isinstance(content, dict) else {}


def own_labels(folder: Path, num_classes: int) -> Categories | None:
    """The label set in a folder's files; None if there is none, or if it is COCO's."""
    contents = [_object(folder / name) for name in FILES]
    names = _names(contents[0].get("id2label"), num_classes)
    real_names = {index: name for index, name in names.items() if not _NO_NAME.fullmatch(name)}
    if not names or (num_classes == COCO_CLASSES and _is_coco(real_names)):
        return None
    things = _things(contents, set(names))
    coco = {category.name: category.isthing for category in COCO_PANOPTIC}
    chosen = real_names if real_names and num_classes > len(real_names) else names
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
    except ValueError:  # `checkpoint._locate` has read config.json; so this is a preprocessor's
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


def _is_coco(names: Mapping[int, str]) -> bool:
    """Whether every name is COCO's name for that id."""
    coco = {category.id: _plain(category.name) for category in COCO_PANOPTIC}
    return all(coco.get(index) == _plain(name) for index, name in names.items())


def _plain(name: str) -> str:
    """A name without COCO's suffixes, since not every file has them: `tree-merged` is `tree`."""
    return re.sub(r"-(merged|other|stuff)|[^a-z]", "", name.lower())


def _things(contents: list[dict[str, Any]], indices: set[int]) -> set[int] | None:
    """The class indices of things; None if no file tells things from stuff."""
    for content in contents:
        metadata = content.get("metadata")
        for fields in (content, metadata if isinstance(metadata, Mapping) else {}):
            if isinstance(fields.get("thing_ids"), list):
                return {number for v in fields["thing_ids"] if (number := as_int(v)) is not None}
            if isinstance(fields.get("label_ids_to_fuse"), list):  # the ids of stuff
                return indices - {as_int(value) for value in fields["label_ids_to_fuse"]}
    return None
