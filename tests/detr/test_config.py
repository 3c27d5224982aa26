"""DetrConfig: what it derives, what it refuses, that it survives JSON."""

import json

import pytest

from detr.config import RECIPES, DetrConfig, ModelError


def test_the_defaults_are_the_published_r50():
    config = DetrConfig()
    assert config.backbone == "resnet50"
    assert config.stage_channels == (256, 512, 1024, 2048)
    assert config.stage_strides == (4, 8, 16, 32)
    assert config.mask_widths == (264, 128, 64, 32, 16)


def test_dilation_keeps_the_last_stride():
    assert RECIPES["r50-dc5"].config.stage_strides == (4, 8, 16, 16)


def test_recipes_name_their_files():
    assert {name: recipe.url.rsplit("/", 1)[1] for name, recipe in RECIPES.items()} == {
        "r50": "detr-r50-panoptic-00ce5173.pth",
        "r50-dc5": "detr-r50-dc5-panoptic-da08f1b1.pth",
        "r101": "detr-r101-panoptic-40021d53.pth",
    }
    assert all(recipe.sha256_prefix in recipe.url for recipe in RECIPES.values())


def test_json_gives_an_equal_config_back():
    config = DetrConfig(block="basic", depths=(1, 2, 1, 1), hidden_dim=128, size=96, max_size=128)
    assert DetrConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_fields_are_refused_by_name():
    with pytest.raises(ModelError, match="colour"):
        DetrConfig.from_dict({"colour": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block", "wide"),
        ("depths", (3, 4, 6)),
        ("widths", (64, 0, 1, 1)),
        ("stem_stride", 3),
        ("hidden_dim", 100),
        ("nheads", 7),
        ("num_queries", 0),
        ("max_size", 100),
        ("mask_groups", 3),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ModelError, match=field):
        DetrConfig(**{field: value})


def test_mask_groups_must_divide_the_narrow_widths_of_small_models():
    with pytest.raises(ModelError, match=r"mask_groups \(8\)"):
        DetrConfig(hidden_dim=64)
    assert DetrConfig(hidden_dim=64, mask_groups=4).mask_widths == (72, 32, 16, 8, 4)
