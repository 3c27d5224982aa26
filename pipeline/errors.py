"""`UserError`, the exception that a user sees as one sentence, its subclasses, and exit codes.

`UserError` is raised for what the user can mend: a flag, a path, a file of the wrong kind, a
credential. The command line prints its message and exits with `exit_code`. Any other exception is a
bug and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator

EXIT_OK = 0
EXIT_CRASH = 1
EXIT_USAGE = 2
EXIT_QUALITY_GATE = 3
EXIT_ERROR_BUDGET = 4
EXIT_LEASE = 5
EXIT_TRY_AGAIN = 75


class UserError(ValueError):
    """One sentence that names what is wrong and how to mend it."""

    exit_code = EXIT_USAGE


class ErrorBudgetError(UserError):
    """More images failed than `--max-error-rate` allows."""

    exit_code = EXIT_ERROR_BUDGET


class LeaseError(UserError):
    """Another job is writing this run folder."""

    exit_code = EXIT_LEASE


class TryAgainError(UserError):
    """The job was stopped cleanly, or the infrastructure is down: the same command continues it."""

    exit_code = EXIT_TRY_AGAIN


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, then each cause in turn: the `cause` of a RayTaskError, else `__cause__`."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = getattr(cause, "cause", None) or cause.__cause__
