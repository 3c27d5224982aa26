"""What travels with a submitted job: the code, the config file, local inputs, the environment.

Code goes as Ray's working_dir, only what the verb needs, so the code that was tried here is the
code that runs there. A local file means nothing to a cluster: weights and truth are put into the
run folder once (inputs.py), a config file travels rewritten, and what can't travel is refused in a
sentence. Credentials never travel: nodes have roles of their own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.inputs import PLACES, Inputs
from pipeline.errors import UserError
from pipeline.version import code_version

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("detr", "pipeline", "jobs")
CONFIG: Final = "config.toml"
# Where the data is, not who may read it.
ENVIRONMENT: Final = (
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_REQUEST_CHECKSUM_CALCULATION"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "PANOPTIC_CACHE"),
)


@dataclass(frozen=True)
class Parcel:
    """A job as the cluster gets it."""

    words: tuple[str, ...]  # the verb and its arguments
    config: str | None  # the text of CONFIG, where the verb takes one
    environment: dict[str, str]

    @property
    def submission_id(self) -> str:
        """The same for the same job: Ray refuses a second one while the first runs."""
        text = json.dumps([self.words, self.config])
        return f"panoptic-{self.words[0]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def pack(words: Sequence[str], *, shared_files: bool) -> Parcel:
    """Make a job's arguments mean on the cluster what they mean here; uploads local inputs.

    shared_files: local paths are the same on every node (NFS, or a cluster of this machine), so
    they stay. Raises UserError naming what can't travel.
    """
    values, places = _options(words)
    config = _config_of(words, values)
    settings = _read(config[1]) if config else {}
    out = values.get("out") or settings.get("out") or _positional_out(words)
    options = _pairs(words, "--out-option") or settings.get("out_options", {})
    sent = list(words)
    if not shared_files:
        inputs = Inputs(out, options)
        for name, value in values.items():
            sent[places[name]] = _on_cluster(inputs, name, value, words[places[name]])
        for name, value in settings.items():
            if isinstance(value, str):
                settings[name] = inputs.travel(name, value)
    text = None
    if config:
        place, path = config
        sent[place] = sent[place].replace(path, CONFIG)
        text = toml_text(settings)
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment["PANOPTIC_CODE_VERSION"] = code_version()
    return Parcel(tuple(sent), text, environment)


def stage_code(folder: Path, parcel: Parcel) -> None:
    """Copy the packages, the user's own model if one is named, and the config file."""
    sources = [ROOT / package for package in PACKAGES]
    sources += [path for path in (_model_package(parcel),) if path is not None]
    for source in sources:
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc", ".*")
            shutil.copytree(source, folder / source.name, ignore=skip)
        else:
            shutil.copy(source, folder / source.name)
    shutil.copy(ROOT / "requirements.lock", folder)
    if parcel.config is not None:
        (folder / CONFIG).write_text(parcel.config)


def _model_package(parcel: Parcel) -> Path | None:
    """Where `--model package.module:load` lives, if it is neither ours nor installed."""
    values, _ = _options(parcel.words)
    settings = tomllib.loads(parcel.config) if parcel.config else {}
    package = (
        str(values.get("model") or settings.get("model") or "").partition(":")[0].split(".")[0]
    )
    if not package or package in PACKAGES:
        return None
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise UserError(f"--model: {package!r} can't be imported here, so it can't travel")
    place = spec.submodule_search_locations[0] if spec.submodule_search_locations else spec.origin
    path = Path(str(place))
    return None if "site-packages" in path.parts else path


def toml_text(settings: Mapping[str, Any]) -> str:
    """Settings as TOML: values first, then tables of strings."""
    lines = []
    tables = {name: value for name, value in settings.items() if isinstance(value, dict)}
    for name, value in settings.items():
        if name not in tables:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    for name, table in tables.items():
        lines += [
            "",
            f"[{name}]",
            *(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in table.items()),
        ]
    return "\n".join(lines) + "\n"


def _on_cluster(inputs: Inputs, name: str, value: str, word: str) -> str:
    if name not in PLACES:
        return word
    travelled = inputs.travel(name, value)
    return f"{word.partition('=')[0]}={travelled}" if word.startswith("--") else travelled


def _options(words: Sequence[str]) -> tuple[dict[str, str], dict[str, int]]:
    """Values by setting, and the place of the word that holds each. SOURCE is `segment`'s first."""
    values: dict[str, str] = {}
    places: dict[str, int] = {}
    for place, word in enumerate(words[1:], start=1):
        if word.startswith("--") and "=" in word:
            name, _, value = word[2:].partition("=")
        elif word.startswith("--") and place + 1 < len(words):
            name, value, place = word[2:], words[place + 1], place + 1
        elif place == 1 and words[0] in ("segment", "plan", "doctor"):
            name, value = "source", word
        else:
            continue
        values[name.replace("-", "_")] = value
        places[name.replace("-", "_")] = place
    return values, places


def _pairs(words: Sequence[str], flag: str) -> dict[str, str]:
    """The KEY=VALUE words of a repeatable flag."""
    found = [words[i + 1] for i, word in enumerate(words[:-1]) if word == flag]
    return {pair.partition("=")[0]: pair.partition("=")[2] for pair in found}


def _config_of(words: Sequence[str], values: Mapping[str, str]) -> tuple[int, str] | None:
    """Place and path of the TOML file: --config, or nightly's argument."""
    path = values.get("config")
    if path is None and words[0] == "nightly" and len(words) > 1:
        path = words[1]
    if path is None:
        return None
    return next(i for i, word in enumerate(words) if word.endswith(path)), path


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} can't be read as TOML: {error}") from error


def _positional_out(words: Sequence[str]) -> str | None:
    """OUT of a verb that takes a run folder first."""
    return words[1] if len(words) > 1 and not words[1].startswith("-") else None
