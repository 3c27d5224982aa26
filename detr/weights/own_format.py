"""Our own weight files: safetensors whose metadata carry config, label set and threshold.

The metadata are one JSON in one entry: safetensors writes several entries in random order, and the
file's hash must not vary. The threshold is the file's recommendation, used where the user gives no
threshold. The recommendation is no part of the weights' identity (`Checkpoint.sha256`): weights
stay the same when a threshold is added, and the fingerprint has a field for the threshold in use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from detr.categories import Categories
from detr.config import DetrConfig, ModelError, check_threshold, is_threshold

FORMAT_VERSION: Final = 1
ENTRY: Final = "detr_panoptic"
LARGEST_HEADER: Final = 100_000_000  # safetensors' own limit, in bytes


@dataclass(frozen=True)
class OwnMetadata:
    """The metadata of one of our weight files."""

    config: DetrConfig
    categories: Categories
    threshold: float | None = None  # least class probability of a segment, recommended

    def to_metadata(self) -> dict[str, str]:
        """For safetensors' `save_file`. Raises ModelError unless the threshold is in [0, 1)."""
        values: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "categories": self.categories.to_json(),
        }
        if self.threshold is not None:
            check_threshold(self.threshold)
            values["threshold"] = self.threshold
        return {ENTRY: json.dumps(values)}


def read_label(name: str, metadata: Mapping[str, str]) -> OwnMetadata | None:
    """The metadata of one of our weight files; None for a file of another kind.

    `name` is for error messages. Raises ModelError for damaged metadata or a newer format.
    """
    if ENTRY not in metadata:
        return None
    try:
        values = json.loads(metadata[ENTRY])
        if values["version"] != FORMAT_VERSION:
            raise ModelError(
                f"{name} is of format {values['version']}, this version of the program reads "
                f"{FORMAT_VERSION}: update it"
            )
        threshold = values.get("threshold")
        if threshold is not None and not is_threshold(threshold):
            raise ModelError(f"{name} recommends the threshold {threshold!r}: it must be below 1")
        config = DetrConfig.from_dict(values["config"])
        return OwnMetadata(config, Categories.from_json(values["categories"]), threshold)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelError(f"{name} has damaged metadata ({error})") from None


def recommended_threshold(path: str | Path) -> float | None:
    """The threshold that a weight file recommends, without reading the tensors.

    None for a file without a recommendation, of another kind, or unreadable.
    """
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length < LARGEST_HEADER else b""
        metadata = json.loads(header).get("__metadata__") or {}
        label = read_label(str(path), metadata)
    except (OSError, ValueError, AttributeError):  # ModelError is a ValueError
        return None
    return label.threshold if label else None


def recommending(content: bytes, threshold: float | None) -> bytes:
    """`content` of one of our weight files with `threshold` as its recommendation; None removes it.

    Tensor bytes are unchanged. The header is written as safetensors writes headers, so removing a
    threshold restores the bytes of the file before the threshold was added.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    values = json.loads(header["__metadata__"][ENTRY])
    values.pop("threshold", None)
    if threshold is not None:
        values["threshold"] = threshold
    header["__metadata__"][ENTRY] = json.dumps(values)
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]
