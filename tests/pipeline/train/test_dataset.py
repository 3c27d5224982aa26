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
    with pytest.raises(UserError, match=r"no panoptic JSON at .*panoptic\.json"):
        open_dataset(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"images": [], "annotations": []}'])
def test_not_a_panoptic_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "panoptic.json").write_text(text)
    with pytest.raises(UserError, match=r"not JSON|not a COCO panoptic JSON"):
        open_dataset(str(tmp_path))


def test_instance_json_is_refused(folder: Path) -> None:
    edit(folder, lambda t: [a.pop("segments_info") for a in t["annotations"]])
    with pytest.raises(UserError, match="lacks segments_info"):
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
