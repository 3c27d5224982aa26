"""Settings: flags over file over defaults, and one sentence for each that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import fingerprint, make_config
from pipeline.errors import UserError

NEEDED: dict[str, Any] = {"source": "images", "out": "run"}


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    toml = tmp_path / "recipe.toml"
    text = '\ufeffsource = "a"\nout = "b"\nthreshold = 0.5\nbatch_size = 2\n'  # Windows' BOM
    toml.write_text(text, encoding="utf-8")
    config = make_config({"threshold": 0.7, "out": None}, str(toml))
    assert (config.source, config.out) == ("a", "b")
    assert (config.threshold, config.batch_size, config.dtype) == (0.7, 2, "auto")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, r"--threshold 1\.5: input should be less than 1"),
        ({"batch_size": 0}, "--batch-size 0: input should be greater than or equal to 1"),
        ({"dtype": "int8"}, "--dtype 'int8'"),
        ({"model": "nothing"}, "--model 'nothing'"),
        ({"num_actors": "4:2"}, "--num-actors '4:2' must be N or MIN:MAX"),
        ({"num_actors": "0"}, "--num-actors '0' must be N or MIN:MAX"),
        ({"colour": "red"}, "unknown setting 'colour'; known are: address, any_suffix, batch_size"),
        ({"out": None}, "--out is needed: run folder"),
        ({"source": None}, "SOURCE is needed: folder, list"),
    ],
)
def test_a_wrong_setting_is_one_sentence_naming_it(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_config({**NEEDED, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"threshold = ", "can't be read as TOML"), (b"\xff", "can't be read")]
)
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    toml = tmp_path / "bad.toml"
    toml.write_bytes(content)
    with pytest.raises(UserError, match=f"bad.toml {message}"):
        make_config(NEEDED, str(toml))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml: no such file"):
        make_config(NEEDED, "nowhere.toml")


def test_a_bound_pool_is_read_as_least_and_most() -> None:
    assert make_config({**NEEDED, "num_actors": "2:8"}).actors() == (2, 8)
    assert make_config({**NEEDED, "num_actors": "3"}).actors() == (3, 3)
    assert make_config(NEEDED).actors() is None


def test_the_fingerprint_depends_on_values_and_not_on_their_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1, "b": 2}) != fingerprint({"a": 1, "b": 3})


def test_an_input_s_storage_options_are_those_of_its_bucket() -> None:
    options = {"source_options": {"profile": "in"}, "out_options": {"profile": "out"}}
    config = make_config({"source": "s3://photos/all", "out": "s3://runs/a", **options})
    for url, profile in {
        "s3://photos/truth.json": "in",
        "s3://elsewhere/truth.json": "in",
        "s3://runs/inputs/truth.json": "out",
    }.items():
        assert config.options_of(url) == {"profile": profile}
