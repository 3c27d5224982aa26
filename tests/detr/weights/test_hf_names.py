"""Names of both transformers generations become the published ones."""

import torch

from detr.weights.hf_names import is_hugging_face, official_name, to_official
from tests.detr import hugging_face


def test_current_names():
    pairs = {
        "detr.model.backbone.model.encoder.stages.2.layers.5.layer.1.convolution.weight": (
            "detr.backbone.0.body.layer3.5.conv2.weight"
        ),
        "detr.model.backbone.model.layer3.5.conv2.weight": (
            "detr.backbone.0.body.layer3.5.conv2.weight"
        ),
        "detr.model.encoder.layers.3.final_layer_norm.bias": (
            "detr.transformer.encoder.layers.3.norm2.bias"
        ),
        "detr.model.decoder.layers.3.final_layer_norm.bias": (
            "detr.transformer.decoder.layers.3.norm3.bias"
        ),
        "detr.model.decoder.layers.0.encoder_attn.o_proj.weight": (
            "detr.transformer.decoder.layers.0.multihead_attn.out_proj.weight"
        ),
        "detr.model.decoder.layernorm.weight": "detr.transformer.decoder.norm.weight",
        "detr.bbox_predictor.layers.2.bias": "detr.bbox_embed.layers.2.bias",
        "mask_head.fpn_stages.2.refine.norm.weight": "mask_head.gn5.weight",
    }
    assert {name: official_name(name) for name in pairs} == pairs


def test_legacy_names():
    pairs = {
        "detr.model.backbone.conv_encoder.model.layer1.0.downsample.1.running_var": (
            "detr.backbone.0.body.layer1.0.downsample.1.running_var"
        ),
        "detr.model.encoder.layers.0.fc1.weight": (
            "detr.transformer.encoder.layers.0.linear1.weight"
        ),
        "bbox_attention.q_linear.weight": "bbox_attention.q_linear.weight",
        "mask_head.lay1.bias": "mask_head.lay1.bias",
    }
    assert {name: official_name(name) for name in pairs} == pairs


def test_projections_are_joined_in_the_order_q_k_v():
    prefix = "detr.model.encoder.layers.0.self_attn"
    weights = {
        f"{prefix}.{letter}_proj.weight": torch.full((2, 2), float(number))
        for letter, number in (("v", 3), ("q", 1), ("k", 2))
    }
    joined = to_official(weights)["detr.transformer.encoder.layers.0.self_attn.in_proj_weight"]
    assert joined[:, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_a_lone_projection_is_left_out_so_that_the_check_names_it():
    name = "detr.model.encoder.layers.0.self_attn.q_proj.weight"
    assert to_official({name: torch.zeros(2, 2)}) == {}


def test_counters_of_batch_norm_are_dropped():
    name = "detr.model.backbone.conv_encoder.model.bn1.num_batches_tracked"
    assert to_official({name: torch.tensor(3)}) == {}


def test_the_published_names_are_not_taken_for_hugging_face():
    assert not is_hugging_face({"detr.class_embed.weight": 0})
    assert is_hugging_face({"detr.model.input_projection.weight": 0})


def test_a_whole_model_goes_there_and_back():
    weights = hugging_face.make(hugging_face.SMALL).state_dict()
    back = hugging_face.from_official(to_official(weights), weights)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
