"""Runs whose masks are smaller than their images: viewed on a smaller photo, never scored."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import make_config
from pipeline.errors import UserError
from pipeline.evaluation import evaluator
from pipeline.report.view import photo_of
from pipeline.segmentation.model_spec import Identity, ModelDescription, run_fingerprint
from tests.toy_model import CATEGORIES


def run_of(output_size: str) -> Any:
    config = {"output_size": output_size, "exif": True, "max_pixels": 10**8}
    return SimpleNamespace(info=SimpleNamespace(config=config))


def test_pq_of_smaller_masks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "open_run", lambda out, options: run_of("quarter"))
    with pytest.raises(UserError, match="RUN has masks of --output-size quarter"):
        evaluator.evaluate_run("RUN", "truth.json")


def test_a_photo_is_shown_at_the_size_of_its_masks(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = {"uri": str(tmp_path / "a.png"), "height": 10, "width": 15}
    photo = photo_of(run_of("quarter"), row)
    assert photo.shape == (10, 15, 3)
    assert photo[5, 2, 0] == 0
    assert photo[5, 12, 0] == 200
    with pytest.raises(UserError, match="has changed since the run"):
        photo_of(run_of("original"), row)


def test_each_option_is_in_the_fingerprint_and_the_defaults_are_those_of_older_runs() -> None:
    fields: dict[str, str | int | float] = {"weights_sha256": "0"}
    description = ModelDescription(CATEGORIES, "0", fields, Identity("", "0", ""))

    def digest(**settings: Any) -> str:
        config = make_config({"source": "a", "out": "b", **settings})
        return run_fingerprint(description, config)[0]

    assert digest(decode="pil") == digest()
    assert len({digest(), digest(decode="draft"), digest(decode="nvjpeg")}) == 3
    assert "decode" not in run_fingerprint(description, make_config({"source": "a", "out": "b"}))[1]
