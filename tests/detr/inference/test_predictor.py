"""Images in, maps out: the same answer in any company, and the plain forward's answer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detr
from detr.inference import steps
from detr.inference.postprocess import merge
from detr.inference.preprocess import ImageError, normalize, resize
from detr.panoptic import Panoptic
from detr.weights.checkpoint import open_checkpoint
from tests.random_weights import made_images, write_tiny


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_tiny(path)
    return path


@pytest.fixture(scope="module")
def model(weights: Path) -> detr.Predictor:
    return detr.load(weights, device="cpu")


def images_of_sizes() -> list[np.ndarray]:
    """Nine images of four sizes, two of which are processed at the same size (96 x 128)."""
    made = made_images(9, 7, 120)
    sizes = [(120, 160), (90, 120), (160, 120), (120, 160), (97, 131), (90, 120), (120, 160)]
    sizes += [(120, 160), (90, 120)]
    return [
        np.array(Image.fromarray(image).resize((width, height)))
        for image, (height, width) in zip(made, sizes, strict=True)
    ]


def assert_equal(one: Panoptic, other: Panoptic) -> None:
    assert np.array_equal(one.segment_map, other.segment_map)
    assert one.segments == other.segments  # scores too, to the bit


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_an_image_has_the_same_answer_alone_and_among_others(weights, model, batch_size):
    images = images_of_sizes()
    alone = [model.segment([image])[0] for image in images]
    assert sum(len(panoptic.segments) for panoptic in alone) > 9
    batched = detr.load(weights, device="cpu", batch_size=batch_size)
    for order in (list(range(9)), [5, 2, 8, 0, 7, 1, 4, 3, 6]):
        answers = batched.segment([images[index] for index in order])
        for index, answer in zip(order, answers, strict=True):
            assert_equal(answer, alone[index])


@torch.no_grad()
def test_the_answer_is_the_training_forwards(weights, model):
    """All masks of the unfolded model, of which the kept ones are merged."""
    checkpoint = open_checkpoint(weights)
    plain = detr.DetrPanoptic(checkpoint.config).eval()
    plain.load_state_dict(checkpoint.weights())
    for image in made_images(3, 11, 120):
        out = plain(normalize(resize(torch.from_numpy(image)[None], (96, 128))))
        scores, labels = out.logits[0].softmax(-1).max(-1)
        kept = ((labels != len(model.categories)) & (scores > 0.85)).nonzero()[:, 0]
        expected = merge(
            out.mask_logits[0, kept],
            [model.categories[int(label)].id for label in labels[kept]],
            scores[kept].tolist(),
            categories=model.categories,
            processed_size=(96, 128),
            original_size=(120, 160),
        )
        found = model.segment([image])[0]
        assert len(found.segments) > 1
        for ours, plainly in zip(found.segments, expected.segments, strict=True):
            assert (ours.id, ours.category_id) == (plainly.id, plainly.category_id)
            assert ours.score == pytest.approx(plainly.score, abs=1e-4)
        assert (found.segment_map == expected.segment_map).mean() > 0.998


def test_paths_pil_images_and_arrays_are_the_same(model, tmp_path):
    image = made_images(1, 3, 120)[0]
    Image.fromarray(image).save(tmp_path / "a.png")
    palette = Image.fromarray(image).convert("RGBA")
    answers = model.segment([image, Image.fromarray(image), tmp_path / "a.png", palette])
    for answer in answers[1:]:
        assert_equal(answer, answers[0])


def test_the_map_has_the_images_own_size(model):
    for panoptic, image in zip(model.segment(images_of_sizes()), images_of_sizes(), strict=True):
        assert panoptic.segment_map.shape == image.shape[:2]
        assert set(np.unique(panoptic.segment_map)) <= {0, *[s.id for s in panoptic.segments]}


def test_nothing_kept_is_an_empty_map(weights):
    strict = detr.load(weights, device="cpu", threshold=0.9999999)
    panoptic = strict.segment([made_images(1, 0, 96)[0]])[0]
    assert panoptic.segments == ()
    assert not panoptic.segment_map.any()


def test_a_read_only_array_is_taken_without_a_warning(model, recwarn):
    image = made_images(1, 3, 120)[0]
    image.setflags(write=False)
    model.segment([image])
    assert not recwarn


def test_masks_in_chunks_are_the_masks_at_once(weights, model, monkeypatch):
    images = made_images(2, 5, 120)
    expected = model.segment(images)
    monkeypatch.setitem(steps._MASK_BYTES, "cpu", 1)  # one query at a time
    for one, other in zip(model.segment(images), expected, strict=True):
        assert [s.category_id for s in one.segments] == [s.category_id for s in other.segments]
        assert (one.segment_map == other.segment_map).mean() > 0.998


def test_size_quantum_rounds_the_processed_size(weights):
    quantised = detr.load(weights, device="cpu", size_quantum=32)
    assert quantised.processed_size(100, 145) == (96, 128)
    [panoptic] = quantised.segment([np.zeros((100, 145, 3), np.uint8)])
    assert panoptic.segment_map.shape == (100, 145)


def test_a_map_may_have_the_size_that_the_model_saw_or_a_quarter_of_it(weights, model):
    image = made_images(1, 3, 240)[0]  # seen at 96 x 128
    [whole] = model.segment([image])
    [seen] = detr.load(weights, device="cpu", output_size="processed").segment([image])
    [quarter] = detr.load(weights, device="cpu", output_size="quarter").segment([image])
    assert [p.segment_map.shape for p in (whole, seen, quarter)] == [
        (240, 320),
        (96, 128),
        (24, 32),
    ]
    # They differ where a segment is too small for one of the maps, and at borders.
    nearest = Image.fromarray(np.ascontiguousarray(seen.segment_map)).resize((320, 240), 0)
    assert [s.category_id for s in seen.segments] == [s.category_id for s in whole.segments]
    assert (np.asarray(nearest) == whole.segment_map).mean() > 0.97


def test_an_image_decoded_smaller_gets_the_map_of_its_file(model):
    image = made_images(1, 3, 240)[0]
    half = np.asarray(Image.fromarray(image).resize((160, 120)))
    [panoptic] = model.segment([half], [(240, 320)])
    assert panoptic.segment_map.shape == (240, 320)


@pytest.mark.parametrize(
    "heights", [[96], pytest.param([96, 120], marks=pytest.mark.slow(seconds=15))]
)
def test_a_compiled_detector_answers_alike(weights, model, monkeypatch, heights):
    # Traced as for inductor, whose C++ would take half a minute to compile.
    plain = detr.DetrPanoptic.compile_detector
    monkeypatch.setattr(
        detr.DetrPanoptic, "compile_detector", lambda self: plain(self, backend="aot_eager")
    )
    compiled = detr.load(weights, device="cpu", compile=True)
    for height in heights:
        image = made_images(1, 3, height)[0]
        [one], [other] = compiled.segment([image]), model.segment([image])
        assert [s.category_id for s in one.segments] == [s.category_id for s in other.segments]
        assert (one.segment_map == other.segment_map).mean() > 0.99


def test_bf16_on_a_cpu_keeps_the_classes(weights, model):
    half = detr.load(weights, device="cpu", dtype="bf16")
    images = made_images(3, 5, 120)
    for one, other in zip(half.segment(images), model.segment(images), strict=True):
        ours = {s.category_id for s in one.segments}
        theirs = {s.category_id for s in other.segments}
        assert len(ours ^ theirs) <= 1


def test_an_image_that_is_too_thin(model):
    with pytest.raises(ImageError):
        model.segment([np.zeros((1, 10_000, 3), np.uint8)])


@pytest.mark.parametrize("shape", [(10, 10), (10, 10, 4), (3, 10, 10)])
def test_arrays_that_are_no_rgb(model, shape):
    with pytest.raises(ValueError, match="RGB"):
        model.segment([np.zeros(shape, np.uint8)])


def test_no_images(model):
    assert model.segment([]) == []
