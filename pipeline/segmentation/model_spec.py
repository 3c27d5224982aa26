"""The small model protocol: any panoptic model that keeps it can be run by the engine.

`--model package.module:callable` names a callable that takes the local weights and the result
options and returns a `PanopticModel`. `detr:load` is the default. A callable with an attribute
`describe` (same arguments, returning `categories`, `fingerprint_fields` and `weights_sha256`)
lets the driver check a run without building the model; without one the model is built there once.

The driver describes the weights; each worker fetches and reads them anew, hours later perhaps. So
what the driver saw travels in the `ModelSpec`, and `load` refuses a model that is another one.
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

# Photos of free aspect ratio have a processed size each: a GPU would work on one or two at a time,
# and plan its convolutions anew for each size. On a CPU images run one by one anyhow.
USUAL_QUANTUM: Final = {"cpu": 1, "cuda": 32}
C = TypeVar("C", bound=RunConfig)


class PanopticModel(Protocol):
    """What the engine asks of a model, and what it takes if it is there:

    - `processed_size(height, width)`: only images for which it gives the same answer (by default
      the image's own size) share a batch; `--decode draft` reads no more pixels than that needs,
      and then `segment` gets the sizes of the files as its second argument.
    - `images_that_fit(height, width)`: how many of that processed size to take at a time.
    - `works_alone` (true where a GPU computes while the host waits) and `start(images, sizes)`:
      what it returns is asked for `masks()`, then for `result()`; see detr/inference/gpu_batch.py.
    """

    categories: Categories
    fingerprint: str  # changes with whatever can change an answer

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        """images: (H, W, 3) uint8 RGB of any sizes -> maps at those sizes, in order."""
        ...


@dataclass(frozen=True)
class ModelSpec:
    """How to get the model in any process: small, picklable, without a weight in it."""

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
        """The spec that loads this model and no other."""
        return replace(self, expected=description.identity)

    def load(self) -> PanopticModel:
        """Build the model in this process, fetching the weights once per node.

        Raises UserError if it is not the expected one: a file that was replaced under its name.
        """
        path, model = self._call(self._callable())
        if self.expected is not None:
            self.expected.check(model, path)
        return model

    def describe(self) -> ModelDescription:
        """What the run folder records. Raises UserError or detr's ModelError."""
        load = self._callable()
        # Hashed before they are read: what is replaced in between is then found by the workers.
        content = content_sha256(Path(local_weights(self.weights, self.options)[0]))
        _, card = self._call(getattr(load, "describe", load))
        asked = self._threshold(load)
        fields = dict(getattr(card, "fingerprint_fields", {"model_fingerprint": card.fingerprint}))
        return ModelDescription(
            categories=card.categories,
            threshold=getattr(card, "threshold", THRESHOLD if asked is None else asked),
            recommended=recommended_by(card),
            weights_sha256=str(getattr(card, "weights_sha256", "")),
            fields=fields,
            identity=Identity(
                content=content,
                weights_sha256=str(getattr(card, "weights_sha256", "")),
                fingerprint=str(getattr(card, "fingerprint", "")),
            ),
        )

    def _callable(self) -> Callable[..., Any]:
        module, _, name = self.model.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"--model {self.model!r} can't be imported: {error}") from error

    def _call(self, function: Callable[..., Any]) -> tuple[str, Any]:
        """The weights on this node, and what the function makes of them."""
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
        """None, the weights' recommendation, is for a loader that takes it: its default is None."""
        taken = inspect.signature(load).parameters.get("threshold")
        if self.threshold is None and (taken is None or taken.default is not None):
            return THRESHOLD
        return self.threshold

    def _rare(self) -> dict[str, Any]:
        """Options that a loader need not know of until they are used."""
        asked = {"compile": self.compile, "output_size": self.output_size}
        usual = {"compile": False, "output_size": "original"}
        rare: dict[str, Any] = {k: value for k, value in asked.items() if value != usual[k]}
        if self.categories is not None:
            taken = inspect.signature(self._callable()).parameters.values()
            if not any(p.name == "categories" or p.kind == p.VAR_KEYWORD for p in taken):
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
    """By what the model of the driver is known again on a worker."""

    content: str  # sha256 of the weights as they lie on a node
    weights_sha256: str  # as the model says, empty if it doesn't
    fingerprint: str  # as the model says, empty if its card doesn't

    def check(self, model: PanopticModel, path: str) -> None:
        """Raises UserError if the model that was loaded from `path` is another one."""
        said = str(getattr(model, "weights_sha256", ""))
        if said and self.weights_sha256:  # of the bytes that it loaded
            found, wanted = said, self.weights_sha256
        else:
            found, wanted = content_sha256(Path(path)), self.content
        fingerprint = model.fingerprint if self.fingerprint else ""
        if (found, fingerprint) != (wanted, self.fingerprint):
            raise UserError(
                f"the weights at {path} on {platform.node()} have sha256 {found[:16]} (model "
                f"fingerprint {fingerprint or 'unknown'}), where this job was started with sha256 "
                f"{wanted[:16]} (fingerprint {self.fingerprint or 'unknown'}): they were replaced "
                "meanwhile; put the former ones back and run the same command again, or start "
                "another --out"
            )


@dataclass(frozen=True)
class ModelDescription:
    """A model as the driver knows it, without the model."""

    categories: Categories
    weights_sha256: str
    fields: Mapping[str, str | int | float]
    identity: Identity
    threshold: float = THRESHOLD  # that is used
    recommended: float | None = None  # by the weights


def content_sha256(path: Path) -> str:
    """Of a file; of a folder over the names and contents of its files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(each for each in path.rglob("*") if each.is_file())
    told = (f"{each.relative_to(path)}\n{content_sha256(each)}\n" for each in files)
    return hashlib.sha256("".join(told).encode(errors="surrogateescape")).hexdigest()


def _whole_path(weights: str) -> str:
    """A file's path from the root: a worker's current folder is not the driver's."""
    path = normalize_url(weights)
    return path if weights not in RECIPES and Path(path).exists() else weights


def local_weights(weights: str, options: Mapping[str, str]) -> tuple[str, str | None]:
    """The weights on this node, and the name of the recipe if one of the published was asked for.

    Raises UserError saying how to get the file where it can't be had.
    """
    recipe = RECIPES.get(weights)
    url = recipe.url if recipe else weights
    try:
        # A published file comes by https, to which the bucket's options mean nothing.
        path = local_copy(url, options if url.startswith(("s3://", "s3a://")) else None)
    except FileNotFoundError as error:
        cause = error.__cause__  # fsspec gives a dead network, too, as a file that isn't there
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
    """The settings with their size quantum: asked for, else the run's own (`recorded` are the
    settings in its run.json), else what is usual on the device of a first run, which is told."""
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
    """The settings with their threshold: asked for, else the run's own (`recorded` are the settings
    in its run.json: a recommendation that the weights got since is not the run's)."""
    if config.threshold is not None or recorded is None:
        return config
    return config.model_copy(update={"threshold": recorded.get("threshold", THRESHOLD)})


def with_recommended(config: C, description: ModelDescription, note: Callable[[str], None]) -> C:
    """The settings of a new run with the threshold that its weights chose, which is told."""
    if config.threshold is not None:
        return config
    say_recommended(description.recommended, note)
    return config.model_copy(update={"threshold": description.threshold})


def recommended_by(model: object) -> float | None:
    """The threshold that a model or its card says that its weights recommend."""
    return getattr(getattr(model, "card", model), "recommended_threshold", None)


def say_recommended(threshold: float | None, note: Callable[[str], None]) -> None:
    """Tell which threshold is used because the weights recommend it."""
    if threshold is not None:
        note(f"threshold {threshold:g}, as these weights recommend (--threshold: another)")


def run_fingerprint(
    description: ModelDescription, config: RunConfig
) -> tuple[str, dict[str, str | int | float]]:
    """The run's one fingerprint, and by name what went into it."""
    fields = {
        **description.fields,
        "model": config.model,
        "exif": config.exif,
        "max_pixels": config.max_pixels,
    }
    if config.decode != "pil":  # so that runs made before this option keep their fingerprint
        fields["decode"] = config.decode
    return fingerprint(fields), fields
