"""The model protocol of the engine, and the spec by which each process loads the same model.

`--model package.module:callable` names a callable that takes the local weights and the result
options and returns a `PanopticModel`. `detr:load` is the default. If the callable has an attribute
`describe` (same arguments, returning `categories`, `fingerprint_fields` and `weights_sha256`), the
driver checks a run without building the model; else the driver builds the model once.

Workers fetch the weights hours after the driver, when another file may have the same name. So the
`ModelSpec` carries the identity of the model that the driver described, and `load` checks it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from detr.categories import Categories
from detr.config import RECIPES, THRESHOLD
from detr.panoptic import Panoptic
from pipeline.config import RunConfig, fingerprint
from pipeline.errors import UserError
from pipeline.planning.coco_panoptic import CocoFile
from pipeline.storage.entry import as_user_error, classify
from pipeline.storage.node_cache import local_copy
from pipeline.storage.storage import normalize_url

# Pixels. Photos of any aspect ratio have nearly as many processed sizes as photos: without rounding
# a GPU would get batches of one or two, and cuDNN would plan its convolutions for each size. A CPU
# computes images one by one.
USUAL_QUANTUM: Final = {"cpu": 1, "cuda": 32}
C = TypeVar("C", bound=RunConfig)


class PanopticModel(Protocol):
    """The members that a model must have. A model may also have:

    - `processed_size(height, width)`: only images of one processed size share a batch (default:
      the size of the image); `--decode draft` decodes no more pixels than this size needs, and
      then `segment` gets the sizes of the files as its second argument.
    - `images_that_fit(height, width)`: the largest batch of images of this processed size.
    - `works_alone`: True where a GPU computes while the host waits. Then `start(images, sizes)`
      returns an object with `masks()`, called first, and `result()`; see
      detr/inference/gpu_batch.py.
    """

    categories: Categories
    fingerprint: str  # changes with everything that can change a result

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        """(H, W, 3) uint8 RGB images of any sizes -> panoptic maps of the same sizes, in order."""
        ...


@dataclass(frozen=True)
class ModelSpec:
    """What a process needs to load the model: small, picklable, without weights."""

    model: str
    weights: str
    dtype: str
    threshold: float | None  # None: what the weights recommend
    size_quantum: int
    device: str
    compile: bool = False
    output_size: str = "original"
    options: dict[str, str] = field(default_factory=dict)  # storage options of the weights
    expected: Identity | None = None  # what `load` compares the model with
    categories: str | None = None  # a JSON of the label set, in place of the weights' own
    categories_options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, *, device: str, dtype: str) -> ModelSpec:
        return cls(
            model=config.model,
            weights=_whole_path(config.weights),
            dtype=dtype,
            threshold=config.threshold,
            size_quantum=config.size_quantum or USUAL_QUANTUM[device],
            device=device,
            compile=config.compile,
            output_size=config.output_size,
            options=config.options_of(config.weights),
            categories=_whole_path(config.categories) if config.categories else None,
            categories_options=config.options_of(config.categories or ""),
        )

    def expecting(self, description: ModelDescription) -> ModelSpec:
        """A copy whose `load` accepts only the described model."""
        return replace(self, expected=description.identity)

    def load(self) -> PanopticModel:
        """Build the model in this process; the weights are fetched once per node.

        Raises UserError if the model is not the expected one: the file of weights was replaced.
        """
        path, model = self._call(self._callable())
        if self.expected is not None:
            self.expected.check(model, path)
        return model

    def describe(self) -> ModelDescription:
        """The description that the run folder records. Raises UserError or detr's ModelError."""
        load = self._callable()
        # Hashed before they are read: if the file is replaced in between, the workers refuse it.
        content = content_sha256(Path(local_weights(self.weights, self.options)[0]))
        _, card = self._call(getattr(load, "describe", load))
        threshold = self._threshold(load)
        fields = dict(getattr(card, "fingerprint_fields", {"model_fingerprint": card.fingerprint}))
        weights_sha256 = str(getattr(card, "weights_sha256", ""))
        return ModelDescription(
            categories=card.categories,
            weights_sha256=weights_sha256,
            fields=fields,
            identity=Identity(content, weights_sha256, str(getattr(card, "fingerprint", ""))),
            threshold=getattr(card, "threshold", THRESHOLD if threshold is None else threshold),
            recommended=recommended_by(card),
        )

    def _callable(self) -> Callable[..., Any]:
        module, _, name = self.model.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"--model {self.model!r} can't be imported: {error}") from error

    def _call(self, function: Callable[..., Any]) -> tuple[str, Any]:
        """The path of the weights on this node, and what `function` returns for them."""
        path, recipe = local_weights(self.weights, self.options)
        call = partial(function, path, recipe=recipe) if recipe else partial(function, path)
        return path, call(
            device=self.device,
            dtype=self.dtype,
            threshold=self._threshold(self._callable()),
            size_quantum=self.size_quantum,
            **self._rare(),
        )

    def _threshold(self, load: Callable[..., Any]) -> float | None:
        """The threshold for `load`. None (what the weights recommend) only if `load` accepts it."""
        parameter = inspect.signature(load).parameters.get("threshold")
        if self.threshold is None and (parameter is None or parameter.default is not None):
            return THRESHOLD
        return self.threshold

    def _rare(self) -> dict[str, Any]:
        """The options that differ from their defaults: a loader may lack parameters for them."""
        rare: dict[str, Any] = {"compile": True} if self.compile else {}
        if self.output_size != "original":
            rare["output_size"] = self.output_size
        if self.categories is not None:
            parameters = inspect.signature(self._callable()).parameters.values()
            if not any(p.name == "categories" or p.kind == p.VAR_KEYWORD for p in parameters):
                raise UserError(f"--model {self.model} brings its own classes: no --categories")
            rare["categories"] = read_categories(self.categories, self.categories_options)
        return rare


def read_categories(url: str, options: Mapping[str, str] | None = None) -> Categories:
    """The label set of a COCO categories JSON: the list alone, or any COCO JSON that has one.

    Raises UserError.
    """
    try:
        path = local_copy(url, options)
        with path.open("rb") as file:
            start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        if start.startswith(b"["):
            listed = json.loads(path.read_text("utf-8-sig"))
        else:
            listed = [item for key, item in CocoFile(str(path)).items() if key == "categories"]
        return Categories.from_json(listed)
    except FileNotFoundError:
        raise UserError(f"--categories {url}: there is no such file") from None
    except UserError as error:
        raise UserError(f"--categories {url}: {error}") from error
    except (ValueError, RecursionError) as error:  # ModelError, bad JSON, bad UTF-8
        raise UserError(f"--categories {url} is no label set: {error}") from error
    except OSError as error:
        raise as_user_error(error, f"can't read --categories {url}") from error


@dataclass(frozen=True)
class Identity:
    """The digests by which a worker checks that it loaded the model that the driver described."""

    content: str  # SHA-256 of the file or folder of weights on the driver's node
    weights_sha256: str  # the model's attribute; empty if the model has none
    fingerprint: str  # the card's attribute; empty if the card has none

    def check(self, model: PanopticModel, path: str) -> None:
        """Raises UserError if `model`, loaded from the weights at `path`, has another identity."""
        loaded = str(getattr(model, "weights_sha256", ""))
        if loaded and self.weights_sha256:
            actual, wanted = loaded, self.weights_sha256
        else:
            actual, wanted = content_sha256(Path(path)), self.content
        fingerprint = model.fingerprint if self.fingerprint else ""
        if (actual, fingerprint) != (wanted, self.fingerprint):
            raise UserError(
                f"the weights at {path} on {platform.node()} have sha256 {actual[:16]} (model "
                f"fingerprint {fingerprint or 'unknown'}), where this job was started with sha256 "
                f"{wanted[:16]} (fingerprint {self.fingerprint or 'unknown'}): they were replaced "
                "meanwhile; put the former ones back and run the same command again, or start "
                "another --out"
            )


@dataclass(frozen=True)
class ModelDescription:
    """What the driver knows of a model: by the callable's `describe`, else by building it once.

    weights_sha256: empty if the model has none. fields: the model's part of the
    run's fingerprint; `run_fingerprint` adds that of the settings.
    """

    categories: Categories
    weights_sha256: str
    fields: Mapping[str, str | int | float]
    identity: Identity
    threshold: float = THRESHOLD  # the one that is used
    recommended: float | None = None  # the one that the weights recommend


def content_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file; of a folder: over the names and contents of its files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    lines = (f"{entry.relative_to(path)}\n{content_sha256(entry)}\n" for entry in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _whole_path(weights: str) -> str:
    """A local file's absolute path, since a worker has another current folder; else `weights`."""
    path = normalize_url(weights)
    return path if weights not in RECIPES and Path(path).exists() else weights


def local_weights(weights: str, options: Mapping[str, str]) -> tuple[str, str | None]:
    """The path of the weights on this node, and the recipe's name if `weights` names a recipe.

    Raises UserError if the file can't be fetched; the message says how to get it.
    """
    recipe = RECIPES.get(weights)
    url = recipe.url if recipe else weights
    try:
        # Published weights come by HTTPS: storage options are for S3 only.
        path = local_copy(url, options if url.startswith(("s3://", "s3a://")) else None)
    except FileNotFoundError as error:
        cause = error.__cause__  # fsspec raises FileNotFoundError for a dead network, too
        if cause is not None and classify(cause)[0] != "not_found":
            raise as_user_error(
                cause,
                f"can't fetch --weights {weights} from {url} (without a network fetch it elsewhere "
                "and give the file's path)",
            ) from error
        names = ", ".join(RECIPES)
        raise UserError(
            f"--weights {weights!r}: no such file (give {names}, or the path or URL of a file that "
            f"can be read on {platform.node()})"
        ) from None
    except UserError:
        raise
    except Exception as error:
        raise as_user_error(error, f"can't fetch --weights {url}") from error
    return str(path), recipe.name if recipe else None


def with_size_quantum(
    config: C, recorded: Mapping[str, Any] | None, device: str, note: Callable[[str], None]
) -> C:
    """The settings with `size_quantum` (pixels) filled in if None.

    It is that of `recorded`, the settings in run.json; for a new run (None) that of USUAL_QUANTUM
    for the device, and `note` gets a line on the rounding.
    """
    if config.size_quantum is not None:
        return config
    if recorded is not None:
        quantum = int(recorded.get("size_quantum") or 1)
    else:
        quantum = USUAL_QUANTUM[device]
        if quantum > 1:
            note(
                f"the model sees sizes rounded to multiples of {quantum}, so that photos share "
                "batches (--size-quantum 1: exact sizes, and far slower on photos of many sizes)"
            )
    return config.model_copy(update={"size_quantum": quantum})


def with_run_threshold(config: C, recorded: Mapping[str, Any] | None) -> C:
    """The settings with `threshold` filled in if None: from `recorded`, the settings in run.json,
    not from the weights, whose recommendation may be newer than the run."""
    if config.threshold is not None or recorded is None:
        return config
    return config.model_copy(update={"threshold": recorded.get("threshold", THRESHOLD)})


def with_recommended(config: C, description: ModelDescription, note: Callable[[str], None]) -> C:
    """The settings of a new run with `threshold` filled in if None: what the weights recommend.
    `note` gets a line on a recommendation."""
    if config.threshold is not None:
        return config
    say_recommended(description.recommended, note)
    return config.model_copy(update={"threshold": description.threshold})


def recommended_by(model: object) -> float | None:
    """The `recommended_threshold` of the model's card, or of `model` itself; None without one."""
    return getattr(getattr(model, "card", model), "recommended_threshold", None)


def say_recommended(threshold: float | None, note: Callable[[str], None]) -> None:
    """Give `note` a line on the recommended threshold, if there is one."""
    if threshold is not None:
        note(f"threshold {threshold:g}, as these weights recommend (--threshold: another)")


def run_fingerprint(
    description: ModelDescription, config: RunConfig
) -> tuple[str, dict[str, str | int | float]]:
    """The fingerprint of a run, and its fields by name."""
    fields = {
        **description.fields,
        "model": config.model,
        "exif": config.exif,
        "max_pixels": config.max_pixels,
    }
    if config.decode != "pil":  # runs made before this option keep their fingerprint
        fields["decode"] = config.decode
    return fingerprint(fields), fields
