"""Weight files: recognise the kind by content, check names and shapes, read; write our own.

Three kinds are read: the published `.pth` (also as upstream's training script saves it), a Hugging
Face folder or file, and our safetensors, which carry config and label set. Invariants: no code in
a file is executed (`weights_only`); every name and shape is checked against the config before a
model is built; an error names what was expected and what was found. A file is read into memory
once, so the hashed bytes are the bytes of the model's tensors even if the file changes meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from detr.categories import COCO_PANOPTIC, Categories
from detr.config import RECIPES, DetrConfig, ModelError
from detr.first_bytes import first_bytes
from detr.models.detr import DetrPanoptic
from detr.weights.hf_labels import COCO_CLASSES, own_labels, read_json
from detr.weights.hf_names import is_hugging_face, to_official
from detr.weights.infer_config import infer_config
from detr.weights.own_format import OwnMetadata, read_label, recommending

_HF_FILES = ("model.safetensors", "pytorch_model.bin")
# What torch's unpickler raises on files that aren't (whole) checkpoints.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
)


@dataclass(frozen=True)
class Checkpoint:
    """A weight file that has passed all checks."""

    path: Path  # the file itself, also where a folder was given
    config: DetrConfig
    categories: Categories
    sha256: str  # of the file, as it is without the threshold that it may recommend
    kind: str  # "safetensors", "official" or "hugging face"
    loaded: Mapping[str, Tensor]  # under the published names
    threshold: float | None = None  # that the file recommends

    def weights(self) -> dict[str, Tensor]:
        """Float32 tensors on the CPU under the published names."""
        return {name: tensor.to(torch.float32) for name, tensor in self.loaded.items()}


def open_checkpoint(
    weights: str | Path, *, recipe: str | None = None, categories: Categories | None = None
) -> Checkpoint:
    """Recognise and check a weight file or Hugging Face folder.

    `recipe` names a published checkpoint, whose sha256 the file must have. Shapes don't show DC5
    (`dilation`): it is read from our metadata, `recipe`, the file's name, a Hugging Face config or
    upstream's arguments. `categories` replaces the label set in the file. Raises ModelError.
    """
    path, hf_config = _locate(Path(weights))
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    recipe = recipe or _recipe_of_name(path)
    if recipe is not None:
        _check_published(path, recipe, sha256)
    dilation = "dc5" in path.name.lower() or _is_dilated(hf_config)
    loaded: Mapping[str, Tensor]
    if len(content) > 8 and content[8:9] == b"{":
        loaded, metadata = _read_safetensors(path, content)
        kind = "safetensors"
    else:
        loaded, args = _read_torch(path, content)
        dilation = dilation or bool(getattr(args, "dilation", False))
        metadata, kind = {}, "official"
    shapes = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    label = read_label(path.name, metadata)
    if label is not None:
        config, file_labels = label.config, label.categories
        if label.threshold is not None:
            sha256 = hashlib.sha256(recommending(content, None)).hexdigest()
    else:
        if is_hugging_face(shapes):
            kind = "hugging face"
            loaded = to_official(loaded)
            shapes = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
        config, file_labels = infer_config(path.name, shapes), None
        config = RECIPES[recipe].config if recipe else replace(config, dilation=dilation)
        if kind == "hugging face" and recipe is None:
            file_labels = own_labels(path.parent, config.num_classes)
    _check_shapes(path, config, shapes)
    published_labels = COCO_PANOPTIC if config.num_classes == COCO_CLASSES else None
    labels = categories or file_labels or published_labels
    if labels is None:
        raise ModelError(
            f"{path.name} has {config.num_classes} classes and no label set: give it with "
            "--categories FILE, a COCO categories JSON (in Python: categories=)"
        )
    labels.class_ids(config.num_classes)
    threshold = label.threshold if label is not None else None
    return Checkpoint(path, config, labels, sha256, kind, loaded, threshold)


def save(
    model: nn.Module,
    path: str | Path,
    config: DetrConfig,
    categories: Categories,
    *,
    threshold: float | None = None,
) -> None:
    """Write our own safetensors: the weights with config and label set in the metadata.

    The model must not be folded (`detr.models.folded`). The file is written under a temporary name
    and then renamed. `threshold`: the recommended least class probability of a segment. Raises
    ModelError if the model does not fit `config` or `categories`.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    path = Path(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    _check_shapes(path, config, shapes)
    categories.class_ids(config.num_classes)
    metadata = OwnMetadata(config, categories, threshold).to_metadata()
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: t.contiguous() for name, t in weights.items()}, temporary, metadata)
    temporary.replace(path)


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
    """The weight file, and config.json's content if a Hugging Face folder was given."""
    if not path.exists():
        raise ModelError(f"there are no weights at {path}")
    if not path.is_dir():
        return path, {}
    files = [path / name for name in _HF_FILES if (path / name).is_file()]
    if not files:
        raise ModelError(f"the folder {path} holds neither {' nor '.join(_HF_FILES)}")
    config = path / "config.json"
    try:
        return files[0], read_json(config)
    except ValueError:
        raise ModelError(f"{config} is not JSON") from None


def _is_dilated(hf_config: dict[str, Any]) -> bool:
    strides = [
        (hf_config.get(name) or {}).get("output_stride")
        for name in ("backbone_config", "backbone_kwargs")
    ]
    return bool(hf_config.get("dilation")) or 16 in strides


def _recipe_of_name(path: Path) -> str | None:
    """The recipe with this file name."""
    for recipe in RECIPES.values():
        if path.name.endswith(recipe.url.rsplit("/", 1)[1]):
            return recipe.name
    return None


def _check_published(path: Path, recipe: str, sha256: str) -> None:
    if recipe not in RECIPES:
        raise ModelError(f"there is no recipe {recipe!r}: choose from {', '.join(RECIPES)}")
    expected = RECIPES[recipe].sha256_prefix
    if not sha256.startswith(expected):
        raise ModelError(
            f"{path.name} is not the published {recipe} file: its sha256 should begin with "
            f"{expected} and begins with {sha256[:8]}; fetch {RECIPES[recipe].url} again"
        )


def _read_safetensors(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. The file begins with the header's length (8 bytes) and its JSON."""
    try:
        views = load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that torch has not
        raise ModelError(f"{path.name} is a damaged safetensors file: {error}") from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    # Copies lie in torch's aligned memory: results must not depend on the alignment of `content`.
    return {name: view.clone() for name, view in views.items()}, header.get("__metadata__") or {}


def _read_torch(path: Path, content: bytes) -> tuple[dict[str, Tensor], object]:
    """Tensors, and upstream's training arguments or None, of a file written by torch.save."""
    start = content[:64].lstrip()
    if not start:
        raise ModelError(f"{path.name} is empty")
    if start[:1] in b"<{#" or start[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG"):
        raise ModelError(
            f"{path.name} is not a weight file: it begins with {first_bytes(start, 24)} (a web "
            "page saved under that name?)"
        )
    try:
        # upstream's training script adds its arguments; a Namespace is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = re.split(r"[\n.]", str(error).strip() or type(error).__name__)[0]
        raise ModelError(
            f"{path.name} can't be read as PyTorch weights (truncated, or holding more than "
            f"tensors, which is never loaded): {reason}"
        ) from None
    args = saved.get("args") if isinstance(saved, Mapping) else None
    weights = saved.get("model", saved) if isinstance(saved, Mapping) else saved
    if not isinstance(weights, Mapping) or not weights:
        raise ModelError(f"{path.name} holds no weights but a {type(weights).__name__}")
    others = [str(name) for name, tensor in weights.items() if not isinstance(tensor, Tensor)]
    if others:
        raise ModelError(f"{path.name} holds no weights: {_some(others)} is not a tensor")
    return dict(weights), args


def _check_shapes(path: Path, config: DetrConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ModelError unless names and shapes are exactly those of the config's model."""
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in DetrPanoptic(config).state_dict().items()}
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    wrong = [
        f"{name} (expected {_shape(shape)}, found {_shape(shapes[name])})"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if not (missing or unknown or wrong):
        return
    problems = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of wrong shape", wrong))
        if names
    ]
    raise ModelError(
        f"{path.name} doesn't fit DETR panoptic with {config.backbone} ({len(expected)} tensors "
        f"expected, {len(shapes)} found): {'; '.join(problems)}"
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
