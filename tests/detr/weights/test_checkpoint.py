"""Weight files of every kind load to the same model; wrong ones are one sentence."""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from detr.categories import COCO_PANOPTIC, Categories, Category
from detr.config import RECIPES, DetrConfig, ModelError
from detr.models.detr import DetrPanoptic
from detr.weights.checkpoint import open_checkpoint, save
from detr.weights.hf_names import to_official
from tests.detr import hugging_face
from tests.random_weights import TINY_CATEGORIES, tiny_config, write_tiny

SEVEN = Categories(Category(10 * i, f"kind {i}", i < 5, (i, i, i)) for i in range(1, 8))


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return hugging_face.make(hugging_face.SMALL)


@pytest.fixture
def official(tmp_path: Path, reference: torch.nn.Module) -> Path:
    path = tmp_path / "mine.pth"
    torch.save({"model": OrderedDict(to_official(reference.state_dict()))}, path)
    return path


def message(path: Path, **options) -> str:
    with pytest.raises(ModelError) as raised:
        open_checkpoint(path, **options)
    text = str(raised.value)
    assert "\n" not in text
    return text


def assert_same(path: Path, reference: torch.nn.Module) -> None:
    found, expected = open_checkpoint(path, categories=SEVEN), to_official(reference.state_dict())
    weights = found.weights()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    DetrPanoptic(found.config).load_state_dict(weights)


def test_official_layout(official, reference):
    assert_same(official, reference)


def test_hugging_face_current_names_as_a_folder(tmp_path, reference):
    save_file(reference.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    assert_same(tmp_path, reference)
    assert_same(tmp_path / "model.safetensors", reference)


def test_hugging_face_legacy_names_as_a_pickle(tmp_path, reference):
    weights = hugging_face.legacy_names(reference.state_dict())
    assert "detr.model.backbone.conv_encoder.model.layer2.0.downsample.1.bias" in weights
    assert "mask_head.lay5.weight" in weights
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert_same(tmp_path, reference)


def test_our_own_file_carries_config_and_label_set(tmp_path):
    model = write_tiny(tmp_path / "tiny.safetensors")
    found = open_checkpoint(tmp_path / "tiny.safetensors")
    assert found.config == tiny_config()
    assert found.categories == TINY_CATEGORIES
    weights = found.weights()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_the_same_weights_give_the_same_file(tmp_path):
    for name in "ab":
        write_tiny(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_half_precision_files_load_as_float32(tmp_path):
    torch.manual_seed(0)
    model = DetrPanoptic(tiny_config()).half()
    save(model, tmp_path / "half.safetensors", tiny_config(), TINY_CATEGORIES)
    weights = open_checkpoint(tmp_path / "half.safetensors").weights()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_folded_model_is_not_saved(tmp_path):
    model = DetrPanoptic(tiny_config()).fold()
    with pytest.raises(ModelError, match=r"bn1\.weight"):
        save(model, tmp_path / "x.safetensors", tiny_config(), TINY_CATEGORIES)


def test_upstreams_own_training_checkpoints_load_and_tell_of_dilation(tmp_path, reference):
    content = {
        "model": to_official(reference.state_dict()),
        "epoch": 3,
        "args": argparse.Namespace(dilation=True),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    assert open_checkpoint(tmp_path / "checkpoint.pth", categories=SEVEN).config.dilation


def test_dc5_is_taken_from_the_file_name(official):
    renamed = official.with_name("my-DC5-model.pth")
    official.rename(renamed)
    assert open_checkpoint(renamed, categories=SEVEN).config.dilation


def test_dc5_is_taken_from_a_hugging_face_config(tmp_path, reference):
    save_file(reference.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"dilation": True}))
    assert open_checkpoint(tmp_path, categories=SEVEN).config.dilation


def test_the_published_number_of_classes_means_coco(tmp_path):
    torch.manual_seed(0)
    config = DetrConfig(block="basic", depths=(1, 1, 1, 1), widths=(8, 8, 8, 8), hidden_dim=128)
    torch.save({"model": DetrPanoptic(config).state_dict()}, tmp_path / "a.pth")
    assert open_checkpoint(tmp_path / "a.pth").categories is COCO_PANOPTIC


def test_a_file_under_a_published_name_must_have_its_hash(official):
    name = RECIPES["r101"].url.rsplit("/", 1)[1]
    official.rename(official.with_name(name))
    assert "40021d53" in message(official.with_name(name))


def test_a_recipe_must_have_its_hash_under_any_name(official):
    assert "should begin with 00ce5173" in message(official, recipe="r50")
    assert "r50-dc5" in message(official, recipe="r51")


def test_no_label_set(official):
    assert "7 classes and no label set" in message(official)


def test_a_label_set_of_another_size(official):
    assert "7 classes" in message(official, categories=_three())


def _three() -> Categories:
    return Categories(Category(i * 100, str(i), True, (0, 0, 0)) for i in range(1, 4))


def test_names_and_shapes_expected_and_found(tmp_path):
    weights = DetrPanoptic(tiny_config()).state_dict()
    weights["detr.input_proj.bias"] = torch.zeros(5)
    weights["extra"] = torch.zeros(1)
    del weights["mask_head.gn2.bias"]
    card = {
        "version": 1,
        "config": tiny_config().to_dict(),
        "categories": TINY_CATEGORIES.to_json(),
    }
    save_file(weights, tmp_path / "x.safetensors", {"detr_panoptic": json.dumps(card)})
    text = message(tmp_path / "x.safetensors")
    assert "1 missing: mask_head.gn2.bias" in text
    assert "1 unknown: extra" in text
    assert "detr.input_proj.bias (expected 32, found 5)" in text


def test_a_detector_without_masks(tmp_path, reference):
    weights = to_official(reference.state_dict())
    detector = {k.removeprefix("detr."): v for k, v in weights.items() if k.startswith("detr.")}
    torch.save({"model": detector}, tmp_path / "detr-r50.pth")
    assert "without a mask head" in message(tmp_path / "detr-r50.pth")


def test_another_network(tmp_path):
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "x.pth")
    assert "found layer.weight" in message(tmp_path / "x.pth")


def test_half_a_detr(tmp_path, reference):
    weights = to_official(reference.state_dict())
    whole = {name: w for name, w in weights.items() if "encoder.layers" not in name}
    torch.save({"model": whole}, tmp_path / "x.pth")
    assert "encoder" in message(tmp_path / "x.pth")


class Exploit:
    def __reduce__(self):
        return (Path.write_text, (Path("exploited"), "code of the file was executed"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>403</title>", "web page"),
        (b'{"error": "not found"}', "web page"),
        (b"\x80\x02garbage", "can't be read"),
        (b"\x00" * 100, "can't be read"),
        (b"PK\x03\x04 half a zip", "can't be read"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at al}", "damaged safetensors"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, expected):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert expected in message(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_files(tmp_path, official, share):
    whole = official.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(len(whole) * share)])
    assert "can't be read" in message(tmp_path / "cut.pth")


def test_truncated_safetensors(tmp_path):
    write_tiny(tmp_path / "tiny.safetensors")
    whole = (tmp_path / "tiny.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in message(tmp_path / "cut.safetensors")


def test_code_in_a_pickle_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Exploit()}, tmp_path / "evil.pth")
    assert "never loaded" in message(tmp_path / "evil.pth")
    assert not (tmp_path / "exploited").exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"model": {"a": 1}}, {"epoch": 3}])
def test_wrong_pickles(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    assert "holds no weights" in message(tmp_path / "x.pth")


def test_no_file_and_an_empty_folder(tmp_path):
    assert "no weights at" in message(tmp_path / "absent.pth")
    assert "model.safetensors" in message(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    metadata = {"detr_panoptic": json.dumps({"version": 99})}
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    assert "format 99" in message(tmp_path / "x.safetensors")
