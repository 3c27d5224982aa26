"""Entry point of the program `panoptic`, which runs a verb.

An error that the user can mend is printed as one sentence and sets the exit code; an unforeseen
error gives a traceback. Of the verbs' modules only that of the requested verb is imported, because
Ray and torch take seconds to load.
"""

from __future__ import annotations

import codecs
import io
import locale
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from typer.exceptions import TyperException

from detr.config import ModelError
from jobs.verbs import make_app
from pipeline.errors import EXIT_TRY_AGAIN, EXIT_USAGE, UserError
from pipeline.storage.entry import machine_failure, store_failure

EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE  # as a shell reports SIGPIPE
EXIT_INTERRUPTED = 130  # typer's exit code for KeyboardInterrupt (Ctrl-C, and SIGTERM by `_stop`)


def main() -> None:
    """Run the process's command line and exit; an error that the user can mend is one sentence."""
    _open_streams()
    _use_utf8()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on tags that do not affect pixels
    signal.signal(signal.SIGTERM, _stop)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:  # already reported; without this, Python would report it again at exit
        _drop_output()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code."""
    try:
        code = make_app(arguments)(list(arguments), standalone_mode=False)
        sys.stdout.flush()
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
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise  # typer turns a broken pipe into SystemExit
        _drop_output()  # the reader, such as `head`, has closed the pipe
        return EXIT_BROKEN_PIPE
    except Exception as error:
        sentence = store_failure(error) or machine_failure(error)
        if sentence is None:
            raise
        return _say(str(sentence), sentence.exit_code)
    if code == EXIT_INTERRUPTED:
        return _stopped()
    return code if isinstance(code, int) else 0


def _open_streams() -> None:
    """Open closed standard streams (`>&-`), and let stdout and stderr write any text."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # os.open takes the lowest free number
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Send further output to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _use_utf8() -> None:
    """Restart the process in Python's UTF-8 mode if the locale has another encoding.

    Otherwise Python would read and write file names and texts in the locale's encoding.
    """
    if sys.flags.utf8_mode or codecs.lookup(locale.getencoding()).name == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _stopped() -> int:
    text = "stopped; what is written stays: run the same command to continue"
    return _say(text, EXIT_TRY_AGAIN)


def _say(text: str, code: int) -> int:
    plain = text.encode(errors="backslashreplace").decode()  # a path may be no UTF-8
    print(f"panoptic: {plain}", file=sys.stderr)
    return code


def _stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
