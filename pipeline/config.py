"""`RunConfig`: the settings of a segmentation job, checked once, when it is made.

A field is of one of three kinds:
- it can change a **result** (weights, threshold, decoding ...): part of the fingerprint, so another
  value needs another run folder;
- it says **what** is segmented (source, include, exclude ...): stays as it was when the first
  manifest was written;
- it says only **how** (batch size, devices, shards to do now): may differ at every call.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from detr.config import THRESHOLD
from pipeline.errors import UserError
from pipeline.secrets import check_options, refuse_secrets, texts
from pipeline.sharding import IMAGES_PER_SHARD, LEAST_SHARDS

IMAGE_SUFFIXES: Final = (
    *("jpg", "jpeg", "jpe", "jfif", "jfi", "jif", "pjpeg", "pjp", "mpo"),
    *("png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff"),
    *("avif", "avifs", "heic", "heif", "hif", "jp2", "j2k", "j2c", "jpc", "jpx", "jpf"),
    *("ppm", "pgm", "pbm", "pnm"),
)
RESULT_FIELDS: Final = (
    *("model", "categories", "threshold", "size_quantum", "dtype", "compile"),
    *("decode", "exif", "max_pixels", "output_size"),
)
SOURCE_FIELDS: Final = (
    "source",
    "include",
    "exclude",
    "any_suffix",
    "image_root",
    "uri_column",
    "name_column",
    "keep_columns",
)
OPTION_FIELDS: Final = ("source_options", "out_options")


class RunConfig(BaseModel):
    """The settings of `panoptic segment`, as flags or as a TOML file with the same names."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    source: str = Field(
        description="Folder, list (.txt .csv .parquet), COCO JSON or S3 Inventory; any fsspec URL."
    )
    out: str = Field(description="Run folder to make or to continue; any fsspec URL.")
    weights: str = Field(
        "r50", description="r50, r50-dc5, r101, or a file or Hugging Face folder; any fsspec URL."
    )
    model: str = Field(
        "detr:load", pattern=r"^[\w.]+:\w+$", description="Any panoptic model: package.module:load."
    )

    categories: str | None = Field(
        None, description="COCO categories JSON of the weights' classes, where they carry none."
    )
    threshold: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Least class probability of a segment; default: what the weights recommend, "
        f"else {THRESHOLD}.",
    )
    size_quantum: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Round processed sizes to a multiple, so that photos batch; 32 on a GPU, "
        "else 1.",
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="fp32, bf16 or fp16; auto is fp32 on a CPU, bf16 or fp16 on a GPU."
    )
    compile: bool = Field(
        False, description="Let torch compile the model: a minute at the start of each actor."
    )
    decode: Literal["pil", "draft", "nvjpeg"] = Field(
        "pil",
        description="pil; draft: large JPEGs at a fraction of their size; nvjpeg: on the GPU.",
    )
    output_size: Literal["original", "processed", "quarter"] = Field(
        "original", description="Size of the masks: the file's, the model's, or a quarter of that."
    )
    exif: bool = Field(True, description="Turn photos upright as their EXIF tag says.")
    max_pixels: int = Field(178_956_970, ge=1, description="Larger images become error rows.")

    include: tuple[str, ...] = Field((), description="Only paths like this glob; repeatable.")
    exclude: tuple[str, ...] = Field((), description="No paths like this glob; repeatable.")
    any_suffix: bool = Field(
        False, description="Take files of any suffix, or none; the first bytes decide."
    )
    image_root: str | None = Field(None, description="Folder of a COCO JSON's or a list's images.")
    uri_column: str | None = Field(None, description="Column of a list that holds the images.")
    name_column: str | None = Field(None, description="Column of unique names; default the URI.")
    keep_columns: tuple[str, ...] = Field(
        (), description="Columns of a list to carry into the shards; repeatable."
    )
    limit: int | None = Field(None, ge=1, description="A uniform sample of so many images.")

    images_per_shard: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description=f"Rows of a Parquet shard, about; default {IMAGES_PER_SHARD}, and fewer where "
        f"a job has less than {LEAST_SHARDS} such shards.",
    )
    shards: str | None = Field(None, description="FIRST:END, compute only these shards now.")
    refresh: bool = Field(
        False, description="List the source again, and compute its new and changed images."
    )
    max_error_rate: float = Field(
        0.05, ge=0, le=1, description="Stop, and exit 4, if a larger part of the images fails."
    )
    max_removed_rate: float = Field(
        0.1, ge=0, le=1, description="Refuse a refresh that lost a larger part of the images."
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Most images in a batch of the model; default: as many as fit.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cpu or cuda; auto is the GPU where the cluster can have one."
    )
    num_actors: str | None = Field(
        None,
        pattern=r"^\d+(:\d+)?$",
        description="Model actors, N or MIN:MAX; default: all that fit.",
    )
    wait_for_gpus: int = Field(
        1800, ge=0, description="Seconds to wait for the first node of a cluster that has none yet."
    )
    address: str | None = Field(
        None, description="Ray cluster; default RAY_ADDRESS, else Ray starts on this machine."
    )
    source_options: dict[str, str] = Field(
        default_factory=dict, description="KEY=VALUE for the source's storage; repeatable."
    )
    out_options: dict[str, str] = Field(
        default_factory=dict, description="KEY=VALUE for the run folder's storage; repeatable."
    )
    keep_signed_urls: bool = Field(
        False,
        description="Take a list's signed URLs: into the manifest, never into rows.",
    )

    @field_validator("include", "exclude", "keep_columns", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value)

    def options_of(self, url: str) -> dict[str, str]:
        """Storage options for a file that a setting names, such as the weights.

        `out_options` if the file lies in the bucket of `out` and not in that of the source
        (`submit` uploads local files beside the run folder), else `source_options`.
        """
        bucket = url.split("/")[:3]
        outside = bucket != self.source.split("/")[:3]
        beside = outside and bucket == self.out.split("/")[:3]
        return self.out_options if beside else self.source_options

    def actors(self) -> tuple[int, int] | None:
        """Smallest and largest number of model actors; None: all that fit. Raises UserError."""
        if self.num_actors is None:
            return None
        low, _, high = self.num_actors.partition(":")
        bounds = int(low), int(high or low)
        if not 1 <= bounds[0] <= bounds[1]:
            raise UserError(f"--num-actors {self.num_actors!r} must be N or MIN:MAX, 1 or more")
        return bounds


C = TypeVar("C", bound=RunConfig)


def make_config(flags: dict[str, Any], toml: str | None = None) -> RunConfig:
    """A RunConfig: each field from `flags`, else from the file `toml`, else its default.

    flags: None and empty values count as not given. Raises UserError naming the field.
    """
    return load_config(RunConfig, flags, toml)


def load_config(kind: type[C], flags: dict[str, Any], toml: str | None = None) -> C:
    """As `make_config`, for `kind`: RunConfig or a subclass of it."""
    values = {} if toml is None else read_toml(toml, "--config")
    values.update({name: value for name, value in flags.items() if value not in (None, (), {})})
    try:
        config = kind(**values)
    except ValidationError as error:
        raise UserError(_sentence(error, kind, toml)) from None
    config.actors()
    for name in OPTION_FIELDS:
        check_options(getattr(config, name), _flag(name).removesuffix("s"))
    for name in type(config).model_fields:
        for text in texts(getattr(config, name)):
            refuse_secrets(text, _flag(name))
    return config


def _flag(name: str) -> str:
    return "SOURCE" if name == "source" else "--" + name.replace("_", "-")


def read_toml(path: str, flag: str) -> dict[str, Any]:
    """The values of a TOML file, which may begin with a BOM. Raises UserError naming `flag`."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{flag} {path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{flag} {path} can't be read as TOML: {error}") from error


def _sentence(error: ValidationError, kind: type[RunConfig], toml: str | None) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    where = f" (in {toml} or as a flag)" if toml else ""
    if first["loc"][0] in OPTION_FIELDS:
        flag = _flag(str(first["loc"][0])).removesuffix("s")
        return (
            f"{flag}{where}: each option is one text, such as "
            'profile = "prod"; what was given is not repeated here, for it may be a secret'
        )
    if first["loc"][0] == "report":
        return f'--report{where} must be a list of texts, such as ["python", "send.py"]'
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(kind.model_fields))
        return f"unknown setting {name!r}{where}; known are: {known}"
    if first["type"] == "missing":
        description = kind.model_fields[name].description or ""
        needed = f"{description[:1].lower()}{description[1:].rstrip('.')}"
        return f"{_flag(name)} is needed{where}: {needed}"
    if first["type"] == "string_unicode":
        shown = (
            str(first["input"]).encode(errors="surrogateescape").decode(errors="backslashreplace")
        )
        return (
            f"{_flag(name)} {shown} is not UTF-8: rename it, or give a link to it with another name"
        )
    return f"{_flag(name)} {first['input']!r}{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"


def fingerprint(fields: dict[str, Any]) -> str:
    """The first 16 hex digits of the sha256 of the fields as sorted JSON.

    fields: all settings that can change a result.
    """
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
