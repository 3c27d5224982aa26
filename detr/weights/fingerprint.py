"""The model card: everything that can change a result, named, and hashed into a fingerprint.

Rows of models with one fingerprint may be mixed in one run folder. So the fingerprint contains
whatever changes a result (weights, architecture, label set, decoding and resizing, dtype,
threshold, merge) and nothing else (not batch size, number of devices, memory layout). A card is
made without building the model, so that a driver without a GPU can check a run before the start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from detr.categories import Categories
from detr.config import THRESHOLD, DetrConfig, ModelError, check_threshold
from detr.cuda_settings import why_no_gpu
from detr.weights.checkpoint import Checkpoint, open_checkpoint

# Increase a version with every change to the results of preprocess.py, the model or postprocess.py
# for the same input (beyond rounding): results from before and after must not be mixed.
PREPROCESS_VERSION = 1
MODEL_VERSION = 1
POSTPROCESS_VERSION = 1

# Sizes of a segment map: the image's, the model input's, or a quarter of the model input's (the
# size of the mask head's output).
OUTPUT_SIZES = ("original", "processed", "quarter")

DType = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Settings:
    """The options that change results. Raises ModelError for a value out of range."""

    dtype: DType
    threshold: float
    size_quantum: int
    compile: bool = False
    output_size: str = "original"

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if self.size_quantum < 1:
            raise ModelError(f"size_quantum must be at least 1, not {self.size_quantum}")
        if self.output_size not in OUTPUT_SIZES:
            raise ModelError(
                f"output_size must be {', '.join(OUTPUT_SIZES)}, not {self.output_size!r}"
            )


@dataclass(frozen=True)
class ModelCard:
    """The model's part of a run folder: architecture, label set, hashes."""

    config: DetrConfig
    categories: Categories
    weights_sha256: str
    fingerprint: str  # 16 hex digits over `fingerprint_fields`
    fingerprint_fields: Mapping[str, str | int | float]
    recommended_threshold: float | None = None  # by the weight file

    @property
    def threshold(self) -> float:
        """The least class probability of a segment, as used by this model."""
        return float(self.fingerprint_fields["threshold"])

    @property
    def dtype(self) -> str:
        return str(self.fingerprint_fields["dtype"])


def resolve_device(device: str) -> torch.device:
    """'auto' is cuda where there is a GPU, else cpu.

    Raises ModelError for an unknown or absent device, and also where the machine has a GPU that
    torch can't use: only 'cpu' runs on the CPU of such a machine.
    """
    if device != "cpu" and (reason := why_no_gpu()):
        raise ModelError(reason)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ModelError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}") from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("device cuda was asked for, but torch finds no GPU on this machine")
    return resolved


def resolve_dtype(dtype: str, device: str) -> DType:
    """The dtype that 'auto' means on `device`; fp32, bf16 and fp16 are returned unchanged.

    'auto' is fp32 on a CPU. On a GPU it is bf16 if the GPU computes bf16 natively (Ampere and
    later), else fp16. The compute capability decides, since torch also reports bf16 for a T4, which
    emulates bf16 many times slower. Raises ModelError for another dtype, and for a device that
    `resolve_device` refuses; `device` is looked at for 'auto' alone.
    """
    if dtype in ("fp32", "bf16", "fp16"):
        return dtype
    if dtype != "auto":
        raise ModelError(f"dtype must be auto, fp32, bf16 or fp16, not {dtype!r}")
    resolved = resolve_device(device)
    if resolved.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(resolved)[0] >= 8 else "fp16"


def make_card(checkpoint: Checkpoint, settings: Settings) -> ModelCard:
    """The card of a checked weight file under these settings."""
    categories = json.dumps(checkpoint.categories.to_json(), sort_keys=True)
    fields: dict[str, str | int | float] = {
        "weights_sha256": checkpoint.sha256,
        "architecture": json.dumps(checkpoint.config.to_dict(), sort_keys=True),
        "categories_sha256": hashlib.sha256(categories.encode()).hexdigest()[:16],
        "dtype": settings.dtype,
        "threshold": settings.threshold,
        "size_quantum": settings.size_quantum,
        "preprocess_version": PREPROCESS_VERSION,
        "model_version": MODEL_VERSION,
        "postprocess_version": POSTPROCESS_VERSION,
    }
    # Left out at their defaults, so that runs made before these options keep their fingerprint.
    if settings.compile:
        fields["compile"] = True
    if settings.output_size != "original":
        fields["output_size"] = settings.output_size
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return ModelCard(
        config=checkpoint.config,
        categories=checkpoint.categories,
        weights_sha256=checkpoint.sha256,
        fingerprint=digest[:16],
        fingerprint_fields=fields,
        recommended_threshold=checkpoint.threshold,
    )


def with_threshold(settings: Settings, asked: float | None, checkpoint: Checkpoint) -> Settings:
    """`settings` with the weight file's threshold if `asked` is None and the file has one."""
    if asked is None and checkpoint.threshold is not None:
        return replace(settings, threshold=checkpoint.threshold)
    return settings


def make_settings(
    *,
    device: str,
    dtype: str,
    threshold: float | None,
    size_quantum: int,
    compile: bool,
    output_size: str,
) -> Settings:
    """`Settings` from the options of `load`. Raises ModelError."""
    known = THRESHOLD if threshold is None else threshold
    return Settings(resolve_dtype(dtype, device), known, size_quantum, compile, output_size)


def describe(
    weights: str | Path,
    *,
    recipe: str | None = None,
    categories: Categories | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threshold: float | None = None,
    size_quantum: int = 1,
    compile: bool = False,
    output_size: str = "original",
) -> ModelCard:
    """The card of the model of `detr.load` with the same arguments; no model is built.

    Reads and hashes the file. `device` matters only to resolve dtype "auto". Raises ModelError.
    """
    settings = make_settings(
        device=device,
        dtype=dtype,
        threshold=threshold,
        size_quantum=size_quantum,
        compile=compile,
        output_size=output_size,
    )
    checkpoint = open_checkpoint(weights, recipe=recipe, categories=categories)
    return make_card(checkpoint, with_threshold(settings, threshold, checkpoint))
