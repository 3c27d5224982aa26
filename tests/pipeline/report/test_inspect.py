"""The inspected way is the model's own: same masks, same map, the shapes of the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import detr
from detr.inference.predictor import Predictor
from detr.inference.preprocess import normalize, resize
from pipeline.errors import UserError
from pipeline.report.inspect import inspect_image
from pipeline.report.inspect_page import render_inspect
from tests.random_weights import made_images


@pytest.fixture(scope="module")
def tiny(tiny_weights: Path) -> Predictor:
    return detr.load(tiny_weights, device="cpu")


@pytest.mark.parametrize("seed", range(3))
def test_the_map_is_that_of_a_run(tiny: Predictor, seed: int) -> None:
    [image] = made_images(1, seed, 120)
    seen = inspect_image(tiny, image)
    [expected] = tiny.segment([image])
    np.testing.assert_array_equal(seen.panoptic.segment_map, expected.segment_map)
    assert seen.panoptic.segments == expected.segments


def test_the_mask_head_as_drawn_gives_the_masks_that_the_engine_computes(tiny: Predictor) -> None:
    [image] = made_images(1, 5, 120)
    seen = inspect_image(tiny, image, queries=16)
    assert seen.kept == len(seen.queries) > 0
    inputs = normalize(resize(torch.from_numpy(image)[None], seen.processed_size))
    with torch.inference_mode():
        found = tiny.model.detect(inputs)
        for query in seen.queries:
            index = torch.tensor([query.query])
            engine = tiny.model.mask_logits(found, torch.zeros_like(index), index)[0]
            np.testing.assert_allclose(query.logits, engine, rtol=1e-3, atol=1e-3)
            assert query.attention.sum() == pytest.approx(1, abs=1e-5)


def test_an_image_without_a_sure_query_still_has_every_shape(tiny_weights: Path) -> None:
    model = detr.load(tiny_weights, device="cpu")
    model.threshold = 1.0  # `load` refuses it: nothing can be surer
    seen = inspect_image(model, made_images(1, 0, 100)[0])
    assert (seen.kept, seen.queries, seen.panoptic.segments) == (0, (), ())
    shapes = {stage.name: stage.shape for stage in seen.stages}
    assert shapes["kept queries"] == (0,)
    assert len(shapes["Res5 + attention"]) == 4
    page = render_inspect(seen, model.categories, photo="a.jpg", weights="tiny").decode()
    assert "No query was kept" in page


def test_a_sliver_is_refused_in_a_sentence(tiny: Predictor) -> None:
    with pytest.raises(UserError, match="too_thin"):
        inspect_image(tiny, np.zeros((1, 5000, 3), np.uint8))


def test_the_shapes_of_r50_on_a_640_x_480_photo(official_weights: Path) -> None:
    """Those of the published model at 800 x 1066."""
    model = detr.load(official_weights, device="cpu")
    seen = inspect_image(model, made_images(1, 1, 480)[0], queries=2)
    shapes = {stage.name: stage.shape for stage in seen.stages}
    kept = seen.kept
    assert shapes == {
        "photo": (480, 640, 3),
        "input": (1, 3, 800, 1066),
        "Res2": (1, 256, 200, 267),
        "Res2 mask": (1, 200, 267),
        "Res2 position": (1, 256, 200, 267),
        "Res3": (1, 512, 100, 134),
        "Res3 mask": (1, 100, 134),
        "Res3 position": (1, 256, 100, 134),
        "Res4": (1, 1024, 50, 67),
        "Res4 mask": (1, 50, 67),
        "Res4 position": (1, 256, 50, 67),
        "Res5": (1, 2048, 25, 34),
        "Res5 mask": (1, 25, 34),
        "Res5 position": (1, 256, 25, 34),
        "projected Res5": (1, 256, 25, 34),
        "tokens": (1, 850, 256),
        "encoded image": (1, 256, 25, 34),
        "box embeddings": (1, 100, 256),
        "class logits": (1, 100, 251),
        "boxes": (1, 100, 4),
        "kept queries": (kept,),
        "attention maps": (100, 8, 25, 34),
        "Res5 + attention": (kept, 264, 25, 34),
        "convolution 1": (kept, 264, 25, 34),
        "convolution 2": (kept, 128, 25, 34),
        "enlarged + Res4": (kept, 128, 50, 67),
        "convolution 3": (kept, 64, 50, 67),
        "enlarged + Res3": (kept, 64, 100, 134),
        "convolution 4": (kept, 32, 100, 134),
        "enlarged + Res2": (kept, 32, 200, 267),
        "convolution 5": (kept, 16, 200, 267),
        "mask logits": (kept, 1, 200, 267),
        "map of the logits": (200, 267),
        "panoptic map": (480, 640),
        "segments": (len(seen.panoptic.segments),),
    }
