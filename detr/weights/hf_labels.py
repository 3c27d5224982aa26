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
from detr.config import ModelError

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
    names = _names(_stated_names(contents[0]), num_classes)
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


def _stated_names(config: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """(index, name) as `id2label` says, a table or a list; without it as `label2id` says."""
    stated, opposite = config.get("id2label"), config.get("label2id")
    if not stated and isinstance(opposite, Mapping):
        return [(index, name) for name, index in opposite.items()]
    if isinstance(stated, Mapping):
        return list(stated.items())
    if isinstance(stated, list):
        return list(enumerate(stated))
    return [(None, stated)] if stated else []


def _names(stated: list[tuple[Any, Any]], num_classes: int) -> dict[int, str]:
    """Raises ModelError for names that can't be read: the classes would be called by others."""
    names: dict[int, str] = {}
    for key, name in stated:
        index = _index(key)
        beyond = index is not None and index >= num_classes
        if index is None or not isinstance(name, str) or (beyond and not _NO_NAME.fullmatch(name)):
            raise ModelError(
                f"the weights' id2label names no class of {num_classes} by {key!r}: {name!r}: mend "
                "it, or give the classes with --categories"
            )
        if not beyond:
            names[index] = name
    return names


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
            if (things := _listed(fields, "thing_ids")) is not None:
                return things
            if (stuff := _listed(fields, "label_ids_to_fuse")) is not None:
                return indices - stuff
    return None


def _listed(fields: Mapping[str, Any], key: str) -> set[int] | None:
    """The class indices in a list; None without one. Raises ModelError for anything else."""
    listed = fields.get(key)
    if listed is None:
        return None
    numbers = [_index(value) for value in listed] if isinstance(listed, list) else [None]
    if None in numbers:
        raise ModelError(
            f"the weights' {key} must be a list of class indices, not {str(listed)[:80]}: mend it, "
            "or give the classes with --categories"
        )
    return {number for number in numbers if number is not None}


def _index(value: Any) -> int | None:
    """A class index, also as the text that JSON's keys are; None for anything else."""
    return int(value) if isinstance(value, str) and value.isdecimal() else as_int(value)
