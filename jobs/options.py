"""Command-line options that several verbs share, and options made from the fields of `RunConfig`.

A setting is defined once, as a field of `RunConfig`. Its flag and its key in a TOML file share the
field's description and default, and its name: a flag has hyphens for underscores, and the
repeatable flags `--source-option` and `--out-option` lack the plural of `source_options` and
`out_options`.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_origin

import typer

from detr.config import THRESHOLD
from pipeline.config import RESULT_FIELDS, SOURCE_FIELDS, RunConfig, make_config, read_toml
from pipeline.errors import UserError
from pipeline.layout import LATEST_FILE, RUN_FILE
from pipeline.secrets import check_options, kept

if TYPE_CHECKING:
    from pipeline.run.run import Run

JsonOutput = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout; progress goes to stderr.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show Ray's own logs too.")]
JsonLogs = Annotated[
    bool, typer.Option("--json-logs", help="Notes and progress on stderr as a JSON object a line.")
]
ConfigFile = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="TOML file of these settings; flags win."),
]
OutFolder = Annotated[str, typer.Argument(metavar="OUT", help="Run folder; any fsspec URL.")]
OutOptions = Annotated[
    list[str] | None,
    typer.Option("--out-option", metavar="KEY=VALUE", help="Storage option of OUT; repeatable."),
]
PhotoOptions = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Storage option of the photos; repeatable."),
]
SourceOptions = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Storage option of the source; repeatable."),
]
LabelSet = Annotated[str | None, typer.Option(help="COCO categories JSON of the weights' classes.")]
MovedWeights = Annotated[
    str | None, typer.Option(help="Where the same weights are now, if they moved.")
]
MovedLabelSet = Annotated[
    str | None, typer.Option(help="Where the same --categories are now, if they moved.")
]
ShownSnapshot = Annotated[
    int | None, typer.Option(min=1, help="Snapshot of the run; default: the published one.")
]
Threshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Least class probability of a segment; default: what the weights recommend, "
        f"else {THRESHOLD}.",
    ),
]

EXAMPLES: Final = Path(__file__).with_name("examples")
DEMO_WEIGHTS: Final = Path(__file__).with_name("demo_weights") / "demo.safetensors"
_PANELS = {
    **dict.fromkeys(SOURCE_FIELDS, "Which images (frozen with the run)"),
    "limit": "Which images (frozen with the run)",
    **dict.fromkeys(RESULT_FIELDS, "What can change results (part of the fingerprint)"),
}
_FLAGS = {"source_options": "--source-option", "out_options": "--out-option"}


def example_option(name: str) -> Any:
    """The option `--example`, which prints the file `name` of jobs/examples and exits."""

    def show(wanted: bool) -> None:
        if wanted:
            text = (EXAMPLES / name).read_text("utf-8")
            sys.stdout.write(text.replace("DEMO_WEIGHTS", str(DEMO_WEIGHTS)))
            raise typer.Exit

    return typer.Option(
        "--example", is_eager=True, callback=show, help=f"Print a {name} that works, and exit."
    )


def from_file(context: typer.Context, path: str | None) -> str | None:
    """Callback of an eager `--config`: the file's values become the defaults of other options.

    Raises UserError for a file that can't be read, or that has an unknown setting.
    """
    if path is None:
        return None
    names = {
        flag.removeprefix("--").replace("-", "_"): parameter.name
        for parameter in context.command.params
        for flag in parameter.opts
        if parameter.name not in ("config_file", "example")
    }
    values = read_toml(path, "--config")
    for name in values:
        if name not in names:
            known = ", ".join(sorted(names))
            raise UserError(f"unknown setting {name!r} in {path}; known are: {known}")
    context.default_map = {names[name]: value for name, value in values.items()}
    return path


def takes_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replace a command's first parameter, `settings: RunConfig`, by one option per setting.

    SOURCE is an argument, and every other setting an option; `--config` reads any of them from a
    TOML file.
    """
    others = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    settings = [_parameter(name) for name in RunConfig.model_fields]
    config = inspect.Parameter(
        "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile
    )

    def command(**arguments: Any) -> Any:
        toml = arguments.pop("config")
        flags = {name: arguments.pop(name) for name in RunConfig.model_fields}
        for name in _FLAGS:
            flags[name] = parse_options(flags[name], _FLAGS[name])
        return function(make_config(flags, toml), **arguments)

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in others]
    command.__signature__ = inspect.Signature([*settings, config, *keyword])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*settings, config, *keyword]}
    command.__name__ = function.__name__
    command.__doc__ = function.__doc__
    return command


def _parameter(name: str) -> inspect.Parameter:
    field = RunConfig.model_fields[name]
    default = field.default
    shown = f" Default {default}." if isinstance(default, (str, int, float)) and default else ""
    if isinstance(default, bool):
        shown = ""
    text = f"{field.description}{shown}"
    kind: Any
    if name == "source":
        info: Any = typer.Argument(metavar="SOURCE", help=text, show_default=False)
        kind = str | None
    else:
        plain = str(field.annotation)
        many = get_origin(field.annotation) in (tuple, dict)
        kind = (
            list[str] if many else next((t for t in (bool, int, float) if t.__name__ in plain), str)
        )
        flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
        flags = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
        info = typer.Option(
            *flags,
            help=text,
            show_default=False,
            rich_help_panel=_PANELS.get(name, "How and where"),
        )
        kind = kind | None
    annotation = Annotated[kind, info]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def refuse_absent(settings: RunConfig) -> None:
    """Raises UserError if a local SOURCE does not exist; called before slow imports.

    An existing run needs its source only for `--refresh`.
    """
    if "://" in settings.source or "://" in settings.out or os.path.exists(settings.source):
        return
    known = (os.path.exists(os.path.join(settings.out, name)) for name in (RUN_FILE, LATEST_FILE))
    if settings.refresh or not any(known):
        path = os.path.abspath(settings.source)
        raise UserError(f"SOURCE {path} does not exist: check the path")


def settings_of(run: Run, source_option: list[str] | None, **moved: Any) -> RunConfig:
    """The settings of an existing run, with those of `moved` that are given, and with the storage
    options of the source that `source_option` adds. Raises UserError."""
    recorded = run.info.config
    options = parse_options(source_option, "--source-option")
    moved["source_options"] = {**recorded.get("source_options", {}), **options}
    given = {name: value for name, value in moved.items() if value not in (None, {})}
    return make_config({**recorded, **given})


def parse_options(pairs: list[str] | None, flag: str) -> dict[str, str]:
    """`KEY=VALUE` texts as a dict; `flag` is for error messages. Raises UserError."""
    options = {}
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not separator or not key:
            shown = f" {pair!r}" if kept({pair: ""}) else ""  # any other text may be a secret
            raise UserError(f"{flag}{shown} must be KEY=VALUE, for example profile=prod")
        options[key] = value
    check_options(options, flag)
    return options
