"""Training data: what is wrong with a dataset is one sentence naming the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.train.dataset import hold_out, open_dataset
from pipeline.train.synthetic import SCENE_CATEGORIES, scene, write_scenes

Truth = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scenes(tmp_path, 12, 4)
    return tmp_path


def edit(folder: Path, change: Callable[[Truth], object]) -> None:
    truth = json.loads((folder / "panoptic.json").read_text())
    change(truth)
    (folder / "panoptic.json").write_text(json.dumps(truth))


def test_reads_what_was_made(folder: Path) -> None:
    dataset = open_dataset(str(folder))
    assert dataset.categories == SCENE_CATEGORIES
    assert len(dataset.examples) == 12
    image, id_map = dataset.read(3)
    made = scene(4, 3)
    assert (id_map == made.segment_map).all()
    assert image.shape == made.image.shape
    expected = [(s["id"], s["category_id"] - 1) for s in made.segments]
    assert list(dataset.examples[3].segments) == expected


def test_json_masks_and_images_may_lie_apart(folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    (folder / "panoptic.json").rename(other / "any.json")
    dataset = open_dataset(
        f"file://{other}/any.json", images=str(folder / "images"), masks=str(folder / "panoptic")
    )
    assert dataset.read(0)[0].ndim == 3


def test_crowds_are_kept_apart(folder: Path) -> None:
    edit(folder, lambda t: t["annotations"][0]["segments_info"][0].update(iscrowd=1))
    dataset = open_dataset(str(folder))
    crowd = scene(4, 0).segments[0]
    assert dataset.examples[0].crowds == ((crowd["id"], crowd["category_id"] - 1),)
    assert crowd["id"] not in dict(dataset.examples[0].segments)
    dataset.read(0)


def test_held_out_images_are_not_learnt_from(folder: Path) -> None:
    training, validation = hold_out(open_dataset(str(folder)), 3)
    names = [{e.file_name for e in part.examples} for part in (training, validation)]
    assert [len(part) for part in names] == [9, 3]
    assert not names[0] & names[1]
    with pytest.raises(UserError, match="too few"):
        hold_out(validation, 3)


def test_the_only_image_of_a_class_is_learnt_from(folder: Path) -> None:
    """It is the last of the file, which would be held out first."""
    kite = {"id": 99, "name": "kite", "isthing": 1}
    edit(folder, lambda t: t["categories"].append(kite))
    edit(folder, lambda t: t["annotations"][-1]["segments_info"][0].update(category_id=99))
    dataset = open_dataset(str(folder))
    training, validation = hold_out(dataset, 3)
    assert dataset.examples[-1] in training.examples
    assert len(validation.examples) == 3
    assert {index for e in training.examples for index in e.classes} == set(range(10))


def test_colours_and_order_make_no_other_label_set(folder: Path) -> None:
    first = open_dataset(str(folder)).examples[0].segments
    edit(folder, lambda t: [c.pop("color", None) for c in t["categories"]])
    edit(folder, lambda t: t["categories"].reverse())
    validation = open_dataset(str(folder), categories=SCENE_CATEGORIES)
    assert validation.categories is SCENE_CATEGORIES
    assert validation.examples[0].segments == first


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't read .*panoptic\.json: there is no such file"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [], "annotations": []}'])
def test_not_a_panoptic_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "panoptic.json").write_text(text)
    with pytest.raises(UserError, match=r"not a COCO JSON|not a COCO panoptic JSON"):
        open_dataset(str(tmp_path))


def test_instance_json_is_refused(folder: Path) -> None:
    edit(folder, lambda t: [a.pop("segments_info") for a in t["annotations"]])
    with pytest.raises(UserError, match="segments_info"):
        open_dataset(str(folder))


@pytest.mark.parametrize("name", ["images/000005.jpg", "panoptic/000005.png"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"1 file.* missing.*{name}"):
        open_dataset(str(folder))


def test_empty_class(folder: Path) -> None:
    edit(folder, lambda t: t["categories"].append({"id": 99, "name": "kite", "isthing": 1}))
    with pytest.raises(UserError, match="shows kite"):
        open_dataset(str(folder))


def test_other_label_set_for_validation(folder: Path) -> None:
    edit(folder, lambda t: t["categories"][0].update(name="boule"))
    with pytest.raises(UserError, match="another label set"):
        open_dataset(str(folder), categories=SCENE_CATEGORIES)


def test_unknown_category_and_unknown_image(folder: Path) -> None:
    edit(folder, lambda t: t["annotations"][2]["segments_info"][0].update(category_id=77))
    with pytest.raises(UserError, match=r"000002\.jpg has a segment of category 77"):
        open_dataset(str(folder))
    edit(folder, lambda t: t["annotations"][0].update(image_id=500))
    with pytest.raises(UserError, match="annotates image 500"):
        open_dataset(str(folder))


def test_segment_in_the_json_alone(folder: Path) -> None:
    extra = {"id": 5, "category_id": 1, "iscrowd": 0}
    edit(folder, lambda t: t["annotations"][1]["segments_info"].append(extra))
    with pytest.raises(UserError, match=r"segment 5 of 000001\.jpg is in the JSON but not in"):
        open_dataset(str(folder)).read(1)


def test_segment_in_the_png_alone(folder: Path) -> None:
    path = folder / "panoptic" / "000001.png"
    pixels = np.array(Image.open(path))
    pixels[:9, :9] = (7, 0, 0)
    Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=r"segment 7 of 000001\.jpg is in the PNG but not in"):
        open_dataset(str(folder)).read(1)


def test_sizes_that_disagree(folder: Path) -> None:
    path = folder / "images" / "000001.jpg"
    Image.open(path).resize((50, 40)).save(path)
    with pytest.raises(UserError, match=r"000001\.jpg is 50 x 40 pixels, but the JSON says"):
        open_dataset(str(folder)).read(1)


def test_broken_image(folder: Path) -> None:
    (folder / "images" / "000001.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"000001\.jpg can't be read"):
        open_dataset(str(folder)).read(1)


def test_the_whole_dataset_is_checked_at_once(folder: Path) -> None:
    dataset = open_dataset(str(folder))
    dataset.check()
    path = folder / "panoptic" / "000007.png"
    pixels = np.array(Image.open(path))
    pixels[:9, :9] = (7, 0, 0)
    Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=r"segment 7 of 000007\.jpg is in the PNG but not in"):
        dataset.check()


UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def tag(folder: Path, name: str, orientation: int, *, stored_turned: bool) -> None:
    """Give a photo a tag; and store it turned, so that the tag sets it upright."""
    path = folder / "images" / name
    exif = Image.Exif()
    exif[274] = orientation
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    stored = image.transpose(UPRIGHT[orientation]) if stored_turned else image
    stored.save(path, "JPEG", quality=100, subsampling=0, exif=exif)


def off(folder: Path, index: int, **settings: Any) -> float:
    """How far a photo that is read differs from the made one, in levels."""
    image, _ = open_dataset(str(folder), **settings).read(index)
    return float(np.abs(image.astype(int) - scene(4, index).image).mean())


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_phone_s_photo_is_turned_as_its_map_is(folder: Path, orientation: int) -> None:
    tag(folder, "000000.jpg", orientation, stored_turned=True)
    assert off(folder, 0) < 8
    assert open_dataset(str(folder)).check() == {"turned": 1}


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_map_of_the_stored_photo_leaves_it(folder: Path, orientation: int) -> None:
    """Where the sizes say so: scenes are wider than high, but for a square one."""
    height, width = scene(4, 0).segment_map.shape
    tag(folder, "000000.jpg", orientation, stored_turned=False)
    if height != width:
        assert off(folder, 0) < 8
        assert open_dataset(str(folder)).check() == {"left": 1}


def test_no_exif_leaves_a_photo_that_fits_either_way(folder: Path) -> None:
    tag(folder, "000000.jpg", 3, stored_turned=False)
    assert off(folder, 0) > 8  # as `segment` would: turned
    assert off(folder, 0, exif=False) < 8
    dataset = open_dataset(str(folder))
    assert dataset.digest() != open_dataset(str(folder), exif=False).digest()


def test_sizes_may_be_missing(folder: Path) -> None:
    sizes = [(e.height, e.width) for e in open_dataset(str(folder)).examples]
    edit(folder, lambda t: [i.pop("height") and i.pop("width") for i in t["images"]])
    dataset = open_dataset(str(folder))
    assert [(e.height, e.width) for e in dataset.examples] == sizes
    dataset.check()
