"""The small model protocol: any panoptic model that keeps it can be run by the engine.

`--model package.module:callable` names a callable that takes the local weights and the result
options and returns a `PanopticModel`. `detr:load` is the default. A callable with an attribute
`describe` (same arguments, returning `categories`, `fingerprint_fields` and `weights_sha256`)
lets the driver check a run without building the model; without one the model is built there once.
"""

from __future__ import annotations

import importlib
import inspect
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from detr.categories import Categories
from detr.config import RECIPES
from detr.panoptic import Panoptic
from pipeline.config import RunConfig, fingerprint
from pipeline.errors import UserError
from pipeline.planning.coco_panoptic import CocoFile
from pipeline.storage.entry import as_user_error, classify
from pipeline.storage.node_cache import local_copy
from pipeline.storage.storage import normalize


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
    fingerprint: str

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Panoptic]:
        """images: (H, W, 3) uint8 RGB of any sizes -> maps at those sizes, in order."""
        ...


@dataclass(frozen=True)
class ModelSpec:
    """How to get the model in any process: small, picklable, without a weight in it."""

    model: str
    weights: str
    dtype: str
    threshold: float
    size_quantum: int
    device: str
    compile: bool = False
    output_size: str = "original"
    options: dict[str, str] = field(default_factory=dict)  # storage options of the weights
    categories: str | None = None  # a JSON of the label set, in place of the weights' own
    categories_options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, *, device: str, dtype: str) -> ModelSpec:
        return cls(
            model=config.model,
            weights=_whole_path(config.weights),
            dtype=dtype,
            threshold=config.threshold,
            size_quantum=config.size_quantum,
            device=device,
            compile=config.compile,
            output_size=config.output_size,
            options=config.options_of(config.weights),
            categories=_whole_path(config.categories) if config.categories else None,
            categories_options=config.options_of(config.categories or ""),
        )

    def load(self) -> PanopticModel:
        """Build the model in this process, fetching the weights once per node."""
        return self._call(self._callable())

    def describe(self) -> ModelDescription:
        """What the run folder records. Raises UserError or detr's ModelError."""
        load = self._callable()
        card = self._call(getattr(load, "describe", load))
        fields = dict(getattr(card, "fingerprint_fields", {"model_fingerprint": card.fingerprint}))
        return ModelDescription(
            categories=card.categories,
            weights_sha256=str(getattr(card, "weights_sha256", "")),
            fields=fields,
        )

    def _callable(self) -> Callable[..., Any]:
        module, _, name = self.model.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"--model {self.model!r} can't be imported: {error}") from error

    def _call(self, function: Callable[..., Any]) -> Any:
        path, recipe = local_weights(self.weights, self.options)
        call = partial(function, path, recipe=recipe) if recipe else partial(function, path)
        return call(
            device=self.device,
            dtype=self.dtype,
            threshold=self.threshold,
            size_quantum=self.size_quantum,
            **self._rare(),
        )

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
    except ValueError as error:  # ModelError, bad JSON, bad UTF-8
        raise UserError(f"--categories {url} is no label set: {error}") from error
    except OSError as error:
        raise as_user_error(error, f"can't read --categories {url}") from error


@dataclass(frozen=True)
class ModelDescription:
    """A model as the driver knows it, without the model."""

    categories: Categories
    weights_sha256: str
    fields: Mapping[str, str | int | float]


def _whole_path(weights: str) -> str:
    """A file's path from the root: a worker's current folder is not the driver's."""
    path = normalize(weights)
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
