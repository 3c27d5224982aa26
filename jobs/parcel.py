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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomli_w
from typer.core import TyperGroup
from typer.main import get_command

from jobs.inputs import Inputs, content_hash
from jobs.verbs import make_app
from pipeline.errors import UserError
from pipeline.layout import input_folder
from pipeline.secrets import KEPT_OPTIONS, refuse_secrets, secret_names, texts, withheld
from pipeline.version import code_version

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("detr", "pipeline", "jobs")
CONFIG: Final = "config.toml"
SYSTEM: Final = ("/bin/", "/opt/", "/sbin/", "/usr/")  # programs that the nodes have too
SCRIPTS: Final = (".py", ".sh")
OPTIONS: Final = ("source_option", "out_option")
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
    files: dict[str, Path]  # what goes beside the code, by its name there

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
    found = given(words)
    values = {each.name: each.value for each in found}
    config = values.get("config")
    settings = _read(config) if config is not None else {}
    out = values.get("out") or settings.get("out")
    pairs = [each.value.partition("=") for each in found if each.name == "out_option"]
    options = {key: value for key, _, value in pairs} or settings.get("out_options", {})
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    _refuse_secrets(found, settings, environment)
    inputs = Inputs(out, options)
    sent = list(words)
    files: dict[str, Path] = {}
    if not shared_files:
        for each in found:
            travelled = inputs.travel(each.name, each.value)
            sent[each.place] = each.replaced(sent[each.place], travelled)
        for name, value in settings.items():
            if isinstance(value, str):
                settings[name] = inputs.travel(name, value)
    if isinstance(settings.get("report"), list):
        settings["report"] = [*_report(settings["report"], files)]
    for each in found:
        if each.name == "config":
            sent[each.place] = each.replaced(words[each.place], CONFIG)
    environment["PANOPTIC_CODE_VERSION"] = code_version()
    text = tomli_w.dumps(settings) if config is not None else None
    return Parcel(tuple(sent), text, environment, files)


def _refuse_secrets(
    found: Sequence[Given], settings: Mapping[str, Any], environment: Mapping[str, str]
) -> None:
    """Raises UserError for whatever would show a credential in the cluster's dashboard."""
    options = [each.value.partition("=")[0] for each in found if each.name in OPTIONS]
    for name in OPTIONS:
        options += settings.get(f"{name}s", {})
    for option in withheld(dict.fromkeys(options, "")):
        raise UserError(
            f"storage option {option!r} does not travel, for the cluster's dashboard shows what a "
            "job is given: let the nodes have a role, or the credentials in their own environment "
            f"(what travels: {', '.join(KEPT_OPTIONS)})"
        )
    for each in found:
        refuse_secrets(each.value, f"--{each.name.replace('_', '-')}")
    for name, value in (*settings.items(), *environment.items()):
        for text in texts(value):
            refuse_secrets(text, name)


def check_runtime_env(environment: Mapping[str, Any]) -> None:
    """Raises UserError if a runtime environment of the user's own holds a credential."""
    for name in secret_names(environment.get("env_vars") or {}):
        raise UserError(
            f"--runtime-env: {name} in env_vars is shown by the cluster's dashboard: let the nodes "
            "have a role, or the credentials in their own environment"
        )
    for text in texts(environment):
        refuse_secrets(text, "--runtime-env")


def _report(command: Sequence[str], files: dict[str, Path]) -> Iterator[str]:
    """The report command as the job runs it: its scripts go along, under names of their own."""
    for place, word in enumerate(command):
        path = Path(word)
        if word.startswith(SYSTEM) or (place == 0 and "/" not in word):
            yield word
        elif path.is_file() and place == 0:
            raise UserError(
                f"report: {word!r} does not travel as a program: put what runs it before it, as in "
                '["python", "send.py"]'
            )
        elif path.is_file():
            files[f"{input_folder(content_hash(path))}/{path.name}"] = path
            yield next(reversed(files))
        elif path.suffix in SCRIPTS and not path.is_absolute():
            raise UserError(
                f"report: there is no {word!r} in {Path.cwd()}, so it can't travel: submit from "
                "its folder, or give its path on the nodes"
            )
        else:
            yield word


def stage_code(folder: Path, parcel: Parcel) -> None:
    """Copy the packages, the user's own model if one is named, the config and its scripts."""
    sources = [ROOT / package for package in PACKAGES]
    sources += [path for path in (_model_package(parcel),) if path is not None]
    for source in sources:
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc", ".*")
            shutil.copytree(source, folder / source.name, ignore=skip)
        else:
            shutil.copy(source, folder / source.name)
    for name, path in parcel.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)
    shutil.copy(ROOT / "requirements.lock", folder)
    if parcel.config is not None:
        (folder / CONFIG).write_text(parcel.config)


def _model_package(parcel: Parcel) -> Path | None:
    """Where `--model package.module:load` lives, if it is neither ours nor installed."""
    values = {each.name: each.value for each in given(parcel.words)}
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


@dataclass(frozen=True)
class Given:
    """A value on the command line: of which setting, and which word holds it."""

    name: str
    value: str
    place: int

    def replaced(self, word: str, value: str) -> str:
        """The word with another value; `--flag=value` is one word."""
        return word.removesuffix(self.value) + value


def given(words: Sequence[str]) -> list[Given]:
    """The values on a verb's command line; the verb itself says what its words mean."""
    group = get_command(make_app(words))
    assert isinstance(group, TyperGroup)
    parameters = group.commands[words[0]].params
    arguments = [each.name for each in parameters if each.param_type_name == "argument"]
    switches = {
        flag
        for each in parameters
        for flag in (*each.opts, *each.secondary_opts)
        if getattr(each, "is_flag", False)
    }
    found = []
    places = iter(range(1, len(words)))
    for place in places:
        word = words[place]
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            if not equals:
                place = next(places, None) if flag not in switches else None
                value = "" if place is None else words[place]
            if place is not None:
                found.append(Given(flag[2:].replace("-", "_"), value, place))
        elif arguments:
            found.append(Given(str(arguments.pop(0)), word, place))
    return found


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} can't be read as TOML: {error}") from error
