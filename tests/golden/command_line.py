"""Options, help and exit codes of every verb of `panoptic`."""

from __future__ import annotations

import inspect
import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from jobs.cli import EXIT_INTERRUPTED
from jobs.cli import run as panoptic
from jobs.verbs import VERBS, load_verb, make_app
from pipeline import errors
from tests.golden.freeze import text

# Each is called in a folder that is empty but for `empty/`; none of them starts Ray.
CALLS = (
    "",
    "--help",
    "nonsense",
    "--nonsense",
    *(f"{verb} --nonsense" for verb in VERBS),
    *(verb for verb in VERBS if verb not in ("demo", "jobs")),
    *(
        f"{verb} {{empty}}"
        for verb in ("status", "errors", "retry", "verify", "report", "sql", "rollback", "prune")
    ),
    *(
        f"{verb} {{empty}}/absent"
        for verb in ("status", "errors", "retry", "verify", "report", "sql", "rollback", "prune")
    ),
    "errors {empty} --code nonsense",
    "verify {empty} --sample -1",
    "compare {empty} {empty}",
    "compare {empty}",
    "evaluate {empty}",
    "evaluate {empty} --truth {empty}/truth.json",
    "evaluate --truth {empty}/truth.json",
    "evaluate {empty} --predictions {empty}/p.json --truth {empty}/truth.json",
    "evaluate --predictions {empty}/p.json --truth {empty}/truth.json",
    "evaluate --predictions {empty}/p.json --truth {empty}/truth.json --follow",
    "export {empty} {empty}/out.json",
    "export {empty} {empty}/out.json --format nonsense",
    "inspect {empty}/absent.jpg --weights {empty}/absent.pth",
    "nightly {empty}/absent.toml",
    "plan {empty}",
    "plan {empty}/absent --out {out}",
    "plan {empty} --out {out} --threshold 2",
    "report {empty} --gallery nonsense",
    "rollback {empty} --to 3",
    "scenes {out} --images 0",
    "segment {empty}",
    "segment {empty} --out {out} --config {empty}/absent.toml",
    "segment {empty} --out {out} --dtype nonsense",
    "segment {empty} --out {out} --device cpu --weights {empty}/absent.pth",
    "segment {empty} --out {out} --device cpu --model no.such:load",
    "segment {empty} --out {out} --device cpu --model tests.golden.model:load --weights {weights}",
    "segment {empty}/absent --out {out} --device cpu --model tests.golden.model:load "
    "--weights {weights}",
    "segment {empty} --out {out} --num-actors 3:2",
    "segment {empty} --out {out} --out-option profile",
    "segment {empty} --out {out} --threshold 2",
    "sql {empty} select",
    "view {empty} 000.bmp",
    "view {empty}/absent.jpg",
)

PROGRESS = re.compile(r"listing: |[\d,]+ of [\d,]+ |[\d,]+ images on ")  # depends on the machine


def call(arguments: list[str], below: Path) -> dict[str, Any]:
    """One command line in this process: exit code, stdout (parsed with --json), notes of stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = panoptic(arguments)
    said: Any = text(out.getvalue(), below).splitlines()
    if "--json" in arguments and said:
        said = json.loads(out.getvalue())
    notes = text(err.getvalue(), below).splitlines()
    notes = [line for line in notes if not PROGRESS.match(line)]
    return {"exit_code": code, "stdout": said, "stderr": notes}


def exit_codes(below: Path) -> dict[str, Any]:
    """The constants, the code of each exception, and what mistakes end with."""
    places = {"empty": below / "empty", "out": below / "out", "weights": below / "weights.json"}
    places["empty"].mkdir()
    places["weights"].write_text(json.dumps({"level": 170, "narrow": 4}))
    calls = {}
    for line in CALLS:
        answer = call([word.format(**places) for word in line.split()], below)
        if "--help" in line or not line:
            answer["stdout"] = "<help>"
        calls[f"panoptic {line}".strip()] = answer
        assert not places["out"].exists(), f"{line} wrote something"
    names = vars(errors)
    return {
        "constants": {
            "EXIT_INTERRUPTED": EXIT_INTERRUPTED,
            **{name: value for name, value in names.items() if name.startswith("EXIT_")},
        },
        "exceptions": {
            name: value.exit_code
            for name, value in names.items()
            if isinstance(value, type) and issubclass(value, errors.UserError)
        },
        "calls": calls,
    }


def options() -> dict[str, Any]:
    """Help, arguments and options of every verb, and the options before the verb."""
    described = {}
    for verb in VERBS:
        group: Any = typer.main.get_command(make_app([verb]))
        command = group.commands[verb]
        types = inspect.signature(load_verb(verb), eval_str=True).parameters
        entries = [
            {**parameter(own), "type": kind(types[own.name].annotation)} for own in command.params
        ]
        described[verb] = {
            "summary": VERBS[verb][1],
            "help": command.help.splitlines(),
            "hidden": command.hidden,
            "arguments": [own for own in entries if own["kind"] == "argument"],
            "options": {own["flags"][0]: own for own in entries if own["kind"] == "option"},
        }
    group = typer.main.get_command(make_app([]))
    before = {own.opts[0]: parameter(own) for own in group.params}
    return {"help": group.help, "order": list(VERBS), "options": before, "verbs": described}


def parameter(own: Any) -> dict[str, Any]:
    default = own.default
    if not isinstance(default, (str, int, float, bool, list, tuple, type(None))):
        default = str(default)
    return {
        "kind": own.param_type_name,
        "flags": [*own.opts, *own.secondary_opts],
        "required": own.required,
        "hidden": own.hidden,
        "default": default,
        "multiple": own.multiple,
        "nargs": own.nargs,
        "min": own.min,
        "max": own.max,
        "metavar": own.metavar,
        "envvar": own.envvar,
        "help": own.help,
        "panel": own.rich_help_panel if isinstance(own.rich_help_panel, str) else None,
    }


def kind(annotation: Any) -> str:
    """Such as `int | None`."""
    plain = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return plain.__name__ if isinstance(plain, type) and not get_args(plain) else str(plain)
