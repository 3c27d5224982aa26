"""Where weights come from, and what is said where they don't."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig, make_config
from pipeline.errors import UserError
from pipeline.segmentation.model_spec import ModelSpec, local_weights, with_size_quantum


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
