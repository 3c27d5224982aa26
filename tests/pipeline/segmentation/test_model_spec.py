"""Where weights come from, and what is said where they don't."""

from __future__ import annotations

import io
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import detr
from detr.weights.own_format import recommending
from pipeline.config import RunConfig, make_config
from pipeline.errors import UserError
from pipeline.segmentation.batches import Decoding
from pipeline.segmentation.model_spec import (
    ModelSpec,
    local_weights,
    with_recommended,
    with_run_threshold,
    with_size_quantum,
)
from pipeline.segmentation.segmenter import Segmenter
from tests.factories import jpeg, unit_of
from tests.random_weights import write_tiny
from tests.toy_model import Toy


@pytest.mark.usefixtures("empty_cache")
def test_a_dead_network_is_not_called_a_missing_file() -> None:
    with pytest.raises(UserError, match=r"give the file's path.* Cannot connect to host 127.0.0.1"):
        local_weights("http://127.0.0.1:9/weights.safetensors", {})


@pytest.mark.usefixtures("empty_cache")
def test_a_file_that_a_server_does_not_have_is_missing() -> None:
    with HTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="no such file"):
            local_weights(f"http://127.0.0.1:{server.server_port}/weights.safetensors", {})
        server.shutdown()


def test_a_file_of_weights_is_named_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.safetensors").touch()
    monkeypatch.chdir(tmp_path)

    def weights(text: str) -> str:
        config = make_config({"source": "photos", "out": "run", "weights": text})
        return ModelSpec.of(config, device="cpu", dtype="fp32").weights

    assert weights("own.safetensors") == str(tmp_path / "own.safetensors")
    for as_written in ("r50", "s3://bucket/own.safetensors", "missing.safetensors"):
        assert weights(as_written) == as_written


def spec_of(weights: Path, model: str = "detr:load") -> ModelSpec:
    return ModelSpec(model, str(weights), "fp32", 0.85, 1, "cpu")


def expected(weights: Path, model: str = "detr:load") -> ModelSpec:
    """The spec of these weights as the driver sees them now."""
    spec = spec_of(weights, model)
    return spec.expecting(spec.describe())


def test_weights_that_were_replaced_are_refused_by_name_and_path(
    tiny_weights: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "current.safetensors"
    shutil.copy(tiny_weights, weights)
    spec = expected(weights)
    assert isinstance(spec.load(), detr.Predictor)
    write_tiny(weights, seed=99)
    with pytest.raises(UserError) as refused:
        spec.load()
    message = str(refused.value)
    then, now = spec.describe().identity, expected(weights).expected
    assert spec.expected is not None
    assert now == then
    for part in (str(weights), spec.expected.weights_sha256[:16], then.weights_sha256[:16]):
        assert part in message
    assert spec.expected.fingerprint in message
    assert then.fingerprint in message


@pytest.mark.parametrize(
    "model", ["tests.night_model:load", "tests.pipeline.segmentation.test_model_spec:load_constant"]
)
def test_any_model_s_weights_are_compared(tmp_path: Path, model: str) -> None:
    (tmp_path / "level").write_text("128")
    spec = expected(tmp_path / "level", model)
    spec.load()
    (tmp_path / "level").write_text("129")
    with pytest.raises(UserError, match="were replaced meanwhile"):
        spec.load()


def test_a_file_of_a_folder_of_weights_is_compared_too(tmp_path: Path) -> None:
    model = "tests.pipeline.segmentation.test_model_spec:load_constant"
    (tmp_path / "w" / "part").mkdir(parents=True)
    (tmp_path / "w" / "part" / "one.bin").write_bytes(b"1")
    spec = expected(tmp_path / "w", model)
    spec.load()
    (tmp_path / "w" / "part" / "two.bin").write_bytes(b"2")
    with pytest.raises(UserError, match="were replaced meanwhile"):
        spec.load()


def test_an_actor_refuses_its_first_unit_with_other_weights(tmp_path: Path) -> None:
    (tmp_path / "level").write_text("128")
    spec = expected(tmp_path / "level", "tests.night_model:load")
    (tmp_path / "level").write_text("140")
    decoding = Decoding(exif=True, max_pixels=10_000_000)
    actor = Segmenter(spec, decoding=decoding, batch_size=1, threads=1, code_version="t")
    with pytest.raises(UserError, match=r"level-140.*level-128"):
        actor(unit_of({"a.jpg": jpeg(60, 80, 1)}))


def test_a_loaded_model_does_not_follow_its_file(tiny_weights: Path, tmp_path: Path) -> None:
    weights = tmp_path / "current.safetensors"
    shutil.copy(tiny_weights, weights)
    model = spec_of(weights).load()
    image = np.asarray(Image.open(io.BytesIO(jpeg(60, 80, 1))))
    [before] = model.segment([image])
    weights.write_bytes(bytes(weights.stat().st_size))  # in place: the same file, other bytes
    [after] = model.segment([image])
    assert np.array_equal(before.segment_map, after.segment_map)
    assert before.segments == after.segments


class Constant(Toy):
    """Says the same of itself whatever its weights are."""


def load_constant(weights: str, **settings: Any) -> Constant:
    return Constant()


class Nothing(BaseHTTPRequestHandler):
    """A server without files."""

    def do_GET(self) -> None:
        self.send_error(404)

    do_HEAD = do_GET


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PANOPTIC_CACHE", str(tmp_path_factory.mktemp("cache")))


def config_with(**settings: Any) -> RunConfig:
    return make_config({"source": "photos", "out": "run", **settings})


def test_the_size_quantum_is_the_devices_usual_one_and_is_told_where_it_rounds() -> None:
    told: list[str] = []
    found = {
        device: with_size_quantum(config_with(), None, device, told.append).size_quantum
        for device in ("cpu", "cuda")
    }
    assert found == {"cpu": 1, "cuda": 32}
    assert len(told) == 1
    assert "multiples of 32" in told[0]
    assert "--size-quantum 1" in told[0]


def test_a_run_keeps_its_size_quantum_on_another_device() -> None:
    for recorded, device, expected in (({"size_quantum": 32}, "cpu", 32), ({}, "cuda", 1)):
        config = with_size_quantum(config_with(), recorded, device, lambda sentence: None)
        assert config.size_quantum == expected


def test_a_size_quantum_that_was_asked_for_stays() -> None:
    asked = config_with(size_quantum=8)
    for recorded in (None, {"size_quantum": 32}):
        config = with_size_quantum(asked, recorded, "cuda", lambda sentence: None)
        assert config.size_quantum == 8
        assert ModelSpec.of(config, device="cuda", dtype="bf16").size_quantum == 8


def recommending_a_half(weights: Path, copy: Path) -> Path:
    copy.write_bytes(recommending(weights.read_bytes(), 0.5))
    return copy


def test_a_new_run_takes_the_threshold_of_its_weights_and_says_so(
    tiny_weights: Path, tmp_path: Path
) -> None:
    sure = recommending_a_half(tiny_weights, tmp_path / "sure.safetensors")
    told: list[str] = []
    used = []
    for weights, asked in ((sure, None), (sure, 0.7), (tiny_weights, None)):
        config = config_with(weights=str(weights), threshold=asked, device="cpu")
        description = ModelSpec.of(config, device="cpu", dtype="fp32").describe()
        config = with_recommended(config, description, told.append)
        spec = ModelSpec.of(config, device="cpu", dtype="fp32").expecting(description)
        used.append((config.threshold, spec.load().threshold))  # type: ignore[attr-defined]
    assert used == [(0.5, 0.5), (0.7, 0.7), (0.85, 0.85)]
    assert told == ["threshold 0.5, as these weights recommend (--threshold: another)"]


def test_a_run_keeps_its_threshold_unless_another_is_asked_for() -> None:
    cases = (({"threshold": 0.85}, None), ({"threshold": 0.6}, 0.7), ({}, None), (None, None))
    found = [
        with_run_threshold(config_with(threshold=asked), run).threshold for run, asked in cases
    ]
    assert found == [0.85, 0.7, 0.85, None]


def loads_with_a_number(weights: str, *, threshold: float, **settings: Any) -> Toy:
    assert isinstance(threshold, float)
    return Toy()


@pytest.mark.parametrize("name", ["load", "loads_with_a_number"])
def test_another_loader_gets_the_published_threshold(tmp_path: Path, name: str) -> None:
    module = "tests.toy_model" if name == "load" else __name__
    weights = tmp_path / "none"
    weights.touch()
    config = config_with(weights=str(weights), model=f"{module}:{name}")
    spec = ModelSpec.of(config, device="cpu", dtype="fp32")
    description = spec.describe()
    assert isinstance(spec.load(), Toy)
    assert (description.threshold, description.recommended) == (0.85, None)
