"""The weights that other tests lean on keep what they promise."""

from pathlib import Path

import pytest
import torch

import detr
from detr.categories import COCO_PANOPTIC
from detr.inference.postprocess import choose
from detr.inference.preprocess import normalize, processed_size, resize
from detr.weights.checkpoint import open_checkpoint
from tests.random_weights import made_images, photos_in, write_official_r50, write_tiny

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "coco_val100" / "images"


def test_the_tiny_model_keeps_a_few_queries_on_images_not_seen(tmp_path):
    write_tiny(tmp_path / "tiny.safetensors")
    model = detr.load(tmp_path / "tiny.safetensors", device="cpu")
    answers = model.segment(made_images(20, 99, 128))
    counts = [len(panoptic.segments) for panoptic in answers]
    assert sum(count > 0 for count in counts) >= 18
    assert 2 <= sum(counts) / len(counts) <= 12
    assert {s.category_id for panoptic in answers for s in panoptic.segments} == {1, 2, 3, 4, 5}


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}")
@torch.inference_mode()
@pytest.mark.slow(seconds=30)
def test_the_official_layout_keeps_1_to_36_queries_on_photos(tmp_path):
    write_official_r50(tmp_path / "r50.pth")
    checkpoint = open_checkpoint(tmp_path / "r50.pth")
    assert checkpoint.config == detr.DetrConfig()
    model = detr.DetrPanoptic(checkpoint.config)
    model.load_state_dict(checkpoint.weights())
    model.fold()
    for photo in photos_in(PHOTOS, 3):
        size = processed_size(*photo.shape[:2])
        image = normalize(resize(torch.from_numpy(photo)[None], size))
        _, labels, keep = choose(model.detect(image).logits[-1], 0.85)
        assert 1 <= int(keep.sum()) <= 36
        assert set(labels[keep].tolist()) <= set(COCO_PANOPTIC.ids)
