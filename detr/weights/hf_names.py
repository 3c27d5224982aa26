"""Names of weights: from both naming schemes of transformers to the published files' names.

The published names are those of `DetrPanoptic.state_dict()`, so an official file needs no mapping.
transformers has an older and a newer scheme for `DetrForSegmentation` (before and since 5.0), three
attention projections instead of one, and backbones under the names of timm or of its own ResNet.
All names are regular, so a few rules rewrite them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Applied in order to every name. Where it is shorter, an older name becomes a newer one first.
_RULES: tuple[tuple[str, str], ...] = (
    (r"^detr\.model\.", "detr."),
    # Backbone: `conv_encoder` is of the older scheme
    (r"^detr\.backbone\.(conv_encoder\.)?model\.", "detr.backbone.0.body."),
    (r"\.body\.embedder\.embedder\.convolution\.", ".body.conv1."),
    (r"\.body\.embedder\.embedder\.normalization\.", ".body.bn1."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    # Transformer
    (r"^detr\.(encoder|decoder)\.", r"detr.transformer.\1."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.(mlp\.)?fc([12])\.", r".linear\2."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"\.decoder\.layernorm\.", ".decoder.norm."),
    # Ends
    (r"^detr\.input_projection\.", "detr.input_proj."),
    (r"^detr\.query_position_embeddings\.", "detr.query_embed."),
    (r"^detr\.class_labels_classifier\.", "detr.class_embed."),
    (r"^detr\.bbox_predictor\.", "detr.bbox_embed."),
    (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
    (r"^mask_head\.conv([12])\.conv\.", r"mask_head.lay\1."),
    (r"^mask_head\.conv([12])\.norm\.", r"mask_head.gn\1."),
    (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
)
_STAGE = re.compile(r"\.body\.encoder\.stages\.(\d+)\.layers\.(\d+)\.")
_CONVOLUTION = re.compile(r"\.layer\.(\d+)\.(convolution|normalization)\.")
_FPN = re.compile(r"^mask_head\.fpn_stages\.(\d+)\.(fpn_adapter|refine\.conv|refine\.norm)\.")
_PROJECTION = re.compile(r"\.([qkv])_proj\.(weight|bias)$")


def is_hugging_face(names: Mapping[str, object]) -> bool:
    """True where a file's names are transformers' rather than the published ones."""
    return any(name.startswith("detr.model.") for name in names)


def official_name(name: str) -> str:
    """The published name of a transformers weight; `to_official` joins `{q,k,v}_proj` later."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    name = _STAGE.sub(lambda m: f".body.layer{int(m[1]) + 1}.{m[2]}.", name)
    name = _CONVOLUTION.sub(
        lambda m: f".{'conv' if m[2] == 'convolution' else 'bn'}{int(m[1]) + 1}.", name
    )
    return _FPN.sub(_fpn_name, name)


def _fpn_name(match: re.Match[str]) -> str:
    index = int(match[1])
    part = {
        "fpn_adapter": f"adapter{index + 1}",
        "refine.conv": f"lay{index + 3}",
        "refine.norm": f"gn{index + 3}",
    }[match[2]]
    return f"mask_head.{part}."


def to_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' weights under the published names, q, k and v joined into `in_proj`.

    Counters of batch norm (`num_batches_tracked`) are not used and left out.
    """
    official: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if name.endswith(".num_batches_tracked"):
            continue
        renamed = official_name(name)
        match = _PROJECTION.search(renamed)
        if match:
            joined = f"{renamed[: match.start()]}.in_proj_{match[2]}"
            parts.setdefault(joined, {})[match[1]] = tensor
        else:
            official[renamed] = tensor
    for joined, projections in parts.items():
        if set(projections) == set("qkv"):
            official[joined] = torch.cat([projections[letter] for letter in "qkv"])
        # otherwise `checkpoint._check_shapes` reports the joined name as missing
    return official
