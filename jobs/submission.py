"""Ray's job API over HTTP (`JobServer`): submit a job, follow its log, return its exit code.

The submission id identifies a job. If a job of that id runs, `submit` attaches to it; if one has
ended, `submit` deletes it and submits it again. `JobServer` waits for a head that is starting, and
reads the log again after its stream broke. `follow` returns None if the driver or the head's jobs
were lost. The caller submits again after None and after an exit code in `RETRIED`; not after a bad
setting, a failed gate, a held lease, or a job that somebody stopped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_fixed,
)

from pipeline.cluster.ray_internals import LOGGERS
from pipeline.errors import EXIT_CRASH, EXIT_TRY_AGAIN, TryAgainError, UserError

POLL_SECONDS: Final = 2.0
RESTART_SECONDS: Final = 60.0  # for the restart of a head that answered before
RETRIED: Final = (None, EXIT_CRASH, EXIT_TRY_AGAIN)  # None: the driver was lost
# Lines of Ray's job manager, and of its compiled part, in the log of a job.
_OF_RAY: Final = re.compile(
    r"\d{4}-\d\d-\d\d [\d:,]+\s+INFO \S+\.py:\d+ -- "
    r"|\[\d{4}-\d\d-\d\d [\d:,]+ I \d+ \d+\] "
    r"|Running entrypoint for job panoptic-"
)
TOKEN: Final = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's own"
)


class JobServer:
    """The jobs of the cluster whose dashboard is at `address`.

    Raises UserError for a wrong address or token, TryAgainError if no head answers within
    `wait_seconds`. `note` gets messages for the user.
    """

    def __init__(self, address: str, *, wait_seconds: float, note: Callable[[str], None]) -> None:
        if not address.startswith(("http://", "https://")):
            raise UserError(
                f"--address {address!r} must be the dashboard's, such as http://head:8265"
            )
        self.address = address
        self.wait_seconds = wait_seconds
        self.note = note
        for name in LOGGERS:  # they log every upload
            logging.getLogger(name).setLevel(logging.ERROR)
        self.client: JobSubmissionClient = self._patiently(lambda: JobSubmissionClient(address))
        # The address is right, so a head that does not answer later may be restarting.
        self.wait_seconds = max(wait_seconds, RESTART_SECONDS)

    def check_versions(self) -> None:
        """Raises UserError if Ray's or Python's version differs here: pickles would fail."""
        answer = self._patiently(self._metadata)
        theirs = str(answer.get("rayVersion", ""))
        if theirs != ray.__version__:
            raise UserError(
                f"the cluster runs Ray {theirs}, this machine {ray.__version__}: use an image with "
                f"Ray {ray.__version__}, or submit from an environment with {theirs}"
            )
        local, remote = (
            ".".join(version.split(".")[:2])
            for version in (platform.python_version(), str(answer.get("pythonVersion", "")))
        )
        if local != remote:
            raise UserError(
                f"the cluster runs Python {remote}, this machine {local}: use an image with Python "
                f"{local}, or submit from an environment with {remote}"
            )

    def _metadata(self) -> dict[str, Any]:
        answer = self.client._do_request("GET", "/api/v0/cluster_metadata")
        answer.raise_for_status()
        return answer.json()["data"]

    def identity(self) -> str:
        """The cluster's id, which changes when the head is replaced; empty if unknown."""

        def ask() -> str:
            answer = self.client._do_request("GET", "/cluster_id")
            if answer.status_code != requests.codes.ok:
                return ""
            return str(answer.json().get("data", {}).get("clusterId", ""))

        return self._patiently(ask)

    def jobs(self) -> list[JobDetails]:
        """The jobs that this program submitted, newest first."""
        listed = self._patiently(self.client.list_jobs)
        ours = [job for job in listed if (job.submission_id or "").startswith("panoptic-")]
        return sorted(ours, key=lambda job: job.start_time or 0, reverse=True)

    def submit(
        self, submission_id: str, entrypoint: str, runtime_env: dict[str, Any], retried: int = 0
    ) -> bool:
        """Submit a job; False if a job of this id already runs. Deletes a finished job of this id.

        `retried`: the number of earlier tries, stored in the job's metadata.
        """
        status = self.status(submission_id)
        if status is not None and not status.is_terminal():
            self.note(f"{submission_id} is {status.value.lower()} already: attaching to it")
            return False
        if status is not None:
            self._patiently(lambda: self.client.delete_job(submission_id))
        try:
            self._patiently(
                lambda: self.client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env=runtime_env,
                    metadata={"panoptic": entrypoint, "retried": str(retried)},
                )
            )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            self.note(f"{submission_id} was submitted by somebody else just now: attaching to it")
            return False
        self.note(f"submitted {submission_id} to {self.address}")
        return True

    def status(self, submission_id: str) -> JobStatus | None:
        job = self._job(submission_id)
        return JobStatus(job.status) if job else None

    def follow(self, submission_id: str, show: Callable[[str], None]) -> int | None:
        """Pass the job's log to `show` until the job ends; returns the exit code.

        Lines that Ray itself logs for information are left out. None if the driver or the job was
        lost. Raises TryAgainError if somebody stopped the job.
        """
        lines = OwnLines(show)
        try:
            return self._followed(submission_id, lines.add)
        finally:
            lines.end()

    def _followed(self, submission_id: str, show: Callable[[str], None]) -> int | None:
        shown = 0
        while True:
            try:
                shown = asyncio.run(self._tail(submission_id, shown, show))
            except (TimeoutError, RuntimeError, OSError, aiohttp.ClientError) as error:
                self.note(f"the log stream broke ({_line(error)}): looking again")
            job = self._job(submission_id)
            if job is None:
                self.note(f"the cluster knows {submission_id} no more: its head was started anew")
                return None
            if JobStatus(job.status).is_terminal():
                break
            time.sleep(POLL_SECONDS)
        if job.status == JobStatus.SUCCEEDED:
            return 0
        if job.status == JobStatus.STOPPED:
            raise TryAgainError(
                f"{submission_id} was stopped on the cluster; what is written stays, and the same "
                "command continues it"
            )
        if job.driver_exit_code is None:
            self.note(f"{submission_id}: {job.message}")
            return None
        return job.driver_exit_code if job.driver_exit_code > 0 else EXIT_TRY_AGAIN

    def _job(self, submission_id: str) -> JobDetails | None:
        """The job, or None. Uses the list, since Ray's API gives an error for an unknown job."""
        listed = self._patiently(self.client.list_jobs)
        return next((job for job in listed if job.submission_id == submission_id), None)

    async def _tail(self, submission_id: str, shown: int, show: Callable[[str], None]) -> int:
        """Show the log after its first `shown` characters; returns the number shown in all."""
        seen = 0
        async for text in self.client.tail_job_logs(submission_id):
            if seen + len(text) > shown:
                show(text[max(0, shown - seen) :])
                shown = seen + len(text)
            seen += len(text)
        return shown

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """The result of `call`, repeated until the head answers, for at most `wait_seconds`."""

        def once() -> Any:
            with _sentences(self.address):
                return call()

        return Retrying(
            retry=retry_if_exception_type(TryAgainError),
            stop=stop_after_delay(self.wait_seconds),
            wait=wait_fixed(POLL_SECONDS),
            before_sleep=self._say_why,
            reraise=True,
        )(once)

    def _say_why(self, state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            self.note(f"waiting up to {self.wait_seconds:.0f} s: {state.outcome.exception()}")


class OwnLines:
    """Passes the lines of a job's log to `show`, without those that Ray logs for information."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._rest = show, ""

    def add(self, text: str) -> None:
        """Text of the log, which may end within a line."""
        *lines, self._rest = (self._rest + text).split("\n")
        own = "".join(f"{line}\n" for line in lines if not _OF_RAY.match(line))
        if own:
            self._show(own)

    def end(self) -> None:
        """Pass on the last line if it has no end."""
        if self._rest and not _OF_RAY.match(self._rest):
            self._show(self._rest)
        self._rest = ""


@contextmanager
def _sentences(address: str) -> Iterator[None]:
    """Turn exceptions of Ray's client into UserError, or TryAgainError if waiting may help."""
    try:
        yield
    except AuthenticationError as error:
        if "no token" in str(error).lower() or "required" in str(error):
            raise UserError(f"{address} wants a token: {TOKEN}") from None
        raise UserError(f"{address} refused this token: {TOKEN}") from None
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
        raise UserError(f"--address {address!r} is no URL: {_line(error)}") from None
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise TryAgainError(
            f"no Ray dashboard answers at {address} ({type(error).__name__}): check --address, and "
            f"that port {_port(address)} is reachable; a head that still starts needs a longer "
            "--wait-head"
        ) from None
    except json.JSONDecodeError:
        raise UserError(f"what answers at {address} is no Ray dashboard") from None
    except RuntimeError as error:
        text = str(error)
        if "No available agent" in text or re.search(r"status code 50[0-4]\b", text):
            raise TryAgainError(f"the head at {address} is not ready: {_line(error)}") from None
        if "Version check returned 404" in text:
            raise UserError(f"what answers at {address} is no Ray dashboard") from None
        raise


def _port(address: str) -> int:
    parts = urlsplit(address)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _line(error: BaseException) -> str:
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:200]
