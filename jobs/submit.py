"""`panoptic submit` and `panoptic jobs`: any verb as a job of a Ray cluster."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput
from jobs.parcel import check_runtime_env, pack, stage_code
from jobs.verbs import VERBS
from pipeline.errors import EXIT_CRASH, EXIT_TRY_AGAIN, UserError
from pipeline.run.lease import CLUSTER_VARIABLE

NOT_THERE: Final = ("submit", "jobs", "demo")
Address = Annotated[
    str, typer.Option(envvar="PANOPTIC_ADDRESS", help="Ray's dashboard: http://head:8265.")
]
WaitSeconds = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for the head's first answer.")
]


def submit(
    words: Annotated[
        list[str], typer.Argument(metavar="-- VERB ...", help="Any verb and its arguments.")
    ],
    address: Address,
    runtime_env: Annotated[
        str | None, typer.Option(help="JSON file of a Ray runtime environment for the job.")
    ] = None,
    install: Annotated[
        bool,
        typer.Option("--install", help="Install requirements.lock on the nodes (minutes, once)."),
    ] = False,
    shared_files: Annotated[
        bool, typer.Option("--shared-files", help="Local paths are the same on every node.")
    ] = False,
    retries: Annotated[
        int, typer.Option(min=0, help="New tries after a crash or a lost driver.")
    ] = 3,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Exit once the cluster has accepted the job.")
    ] = False,
    wait_head: WaitSeconds = 5.0,
) -> int:
    """Run a verb as a job of a Ray cluster, follow it, and end with its exit code.

    The same command attaches to a running job; Ctrl-C leaves the job running. Dependencies come
    from the cluster's image (see Dockerfile), from --install, or from --runtime-env. Local weights,
    truth and config files are uploaded; RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH gives a token.

        panoptic submit --address http://head:8265 -- nightly nightly.toml

        panoptic submit --address http://head:8265 --no-wait -- segment s3://b/images --out s3://b/o

    Exit codes: the job's; 2 for a wrong address, token or version; 75 if the head does not answer
    or somebody stopped the job on the cluster.
    """
    if not words or words[0] not in VERBS or words[0] in NOT_THERE:
        known = ", ".join(verb for verb in VERBS if verb not in NOT_THERE)
        raise UserError(f"submit needs -- and a verb after it, one of: {known}")
    from jobs.submission import RETRIED, JobServer

    note = plain_console(stderr=True).print
    cluster = JobServer(address, wait_seconds=wait_head, note=note)
    cluster.check_versions()
    parcel = pack(words, shared_files=shared_files)
    user_env = _environment(runtime_env, install)
    entrypoint = shlex.join(["python", "-m", "jobs.cli", *parcel.words])
    identity = parcel.submission_id
    code: int | None = None
    for attempt in range(retries + 1):
        with tempfile.TemporaryDirectory(prefix="panoptic-") as folder:
            stage_code(Path(folder), parcel)
            environment = {**parcel.environment, **user_env.get("env_vars", {})}
            # The lease needs this to tell an earlier try on this cluster from another cluster's.
            environment[CLUSTER_VARIABLE] = cluster.identity()
            # A job's runtime environment also reaches its actors, which need the S3 endpoint.
            env: dict[str, Any] = {"working_dir": folder, **user_env, "env_vars": environment}
            if install:
                env["uv"] = str(Path(folder) / "requirements.lock")
            cluster.submit(identity, entrypoint, env, attempt)
        if no_wait:
            print(identity)
            return 0
        try:
            code = cluster.follow(identity, _show)
        except KeyboardInterrupt:
            note(f"left {identity} running: the same command attaches to it again")
            return EXIT_TRY_AGAIN
        if code not in RETRIED:
            assert code is not None
            return code
        if attempt < retries:
            note(f"{identity} ended with {code}: submitting it again ({attempt + 1} of {retries})")
    return EXIT_CRASH if code is None else code


def _environment(path: str | None, install: bool) -> dict[str, Any]:
    if path is None:
        return {}
    if install:
        raise UserError("--install and --runtime-env both say what is installed: choose one")
    try:
        environment = json.loads(Path(path).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"--runtime-env {path} can't be read as JSON: {error}") from error
    if not isinstance(environment, dict):
        raise UserError(f"--runtime-env {path} must hold a JSON object")
    check_runtime_env(environment)
    return environment


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def jobs(address: Address, wait_head: WaitSeconds = 5.0, json_output: JsonOutput = False) -> None:
    """List the jobs that `submit` started on a cluster.

    panoptic jobs --address http://head:8265
    """
    from jobs.submission import JobServer

    console = plain_console()
    cluster = JobServer(address, wait_seconds=wait_head, note=lambda text: None)
    rows = [
        {
            "id": job.submission_id,
            "status": str(job.status),
            "exit_code": job.driver_exit_code,
            "started": _time(job.start_time),
            "ended": _time(job.end_time),
            "command": job.entrypoint.replace("python -m jobs.cli", "panoptic"),
        }
        for job in cluster.jobs()
    ]
    if json_output:
        print_json(rows)
        return
    table = Table("id", "status", "exit", "started", "ended", "command", box=None)
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].min_width = max((len(str(job["id"])) for job in rows), default=0)
    for job in rows:
        code = "" if job["exit_code"] is None else str(job["exit_code"])
        table.add_row(
            str(job["id"]), str(job["status"]), code, job["started"], job["ended"], job["command"]
        )
    console.print(table if rows else "no jobs")


def _time(milliseconds: int | None) -> str:
    if not milliseconds:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
