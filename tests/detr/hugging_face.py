"""transformers' DetrForSegmentation with random weights, made in memory: the parity oracle.

transformers takes ten seconds to import, which no worker pays that runs none of these tests.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detr.weights.hf_names import official_name

if TYPE_CHECKING:
    from transformers import DetrForSegmentation

SMALL: dict[str, Any] = {
    "depths": [2, 1, 1, 1],
    "hidden_sizes": [32, 64, 96, 128],
    "stem": 8,
    "d_model": 128,
    "layers": 2,
    "ffn": 96,
    "queries": 9,
    "classes": 7,
}
R50: dict[str, Any] = {
    "depths": [3, 4, 6, 3],
    "hidden_sizes": [256, 512, 1024, 2048],
    "stem": 64,
    "d_model": 256,
    "layers": 6,
    "ffn": 2048,
    "queries": 100,
    "classes": 250,
}


@torch.no_grad()
def make(sizes: dict[str, Any], seed: int = 0) -> DetrForSegmentation:
    """A model in eval mode; every weight, bias and batch-norm statistic is random."""
    from transformers import DetrConfig as HfConfig
    from transformers import DetrForSegmentation, ResNetConfig

    # As dicts: the configs take more than their signatures tell a type checker.
    backbone = {
        "embedding_size": sizes["stem"],
        "hidden_sizes": sizes["hidden_sizes"],
        "depths": sizes["depths"],
        "layer_type": "bottleneck",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    options = {
        "use_timm_backbone": False,
        "backbone": None,
        "backbone_config": ResNetConfig(**backbone),
        "num_labels": sizes["classes"],
        "d_model": sizes["d_model"],
        "encoder_layers": sizes["layers"],
        "decoder_layers": sizes["layers"],
        "encoder_ffn_dim": sizes["ffn"],
        "decoder_ffn_dim": sizes["ffn"],
        "num_queries": sizes["queries"],
    }
    config = HfConfig(**options)
    torch.manual_seed(seed)
    model = DetrForSegmentation(config).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 1:  # biases, norms and running means, all constant as initialised
            tensor.add_(torch.randn_like(tensor) * 0.1)
        elif "query_position" in name:
            tensor.normal_()
    return model


def legacy_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that transformers before 5.0 wrote, with the backbone under timm's names."""
    layer = {"convolution": "conv", "normalization": "bn"}
    renamed = {}
    for name, tensor in weights.items():
        new = name.replace("backbone.model.", "backbone.conv_encoder.model.")
        new = new.replace("embedder.embedder.convolution", "conv1")
        new = new.replace("embedder.embedder.normalization", "bn1")
        if ".encoder.stages." in new:
            head, tail = new.split(".encoder.stages.")
            stage, _, block, *rest = tail.split(".")
            if rest[0] == "shortcut":
                part = f"downsample.{int(rest[1] == 'normalization')}"
            else:
                part = f"{layer[rest[2]]}{int(rest[1]) + 1}"
            new = f"{head}.layer{int(stage) + 1}.{block}.{part}.{rest[-1]}"
        new = new.replace(".o_proj.", ".out_proj.").replace(".mlp.fc", ".fc")
        new = new.replace("bbox_attention.q_proj", "bbox_attention.q_linear")
        new = new.replace("bbox_attention.k_proj", "bbox_attention.k_linear")
        for number in (1, 2):
            new = new.replace(f"mask_head.conv{number}.conv.", f"mask_head.lay{number}.")
            new = new.replace(f"mask_head.conv{number}.norm.", f"mask_head.gn{number}.")
        for index in range(3):
            stage = f"mask_head.fpn_stages.{index}"
            new = new.replace(f"{stage}.fpn_adapter.", f"mask_head.adapter{index + 1}.")
            new = new.replace(f"{stage}.refine.conv.", f"mask_head.lay{index + 3}.")
            new = new.replace(f"{stage}.refine.norm.", f"mask_head.gn{index + 3}.")
        renamed[new.replace("mask_head.output_conv.", "mask_head.out_lay.")] = tensor
    return renamed


def from_official(weights: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under transformers' current names; `like` is its own state_dict.

    Follows the product's mapping backwards, name by name; the parity tests say that it is right.
    """
    found = {}
    for name in like:
        official = official_name(name)
        match = re.search(r"\.([qkv])_proj\.(weight|bias)$", official)
        if match:
            joined = weights[f"{official[: match.start()]}.in_proj_{match[2]}"]
            found[name] = joined.chunk(3)["qkv".index(match[1])]
        else:
            found[name] = weights[official]
    return found
