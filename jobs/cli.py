"""`panoptic`: one verb a module; errors as a sentence and an exit code.

Only the module of the verb that was asked for is imported: Ray and torch take seconds to load, and
`panoptic --help` should not.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.exceptions import TyperException

from detr.config import ModelError
from jobs.verbs import make_app
from pipeline.errors import EXIT_TRY_AGAIN, EXIT_USAGE, UserError
from pipeline.storage.entry import store_failure

EXIT_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt, ours at SIGTERM included


def main() -> None:
    """Entry point. Everything the user can mend is one sentence on stderr."""
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code."""
    try:
        code = make_app(arguments)(list(arguments), standalone_mode=False)
    except UserError as error:
        return _say(str(error), error.exit_code)
    except TyperException as error:
        if not arguments:  # the help was printed already
            return EXIT_USAGE
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        return _say(error.format_message().rstrip(".") + hint, EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except ValueError as error:
        if isinstance(error, ModelError):
            return _say(str(error), EXIT_USAGE)
        raise
    except Exception as error:
        sentence = store_failure(error)
        if sentence is None:
            raise
        return _say(str(sentence), sentence.exit_code)
    if code == EXIT_INTERRUPTED:
        return _stopped()
    return code if isinstance(code, int) else 0


def _stopped() -> int:
    text = "stopped; what is written stays: run the same command to continue"
    return _say(text, EXIT_TRY_AGAIN)


def _say(text: str, code: int) -> int:
    print(f"panoptic: {text}", file=sys.stderr)
    return code


def _stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
