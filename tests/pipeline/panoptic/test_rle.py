"""RLE against pycocotools, byte for byte, and strings that must be refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from pipeline.panoptic import rle


@st.composite
def label_maps(draw: st.DrawFn) -> NDArray[Any]:
    height = draw(st.integers(1, 40))
    width = draw(st.sampled_from([1, 2, 7, 8, 9, 63, 64, 65, 130]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = draw(st.integers(1, 6))
    if draw(st.booleans()):
        blocks = rng.integers(0, labels + 1, (-(-height // 5), -(-width // 7)))
        made = blocks.repeat(5, axis=0).repeat(7, axis=1)[:height, :width]
    else:
        made = rng.integers(0, labels + 1, (height, width))
    dtype = draw(st.sampled_from(["u1", "i2", "u2", "i4", "u4", "i8"]))
    if dtype[1] in "48":
        made = made * draw(st.sampled_from([1, 170, 513, 2**20 + 7]))
    order = draw(st.sampled_from(["C", "F"]))
    return np.array(made, dtype=dtype, order=order)  # type: ignore[call-overload]


def reference(segment_map: NDArray[Any], ids: list[int]) -> list[Any]:
    return [coco.encode(np.asfortranarray(segment_map == i)) for i in ids]


def ids_of(segment_map: NDArray[Any]) -> list[int]:
    return [int(i) for i in np.unique(segment_map) if i]


@settings(max_examples=300, deadline=None)
@given(label_maps())
def test_encodes_as_pycocotools_does(segment_map: NDArray[Any]) -> None:
    ids = ids_of(segment_map)[::-1]
    encoded = rle.encode(segment_map, ids)
    expected = reference(segment_map, ids)
    assert encoded.counts == [e["counts"].decode() for e in expected]
    assert encoded.area.tolist() == [int(coco.area(e)) for e in expected]
    assert encoded.bbox.tolist() == [coco.toBbox(e).astype(int).tolist() for e in expected]


@settings(max_examples=200, deadline=None)
@given(label_maps())
def test_decodes_what_it_encodes(segment_map: NDArray[Any]) -> None:
    ids = ids_of(segment_map)
    counts = [e["counts"].decode() for e in reference(segment_map, ids)]
    assert (rle.decode(counts, *segment_map.shape, ids=ids) == segment_map).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_encodes_ids_of_any_width_sparse_and_zero(order: Any) -> None:
    segment_map = np.array([[2**24 - 1, 0], [2**31 + 5, 0], [7, 2**24 - 1]], np.int64, order=order)
    ids = [2**31 + 5, 0, 2**24 - 1]  # 7 isn't asked for: it is void
    expected = [e["counts"].decode() for e in reference(segment_map, ids)]
    assert rle.encode(segment_map, ids).counts == expected


def test_encodes_views_and_busy_maps() -> None:
    """Every pixel another run: more runs than the first guess has room for."""
    busy = np.indices((301, 203)).sum(axis=0) % 2 + 1
    for segment_map in (busy, busy[::-1, ::-1], busy[:, ::3], busy.astype(np.uint8).T):
        expected = [e["counts"].decode() for e in reference(segment_map, [1, 2])]
        assert rle.encode(segment_map, [1, 2]).counts == expected


def test_encodes_masks() -> None:
    mask = np.array([[False, True], [True, True]])
    [expected] = reference(mask, [1])
    assert rle.encode(mask, [1]).counts == [expected["counts"].decode()]


def test_encodes_no_ids() -> None:
    encoded = rle.encode(np.zeros((3, 4), dtype=np.uint8), [])
    assert (encoded.counts, encoded.area.shape, encoded.bbox.shape) == ([], (0,), (0, 4))


def test_encodes_runs_directly() -> None:
    segment_map = np.array([[1, 2, 2], [1, 1, 2]])
    starts, values = rle.runs(segment_map)
    assert (starts.tolist(), values.tolist()) == ([0, 2, 3, 4], [1, 2, 1, 2])
    assert (
        rle.encode_runs(starts, values, 2, 3, [1, 2]).counts
        == rle.encode(segment_map, [1, 2]).counts
    )


def test_the_empty_mask_is_pycocotools_own() -> None:
    for height, width in ((1, 1), (4, 4), (480, 640), (5000, 7000)):
        [empty] = reference(np.zeros((height, width), dtype=np.uint8, order="F"), [1])
        assert rle.empty_counts(height, width) == empty["counts"].decode()


@pytest.mark.parametrize(
    ("ids", "message"),
    [([1, 5], "segment 5 has no pixels"), ([1, 1], "ids must be distinct")],
)
def test_refuses_to_encode(ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.encode(np.ones((2, 2), dtype=np.int32), ids)


@pytest.mark.parametrize("made", [np.ones((2, 2, 1), int), np.ones((2, 2)), np.ones((0, 3), int)])
def test_refuses_what_is_no_map(made: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="segment_map must be"):
        rle.encode(made, [1])


def coco_number(value: int) -> str:
    """One number by COCO's published rule, for building strings by hand."""
    text = ""
    while True:
        bits, value = value & 31, value >> 5
        more = value != (-1 if bits & 16 else 0)
        text += chr(48 + bits + 32 * more)
        if not more:
            return text


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("0P", "the RLE string ends inside a number"),
        ("0/", "the RLE string has a bad character at byte 1"),
        ("0 6", "the RLE string has a bad character at byte 1"),
        ("0é", "the RLE string has a bad character at byte 0"),
        ("0p", "the RLE string has a bad character at byte 1"),
        ("0" + "o" * 12 + "0", "a number beyond 32 bits"),
        (coco_number(3) + coco_number(-2) + coco_number(5), "run 1 of the RLE is negative"),
        (coco_number(-1), "run 0 of the RLE is negative"),
        ("".join(map(coco_number, (1, 2, 1, -3))), "run 3 of the RLE is negative"),
        (coco_number(0) + coco_number(7), "runs past the end of its 2 x 3 image"),
        (coco_number(9), "runs past the end of its 2 x 3 image"),
        (coco_number(0) + coco_number(5), "covers 5 of the 6 pixels of its 2 x 3 image"),
        ("", "covers 0 of the 6 pixels"),
        (coco_number(6), "the RLE has no pixels"),
        (coco_number(0) + coco_number(6), "it overlaps segment 4"),
    ],
)
def test_refuses_malformed_strings_by_name(counts: str, message: str) -> None:
    good = coco_number(0) + coco_number(1) + coco_number(5)
    with pytest.raises(rle.RleError, match=message) as caught:
        rle.decode([good, counts], 2, 3, ids=[4, 9])
    assert str(caught.value).startswith("segment 9: ")
    assert caught.value.segment_id == 9


def test_refuses_every_truncation_of_a_string() -> None:
    segment_map = np.random.default_rng(0).integers(0, 2, (37, 53)).repeat(3, axis=0)
    [counts] = rle.encode(segment_map, [1]).counts
    for end in range(len(counts)):
        with pytest.raises(rle.RleError):
            rle.decode([counts[:end]], *segment_map.shape, ids=[1])


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=[chr(c) for c in range(46, 114)], max_size=30))
def test_decodes_as_pycocotools_or_refuses(counts: str) -> None:
    """Whatever is accepted is the mask that pycocotools decodes."""
    try:
        decoded = rle.decode([counts], 5, 7, ids=[1])
    except rle.RleError:
        return
    expected = coco.decode({"size": [5, 7], "counts": counts.encode()})  # type: ignore[typeddict-item]
    assert (decoded == expected).all()


@pytest.mark.parametrize("ids", [[0], [-1], [2**31]])
def test_refuses_ids_that_a_map_cant_hold(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="0 is void"):
        rle.decode(["06"], 2, 3, ids=ids)
