"""`RunConfig`: everything a segmentation job is told, checked once at the door.

A field belongs to one of three kinds, and the kind decides what a change of it means:
- it can change a **result** (weights, threshold, decoding ...): part of the fingerprint, another
  value needs another run folder;
- it says **what** is segmented (source, include, exclude ...): frozen with the manifest;
- it says only **how** (batch size, devices, shards to do now): may differ at every call.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.errors import UserError
from pipeline.plan import IMAGES_PER_SHARD

IMAGE_SUFFIXES: Final = (
    *("jpg", "jpeg", "png", "webp", "bmp", "gif"),
    *("tif", "tiff", "avif", "heic", "jp2"),
)
RESULT_FIELDS: Final = ("model", "threshold", "size_quantum", "dtype", "exif", "max_pixels")
SOURCE_FIELDS: Final = (
    "source",
    "include",
    "exclude",
    "image_root",
    "uri_column",
    "name_column",
    "keep_columns",
)


class RunConfig(BaseModel):
    """The settings of `panoptic segment`, as flags or as a TOML file with the same names."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    source: str = Field(description="folder, list (txt, csv, parquet) or COCO JSON; any fsspec URL")
    out: str = Field(description="run folder to make or continue; any fsspec URL")
    weights: str = Field(description="r50, r50-dc5, r101, or a file or folder; any fsspec URL")
    model: str = Field("detr:load", pattern=r"^[\w.]+:\w+$", description="package.module:callable")

    threshold: float = Field(0.85, ge=0, lt=1, description="least class probability of a segment")
    size_quantum: int = Field(1, ge=1, le=256, description="round processed sizes to a multiple")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    exif: bool = Field(True, description="turn photos upright as their EXIF tag says")
    max_pixels: int = Field(178_956_970, ge=1, description="larger images become error rows")

    include: tuple[str, ...] = Field((), description="glob patterns on the path in the source")
    exclude: tuple[str, ...] = Field((), description="glob patterns on the path in the source")
    image_root: str | None = Field(None, description="folder of the images of a COCO JSON or list")
    uri_column: str | None = None
    name_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    limit: int | None = Field(None, ge=1, description="a uniform sample of so many images")

    images_per_shard: int = Field(IMAGES_PER_SHARD, ge=1, le=100_000)
    shards: str | None = Field(None, description="FIRST:END, only these shards now")
    refresh: bool = False
    max_error_rate: float = Field(0.05, ge=0, le=1)
    max_removed_rate: float = Field(0.1, ge=0, le=1)
    batch_size: int = Field(8, ge=1, le=1024)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_actors: str | None = Field(None, pattern=r"^\d+(:\d+)?$", description="N or MIN:MAX")
    wait_for_gpus: int = Field(0, ge=0, description="seconds to wait for the first GPU node")
    address: str | None = None
    source_options: dict[str, str] = Field(default_factory=dict)
    out_options: dict[str, str] = Field(default_factory=dict)

    @field_validator("include", "exclude", "keep_columns", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value)

    def actors(self) -> tuple[int, int] | None:
        """The pool's smallest and largest size, or None to fill the cluster."""
        if self.num_actors is None:
            return None
        low, _, high = self.num_actors.partition(":")
        bounds = int(low), int(high or low)
        if not 1 <= bounds[0] <= bounds[1]:
            raise UserError(f"--num-actors {self.num_actors!r} must be N or MIN:MAX, 1 or more")
        return bounds


def make_config(flags: dict[str, Any], toml: str | None = None) -> RunConfig:
    """Flags over the file's values over the defaults. Raises UserError naming the field."""
    values: dict[str, Any] = {}
    if toml is not None:
        try:
            values = tomllib.loads(Path(toml).read_text())
        except FileNotFoundError:
            raise UserError(f"--config {toml}: no such file") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UserError(f"--config {toml} can't be read as TOML: {error}") from error
    values.update({name: value for name, value in flags.items() if value not in (None, (), {})})
    try:
        config = RunConfig(**values)
    except ValidationError as error:
        raise UserError(_sentence(error, toml)) from None
    config.actors()
    return config


def _sentence(error: ValidationError, toml: str | None) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    where = f" (in {toml} or as a flag)" if toml else ""
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(RunConfig.model_fields))
        return f"unknown setting {name!r}{where}; known are: {known}"
    if first["type"] == "missing":
        return f"{name!r} is needed{where}: {RunConfig.model_fields[name].description}"
    flag = "--" + name.replace("_", "-")
    return f"{flag} {first['input']!r}{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def fingerprint(fields: dict[str, Any]) -> str:
    """One hash of whatever can change a result: 16 hex digits of sha256 of the sorted JSON."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
