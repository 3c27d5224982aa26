"""What travels with a submitted job: the code, the config file, local inputs, the environment.

Code goes as Ray's working_dir, only what the verb needs, so the code that was tried here is the
code that runs there. A local file means nothing to a cluster: weights and truth are put into the
run folder once (their name holds their sha256), a config file travels rewritten, and what can't
travel is refused in a sentence. Credentials never travel: nodes have roles of their own.
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

from pipeline.entry import as_user_error
from pipeline.errors import UserError
from pipeline.storage import Storage
from pipeline.version import code_version

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("detr", "pipeline", "jobs")
CONFIG: Final = "config.toml"
# Where the data is, not who may read it.
ENVIRONMENT: Final = (
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_REQUEST_CHECKSUM_CALCULATION"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "PANOPTIC_CACHE"),
)
FILES: Final = ("weights", "truth", "source")  # settings that may be one local file
FOLDERS: Final = ("truth_masks",)


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
        for name in (*FILES, *FOLDERS, "out", "image_root"):
            if isinstance(settings.get(name), str):
                settings[name] = inputs.travel(name, settings[name])
    text = None
    if config:
        place, path = config
        sent[place] = sent[place].replace(path, CONFIG)
        text = toml_text(settings)
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment["PANOPTIC_CODE_VERSION"] = code_version()
    return Parcel(tuple(sent), text, environment)


class Inputs:
    """Local files on their way into OUT/inputs/."""

    def __init__(self, out: str | None, options: Mapping[str, str]) -> None:
        self.out = out
        self.options = options

    def travel(self, name: str, value: str) -> str:
        """The value of a setting as the cluster sees it. Raises UserError if it can't travel."""
        if "://" in value or not Path(value).exists():
            if name == "out" and "://" not in value:
                self._refuse(name, value, "the nodes of a cluster write to a bucket")
            return value
        path = Path(value)
        if name in ("out", "image_root") or (name == "source" and path.is_dir()):
            self._refuse(name, value, "a folder of this machine is not there")
        sha = _sha256(path) if path.is_file() else ""
        if name == "truth" and path.is_file():
            masks = path.with_suffix("")
            if masks.is_dir():
                self._upload_folder(masks, f"inputs/{sha[:12]}/{masks.name}")
        if path.is_dir():
            if name not in (*FOLDERS, "weights"):
                self._refuse(name, value, "a folder of this machine is not there")
            return self._upload_folder(path, f"inputs/{path.name}")
        return self._upload(path, f"inputs/{sha[:12]}/{path.name}")

    def _upload_folder(self, folder: Path, target: str) -> str:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self._upload(path, f"{target}/{path.relative_to(folder).as_posix()}")
        return self._storage().join(target)

    def _upload(self, path: Path, target: str) -> str:
        storage = self._storage()
        try:
            if not storage.exists(target) or storage.size(target) != path.stat().st_size:
                storage.write(target, path.read_bytes())
        except UserError:
            raise
        except Exception as error:
            raise as_user_error(error, f"can't upload {path} to {storage.join(target)}") from error
        return storage.join(target)

    def _storage(self) -> Storage:
        if not self.out or "://" not in self.out:
            raise UserError(
                "the job has local files but no bucket to put them in: give URLs that every node "
                "reaches, or --shared-files if local paths mean the same on every node"
            )
        return Storage(self.out, self.options)

    def _refuse(self, name: str, value: str, why: str) -> None:
        raise UserError(
            f"{name} {value!r}: {why}; give a URL that every node reaches, or --shared-files if "
            "local paths mean the same on every node"
        )


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
    if name not in (*FILES, *FOLDERS, "out", "image_root"):
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
