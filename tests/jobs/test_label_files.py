"""What label tools write: taken with the same meaning, or refused in a sentence, by every verb."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import run
from pipeline.errors import EXIT_USAGE, UserError
from pipeline.planning.source import Source
from pipeline.train.dataset import open_dataset
from tests.label_files import DEVIATIONS, IMAGES, MAP, Deviation, write


def cases(third: int) -> pytest.MarkDecorator:
    """All deviations; a third of them are quick tests, another one for each verb."""
    return pytest.mark.parametrize(
        "deviation",
        [
            pytest.param(
                deviation,
                id=deviation.name,
                marks=() if index % 3 == third else pytest.mark.slow(seconds=0.5),
            )
            for index, deviation in enumerate(DEVIATIONS)
        ],
    )


def one_sentence(text: str, words: str) -> None:
    """Nothing but one line that names what is wrong."""
    assert "Traceback" not in text
    said = [line for line in text.splitlines() if line.startswith("panoptic: ")]
    assert len(said) == 1, text
    assert words in said[0]


@cases(0)
def test_evaluate(deviation: Deviation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "data", deviation)
    prediction = truth.with_name("prediction.json")
    if deviation.name.startswith("image ids"):  # joined by id: of one tool, both say it alike
        document = json.loads(prediction.read_text())
        deviation.change(document, truth.parent)
        prediction.write_text(json.dumps(document))
    code = run(["evaluate", "--predictions", str(prediction), "--truth", str(truth), "--json"])
    out, err = capsys.readouterr()
    if deviation.evaluate is None:
        assert code == 0, err
        result = json.loads(out)
        assert result["All"]["pq"] == 1.0
        assert result["images"]["scored"] == IMAGES
    else:
        assert code == EXIT_USAGE
        one_sentence(err, deviation.evaluate)


@cases(1)
def test_train(deviation: Deviation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "data", deviation)
    if deviation.train is None:
        dataset = open_dataset(str(truth))
        dataset.check()
        assert len(dataset.examples) == IMAGES
        for index in range(IMAGES):
            image, id_map = dataset.read(index)
            np.testing.assert_array_equal(id_map, MAP)
            assert image.shape[:2] == MAP.shape
            assert sorted(dataset.examples[index].segments) == [(1, 1), (2, 0), (3, 0)]
        return
    command = ["train", str(truth), "--out", str(tmp_path / "out"), "--hold-out", "1"]
    assert run(command) == EXIT_USAGE
    one_sentence(capsys.readouterr().err, deviation.train)


@cases(2)
def test_segment_and_plan(
    deviation: Deviation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write(tmp_path / "data", deviation)
    root = truth.parent / "images"
    if deviation.segment is None:
        [table] = Source(str(truth), image_root=str(root)).tables()
        uris = [uri.removeprefix("file://") for uri in table["uri"].to_pylist()]
        photos = [uri for uri in uris if uri.endswith(".jpg")]
        assert [Path(uri) for uri in photos] == [root / f"{i + 1}.jpg" for i in range(len(photos))]
        assert len(photos) >= IMAGES - 1
        return
    for verb in ("segment", "plan"):
        arguments = [str(truth), "--image-root", str(root), "--out", str(tmp_path / "out")]
        weights = ["--weights", "jobs/demo_weights/demo.safetensors", "--device", "cpu"]
        assert run([verb, *arguments, *weights]) == EXIT_USAGE
        one_sentence(capsys.readouterr().err, deviation.segment)


def test_the_files_differ_and_are_many() -> None:
    assert len({deviation.name for deviation in DEVIATIONS}) == len(DEVIATIONS) >= 40
    stated = re.search(r"(\d+) deviations of label files", Path("docs/inputs.md").read_text())
    assert stated is not None
    assert int(stated[1]) == len(DEVIATIONS)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        open_dataset(str(tmp_path / "none.json"))
