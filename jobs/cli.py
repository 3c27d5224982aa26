"""`panoptic`: one verb a module; errors as a sentence and an exit code."""

from __future__ import annotations

import inspect
import signal
import sys
from typing import Any

import typer
from typer.exceptions import TyperException

from detr.config import ModelError
from jobs import demo, doctor, evaluate, export, plan, retry, segment, status, view
from pipeline.errors import EXIT_TRY_AGAIN, EXIT_USAGE, UserError

app = typer.Typer(
    name="panoptic",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="DETR panoptic segmentation of millions of images as one Ray job: "
    "a bucket in, Parquet shards of RLE masks and exact PQ out.",
)


def help_text(documentation: str | None) -> str:
    """A docstring for a terminal of any width: paragraphs flow, indented examples stay lines."""
    paragraphs = inspect.cleandoc(documentation or "").split("\n\n")
    flowing = (p if p.startswith(" ") else " ".join(p.split()) for p in paragraphs)
    return "\n\n".join(flowing)


VERBS = (
    demo.demo,
    doctor.doctor,
    plan.plan,
    segment.segment,
    status.status,
    status.errors,
    retry.retry,
    evaluate.evaluate,
    view.view,
    export.export,
)
for verb in VERBS:
    app.command(help=help_text(verb.__doc__))(verb)


def main() -> None:
    """Entry point. Everything the user can mend is one sentence on stderr."""
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    try:
        code = app(arguments, standalone_mode=False)
    except (UserError, ModelError) as error:
        return _say(str(error), getattr(error, "exit_code", EXIT_USAGE))
    except TyperException as error:
        if not arguments:  # the help was printed already
            return EXIT_USAGE
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        return _say(error.format_message().rstrip(".") + hint, EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return _say(
            "stopped; every shard already written stays: run the same command to continue",
            EXIT_TRY_AGAIN,
        )
    return code if isinstance(code, int) else 0


def _say(text: str, code: int) -> int:
    print(f"panoptic: {text}", file=sys.stderr)
    return code


def _stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
