"""The version of the code, which shards record, and of its libraries, which statistics record."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions() -> dict[str, str]:
    """Versions of Python, of the libraries that results may depend on, and of this package."""
    libraries = {name: version(name) for name in ("ray", "torch")}
    return {"python": platform.python_version(), **libraries, "detr-panoptic": code_version()}


@cache
def code_version() -> str:
    """Package version and commit, `0.1.0+1a2b3c4d5e`; `0.1.0` if installed without its repository.

    `submit` sends the code without the repository and sets PANOPTIC_CODE_VERSION instead.
    """
    if carried := os.environ.get("PANOPTIC_CODE_VERSION"):
        return carried
    try:
        package = version("detr-panoptic")
    except PackageNotFoundError:
        package = "0"
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return package
    described = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short=10", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    commit = described.stdout.strip()
    return f"{package}+{commit}" if commit else package
