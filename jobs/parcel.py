"""The parcel of a submitted job: arguments, code, config file and environment for the cluster.

Our packages travel as Ray's working_dir, so the cluster runs the code of this machine. A local path
means nothing on a cluster: weights and truth are uploaded to the run folder (inputs.py), the config
file is rewritten, and other local paths raise UserError. Credentials never travel: nodes have their
own roles.
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
from jobs.options import parse_options
from jobs.verbs import make_app
from pipeline.errors import UserError
from pipeline.layout import input_folder
from pipeline.secrets import (
    KEPT_OPTIONS,
    check_options,
    holds_secret,
    refuse_secrets,
    secret_names,
    texts,
    withheld,
)
from pipeline.version import code_version

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("detr", "pipeline", "jobs")
CONFIG: Final = "config.toml"
SYSTEM: Final = ("/bin/", "/opt/", "/sbin/", "/usr/")  # programs that the nodes have too
SCRIPTS: Final = (".py", ".sh")
OPTIONS: Final = ("source_option", "out_option")
# Variables that travel: they say where the data is, and are no credentials.
ENVIRONMENT: Final = (
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_REQUEST_CHECKSUM_CALCULATION"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "PANOPTIC_CACHE"),
)


@dataclass(frozen=True)
class Parcel:
    """A job as the cluster gets it."""

    words: tuple[str, ...]  # the verb and its arguments
    config: str | None  # the text of CONFIG, if the verb has a config file
    environment: dict[str, str]
    files: dict[str, Path]  # name in the working_dir -> local file

    @property
    def submission_id(self) -> str:
        """A hash of words and config: Ray refuses a second job of one id while the first runs."""
        text = json.dumps([self.words, self.config])
        return f"panoptic-{self.words[0]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def pack(words: Sequence[str], *, shared_files: bool) -> Parcel:
    """The parcel of a verb and its arguments; uploads local inputs and puts URLs for their paths.

    shared_files: local paths are the same on every node (NFS, or a cluster on this machine) and
    stay as they are. Raises UserError for a path or credential that can't travel.
    """
    arguments = given(words)
    values = {entry.name: entry.value for entry in arguments}
    config = values.get("config")
    settings = _read(config) if config is not None else {}
    _refuse_unknown(words[0], settings, config or "")
    out = values.get("out") or settings.get("out")
    pairs = [entry.value.partition("=") for entry in arguments if entry.name == "out_option"]
    options = {key: value for key, _, value in pairs} or settings.get("out_options", {})
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    _refuse_secrets(arguments, settings, environment)
    inputs = Inputs(out, options)
    sent = list(words)
    files: dict[str, Path] = {}
    if not shared_files:
        for entry in arguments:
            travelled = inputs.travel(entry.name, entry.value)
            sent[entry.place] = entry.replaced(sent[entry.place], travelled)
        for name, value in settings.items():
            if isinstance(value, str):
                settings[name] = inputs.travel(name, value)
    if isinstance(settings.get("report"), list):
        settings["report"] = [*_report(settings["report"], files)]
    for entry in arguments:
        if entry.name == "config":
            sent[entry.place] = entry.replaced(words[entry.place], CONFIG)
    environment["PANOPTIC_CODE_VERSION"] = code_version()
    text = tomli_w.dumps(settings) if config is not None else None
    return Parcel(tuple(sent), text, environment, files)


def _refuse_secrets(
    arguments: Sequence[Given], settings: Mapping[str, Any], environment: Mapping[str, str]
) -> None:
    """Raises UserError for a credential, which the cluster's dashboard would show."""
    options: list[str] = []
    for name in OPTIONS:
        flag = f"--{name.replace('_', '-')}"
        table = settings.get(f"{name}s", {})
        if not isinstance(table, dict) or list(texts(table)) != list(table.values()):
            raise UserError(f'{name}s must be a table of texts, such as profile = "prod"')
        parsed = parse_options([own.value for own in arguments if own.name == name], flag)
        check_options(table, flag)
        options += [*parsed, *table]
    for option in withheld(dict.fromkeys(options, "")):
        raise UserError(
            f"storage option {option!r} does not travel, for the cluster's dashboard shows what a "
            "job is given: let the nodes have a role, or the credentials in their own environment "
            f"(what travels: {', '.join(KEPT_OPTIONS)})"
        )
    for entry in arguments:
        refuse_secrets(entry.value, f"--{entry.name.replace('_', '-')}")
    for name, value in (*settings.items(), *environment.items()):
        for text in texts(value):
            refuse_secrets(text, name)
    if holds_secret([*texts(settings.get("report"))]):
        raise UserError(
            "report: a word of the command holds a credential, which the cluster would keep: "
            "let the nodes have a role, and the command read it from their own environment"
        )


def _refuse_unknown(verb: str, settings: Mapping[str, Any], path: str) -> None:
    """Raises UserError for a setting that the verb does not have: who knows what it holds."""
    known = {
        name
        for parameter in _parameters([verb])
        for name in (parameter.name, *(flag[2:].replace("-", "_") for flag in parameter.opts))
    }
    if verb == "nightly":
        from pipeline.nightly.settings import NightlyConfig  # slow: numpy, pyarrow

        known = set(NightlyConfig.model_fields)
    for name in settings:
        if name not in known:
            raise UserError(
                f"unknown setting {name!r} in {path}; known are: {', '.join(sorted(known))}"
            )


def check_runtime_env(environment: Mapping[str, Any]) -> None:
    """Raises UserError if the user's runtime environment holds a credential."""
    for name in secret_names(environment.get("env_vars") or {}):
        raise UserError(
            f"--runtime-env: {name} in env_vars is shown by the cluster's dashboard: let the nodes "
            "have a role, or the credentials in their own environment"
        )
    for text in texts(environment):
        refuse_secrets(text, "--runtime-env")


def _report(command: Sequence[str], files: dict[str, Path]) -> Iterator[str]:
    """The words of the report command on the cluster; adds its local scripts to `files`."""
    for index, word in enumerate(command):
        path = Path(word)
        if word.startswith(SYSTEM) or (index == 0 and "/" not in word):
            yield word
        elif path.is_file() and index == 0:
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
    """Copy our packages, the package of `--model`, requirements.lock, config and files."""
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
    """The path of the package of `--model package.module:load`, if neither ours nor installed."""
    values = {entry.name: entry.value for entry in given(parcel.words)}
    settings = tomllib.loads(parcel.config) if parcel.config else {}
    package = (
        str(values.get("model") or settings.get("model") or "").partition(":")[0].split(".")[0]
    )
    if not package or package in PACKAGES:
        return None
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise UserError(f"--model: {package!r} can't be imported here, so it can't travel")
    folders = spec.submodule_search_locations
    path = Path(str(folders[0] if folders else spec.origin))
    return None if "site-packages" in path.parts else path


@dataclass(frozen=True)
class Given:
    """One value of a verb's command line.

    name: of an option, its flag without `--` and with underscores for hyphens; of an argument, its
    parameter's. place: the index of the word that holds the value, alone or as in `--flag=value`;
    the verb is word 0.
    """

    name: str
    value: str
    place: int

    def replaced(self, word: str, value: str) -> str:
        """`word` (such as `--flag=value`) with another value."""
        return word.removesuffix(self.value) + value


def _parameters(words: Sequence[str]) -> list[Any]:
    """The typer parameters of the verb words[0]."""
    group = get_command(make_app(words))
    assert isinstance(group, TyperGroup)
    return list(group.commands[words[0]].params)


def given(words: Sequence[str]) -> list[Given]:
    """The values on a verb's command line, by the verb's typer parameters; words[0] is the verb."""
    parameters = _parameters(words)
    arguments = [option.name for option in parameters if option.param_type_name == "argument"]
    switches = {
        flag
        for option in parameters
        for flag in (*option.opts, *option.secondary_opts)
        if getattr(option, "is_flag", False)
    }
    values = []
    indices = iter(range(1, len(words)))
    for index in indices:
        word = words[index]
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            if not equals:
                index = next(indices, None) if flag not in switches else None
                value = "" if index is None else words[index]
            if index is not None:
                values.append(Given(flag[2:].replace("-", "_"), value, index))
        elif arguments:
            values.append(Given(str(arguments.pop(0)), word, index))
    return values


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} can't be read as TOML: {error}") from error
