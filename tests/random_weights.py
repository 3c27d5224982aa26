"""Weights that have learnt nothing but behave like trained ones: some queries kept, masks differ.

As initialised, every query answers alike and either all or none pass the threshold. Here attention
is sharpened, batch norm takes its statistics from a few images, the class weights look away from
the directions in which images differ, and the no-object bias is set so that a given share of
queries is kept. The same seed gives the same file. Images are made up here; photos may be passed to
calibrate on instead.

    write_official_r50("r50.pth")     # 490 tensors as in the published file, about 15 of 100 kept
    write_tiny("tiny.safetensors")    # our own format, an image takes a few milliseconds
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from detr.categories import COCO_PANOPTIC, Categories, Category
from detr.config import DetrConfig
from detr.inference.preprocess import normalize, processed_size, resize
from detr.models.backbone import BatchNorm
from detr.models.detr import DetrPanoptic
from detr.weights.checkpoint import save

TINY_CATEGORIES = Categories(
    Category(id=number, name=name, isthing=isthing, color=(40 * number, 255 - 30 * number, 90))
    for number, (name, isthing) in enumerate(
        [("disc", True), ("box", True), ("star", True), ("sky", False), ("floor", False)], start=1
    )
)


def tiny_config(num_classes: int = len(TINY_CATEGORIES)) -> DetrConfig:
    """The smallest DETR panoptic that still has every part; its shorter side is 96 pixels."""
    return DetrConfig(
        block="basic",
        depths=(1, 1, 1, 1),
        widths=(8, 12, 16, 24),
        hidden_dim=32,
        nheads=2,
        enc_layers=1,
        dec_layers=2,
        dim_feedforward=48,
        num_queries=16,
        num_classes=num_classes,
        mask_groups=2,
        size=96,
        max_size=192,
    )


def write_tiny(
    path: str | Path, seed: int = 0, categories: Categories = TINY_CATEGORIES
) -> DetrPanoptic:
    """Write a tiny model as our own safetensors.

    Of its 16 queries about 6 are kept (all or none on a rare image), of 2 or 3 categories.
    """
    config = tiny_config(len(categories))
    images = made_images(12, seed, 96) + flat_images(96)
    model = random_model(config, seed, images, range(len(categories)), keep=0.45, spread=12)
    save(model, path, config, categories)
    return model


def write_official_r50(
    path: str | Path, seed: int = 0, photos: Sequence[NDArray[np.uint8]] | None = None
) -> None:
    """Write {"model": OrderedDict of 490 tensors} as the published R50 file is laid out (165 MB).

    About 15 of 100 queries are kept on photos not seen, with COCO panoptic classes only. `photos`
    are (H, W, 3) uint8; without them made images at half the published size calibrate it.
    """
    if photos is not None:
        images, keep = list(photos), 0.15
    else:  # photos are richer than made images: more of their queries pass the same bias
        images, keep = made_images(12, seed, 480) + flat_images(480), 0.08
    model = random_model(DetrConfig(), seed, images, COCO_PANOPTIC.ids, keep=keep, spread=4)
    torch.save({"model": OrderedDict(model.state_dict())}, path)


@torch.no_grad()
def random_model(
    config: DetrConfig,
    seed: int,
    images: Sequence[NDArray[np.uint8]],
    classes: Sequence[int],
    *,
    keep: float,
    spread: float,
) -> DetrPanoptic:
    """A model of random weights that keeps about a share `keep` of its queries on these images.

    classes: the class indices that it may answer with. spread: standard deviation of the class
    logits; the larger, the surer the model, and the more queries it keeps on other images.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a sum, and so the file, would depend on their number
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DetrPanoptic(config).eval()
        _tell_queries_apart(model)
        class_weights = torch.randn(len(classes), config.hidden_dim)
    inputs = [_to_input(image, config) for image in images]
    alike = [image for image in inputs if image.shape == inputs[0].shape]
    _calibrate_batch_norm(model, torch.cat(alike[:4]))
    batches = [torch.cat(alike), *[image for image in inputs if image.shape != inputs[0].shape]]
    embeddings = torch.cat([model.detect(batch).embeddings for batch in batches])  # (P, Q, d)
    _set_class_head(model.detr.class_embed, embeddings, class_weights, classes, keep, spread)
    torch.set_num_threads(threads)
    return model


def _tell_queries_apart(model: DetrPanoptic) -> None:
    dim = model.config.hidden_dim
    nn.init.normal_(model.detr.query_embed.weight)
    model.mask_head.scale_attention(200.0)
    model.bbox_attention.q_linear.weight *= 3  # attention maps with peaks
    for layer in model.detr.transformer.decoder.layers:
        # Queries differ only through where they look: sharpen it.
        for name in ("self_attn", "multihead_attn"):
            layer.get_submodule(name).get_parameter("in_proj_weight")[: 2 * dim] *= 8
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "transformer" in name and "norm" not in name:
            nn.init.normal_(parameter, std=0.02)  # zeros would hide a forgotten bias


def _calibrate_batch_norm(model: DetrPanoptic, images: Tensor) -> None:
    """Give every batch norm the statistics of its own input on these images."""

    def measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(norm, BatchNorm)
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3), unbiased=False) + 1e-3)

    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    model.detr.backbone[0](images, None)
    for handle in handles:
        handle.remove()


def _set_class_head(
    head: nn.Linear,
    embeddings: Tensor,
    weights: Tensor,
    classes: Sequence[int],
    keep: float,
    spread: float,
) -> None:
    """embeddings (P, Q, d) of calibration images, weights (len(classes), d) random."""
    centre = embeddings.mean((0, 1))
    # Weigh down the directions in which one query's embedding differs from image to image.
    within = (embeddings - embeddings.mean(0)).flatten(0, 1)  # (P * Q, d)
    values, directions = torch.linalg.eigh(within.T @ within / len(within))
    weights = weights @ directions / (values + 0.1 * values.mean()).sqrt() @ directions.T
    logits = (embeddings - centre) @ weights.T  # (P, Q, len(classes))
    weights = weights * (spread / logits.std())
    best = ((embeddings - centre) @ weights.T).amax(-1).flatten()
    head.weight.zero_()
    head.bias.fill_(-1e4)
    head.weight[list(classes)] = weights
    head.bias[list(classes)] = -(weights @ centre)
    head.bias[-1] = best.quantile(1 - keep)


def _to_input(image: NDArray[np.uint8], config: DetrConfig) -> Tensor:
    """(1, 3, h, w) at the published size, or at the image's own size where that is smaller."""
    size = min(config.size, min(image.shape[:2]))
    height, width = processed_size(*image.shape[:2], size=size, max_size=config.max_size)
    return normalize(resize(torch.from_numpy(image.copy())[None], (height, width)))


def made_images(count: int, seed: int, height: int) -> list[NDArray[np.uint8]]:
    """(height, 4/3 height, 3) uint8 "dead leaves": discs and boxes of all sizes cover one another.

    Their edges and their spectrum are those of photos, which matters when weights are calibrated
    on them.
    """
    rng = np.random.default_rng(seed)
    width = height * 4 // 3
    y, x = np.mgrid[0:height, 0:width]
    images = []
    for _ in range(count):
        image = np.broadcast_to(rng.uniform(0, 255, 3), (height, width, 3)).copy()
        brightness = rng.uniform(60, 200)
        for radius in np.sort(height * 0.02 * rng.random(int(rng.integers(5, 150))) ** -0.7)[::-1]:
            radius = min(radius, height / 2)
            cy, cx = rng.uniform(0, height), rng.uniform(0, width)
            rows = slice(max(0, int(cy - radius)), int(cy + radius) + 1)
            columns = slice(max(0, int(cx - radius)), int(cx + radius) + 1)
            dy, dx = y[rows, columns] - cy, x[rows, columns] - cx
            inside = dy**2 + dx**2 < radius**2 if rng.random() < 0.6 else abs(dx + dy) < radius
            leaf = rng.normal(brightness, 50) + rng.normal(0, 20, 3) + 20 * dy[..., None] / radius
            image[rows, columns][inside] = leaf[inside]
        image += rng.normal(0, 4, image.shape)
        images.append(image.clip(0, 255).astype(np.uint8))
    return images


def flat_images(height: int) -> list[NDArray[np.uint8]]:
    """(height, 4/3 height, 3) uint8 images of one grey each, black and white among them."""
    return [np.full((height, height * 4 // 3, 3), grey, np.uint8) for grey in (0, 85, 170, 255)]


def photos_in(folder: str | Path, count: int) -> list[NDArray[np.uint8]]:
    """The first `count` JPEGs of a folder as arrays, by name."""
    paths = sorted(Path(folder).glob("*.jpg"))[:count]
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]
