"""The ResNet against torchvision's, its masks, and its batch norm."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detr.config import DetrConfig
from detr.models.backbone import Backbone, BatchNorm, ResNet


def randomise(module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 1:
            tensor.normal_(std=0.2) if name.endswith(("bias", "mean")) else tensor.uniform_(
                0.3, 0.7
            )


def stages(reference: nn.Module, x: Tensor) -> list[Tensor]:
    found = []
    for name, child in reference.named_children():
        if name == "avgpool":
            break
        x = child(x)
        if name.startswith("layer"):
            found.append(x)
    return found


@pytest.mark.parametrize(
    ("config", "name", "options"),
    [
        (DetrConfig(), "resnet50", {}),
        (DetrConfig(dilation=True), "resnet50", {"replace_stride_with_dilation": [0, 0, 1]}),
        (DetrConfig(block="basic", depths=(2, 2, 2, 2)), "resnet18", {}),
    ],
    ids=["r50", "r50-dc5", "basic"],
)
@torch.no_grad()
def test_features_are_torchvisions(config, name, options):
    torch.manual_seed(0)
    reference = getattr(torchvision.models, name)(
        weights=None, norm_layer=FrozenBatchNorm2d, **options
    )
    body = ResNet(config).eval()
    randomise(body)
    reference.load_state_dict(body.state_dict(), strict=False)
    images = torch.randn(1, 3, 75, 98)
    for ours, theirs in zip(body(images), stages(reference, images), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@torch.no_grad()
def test_sizes_of_the_published_model_at_a_padded_batch():
    sizes = [(219, 265), (110, 133), (55, 67), (28, 34)]
    padding = torch.ones(2, 876, 1060, dtype=torch.bool)
    padding[0, :800, :1060] = False
    padding[1, :876, :900] = False
    backbone = Backbone(DetrConfig())
    with torch.inference_mode():
        features = backbone(torch.zeros(2, 3, 876, 1060), padding)
    channels = (256, 512, 1024, 2048)
    for feature, size, width in zip(features, sizes, channels, strict=True):
        assert feature.tensors.shape == (2, width, *size)
        assert feature.padding is not None
        assert feature.padding.shape == (2, *size)
    assert features[3].padding is not None
    assert torch.equal(
        features[3].padding, F.interpolate(padding[None].float(), size=(28, 34))[0].bool()
    )


def test_a_stem_of_stride_two_doubles_every_map():
    config = DetrConfig(block="basic", depths=(1, 1, 1, 1), widths=(8, 8, 8, 8), stem_stride=2)
    sizes = [tuple(x.shape[-2:]) for x in ResNet(config)(torch.zeros(1, 3, 64, 96))]
    assert sizes == [(32, 48), (16, 24), (8, 12), (4, 6)]


def test_unfrozen_batch_norm_learns_statistics_as_torch_does():
    ours, reference = BatchNorm(5, frozen=False), nn.BatchNorm2d(5)
    x = torch.randn(4, 5, 6, 7) * 3 + 1
    assert torch.allclose(ours(x), reference(x), atol=1e-6)
    assert reference.running_var is not None
    assert torch.allclose(ours.running_var, reference.running_var)
    assert torch.allclose(ours.eval()(x), reference.eval()(x), atol=1e-6)


def test_frozen_batch_norm_has_nothing_to_learn():
    norm = BatchNorm(5, frozen=True)
    norm(torch.randn(4, 5, 6, 7))
    assert torch.equal(norm.running_mean, torch.zeros(5))
    assert not any(parameter.requires_grad for parameter in norm.parameters())
