"""`panoptic`: one verb a module; errors as a sentence and an exit code.

Only the module of the verb that was asked for is imported: Ray and torch take seconds to load, and
`panoptic --help` should not.
"""

from __future__ import annotations

import codecs
import locale
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.exceptions import TyperException

from detr.config import ModelError
from jobs.verbs import make_app
from pipeline.errors import EXIT_TRY_AGAIN, EXIT_USAGE, UserError
from pipeline.storage.entry import machine_failure, store_failure

EXIT_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt, ours at SIGTERM included


def main() -> None:
    """Entry point. Everything the user can mend is one sentence on stderr."""
    _use_utf8()
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
        sentence = store_failure(error) or machine_failure(error)
        if sentence is None:
            raise
        return _say(str(sentence), sentence.exit_code)
    if code == EXIT_INTERRUPTED:
        return _stopped()
    return code if isinstance(code, int) else 0


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode under a locale of another encoding.

    Else names of files, texts and what is printed would be taken for that encoding's, in silence.
    """
    if sys.flags.utf8_mode or codecs.lookup(locale.getencoding()).name == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
