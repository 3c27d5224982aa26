"""Our own weight files: safetensors whose metadata carry config, label set and threshold.

All of it is one JSON in one metadata entry: the order of several in the file would be random, and
the file's hash must not be. The threshold is what the file recommends to whoever names none. It is
no part of the weights' identity (`Checkpoint.sha256`): a file that gets one later is the same
weights, and the threshold that is used stands in the fingerprint by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from detr.categories import Categories
from detr.config import DetrConfig, ModelError

FORMAT_VERSION: Final = 1
ENTRY: Final = "detr_panoptic"
LARGEST_HEADER: Final = 100_000_000  # safetensors' own limit, in bytes


@dataclass(frozen=True)
class OwnMetadata:
    """What a file of ours says of its tensors."""

    config: DetrConfig
    categories: Categories
    threshold: float | None = None  # least class probability of a segment, recommended

    def to_metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file. Raises ModelError for a threshold that can't be."""
        values: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "categories": self.categories.to_json(),
        }
        if self.threshold is not None:
            if not 0 <= self.threshold < 1:
                raise ModelError(f"threshold must be at least 0 and below 1, not {self.threshold}")
            values["threshold"] = self.threshold
        return {ENTRY: json.dumps(values)}


def read_label(name: str, metadata: Mapping[str, str]) -> OwnMetadata | None:
    """The label of a file of ours, None of another's. Raises ModelError for a damaged one."""
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
        if threshold is not None and not 0 <= threshold < 1:
            raise ModelError(f"{name} recommends the threshold {threshold!r}: it must be below 1")
        config = DetrConfig.from_dict(values["config"])
        return OwnMetadata(config, Categories.from_json(values["categories"]), threshold)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelError(f"{name} has damaged metadata ({error})") from None


def recommended_threshold(path: str | Path) -> float | None:
    """The threshold that a weight file recommends, without reading its tensors; None where it does
    not, or is no readable file of ours."""
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
    """A file of ours with this threshold in its metadata, or none; each tensor byte is as before.

    The header is written as safetensors writes it, so taking a threshold out of a file gives the
    bytes that it had without one.
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
