"""Versions: of the code, which shards record, and of what it runs on, which statistics record.

That of the code is the package's, and the commit where it runs from a clone.
"""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions() -> dict[str, str]:
    """What computes here: Python, the libraries that results may depend on, and this package."""
    libraries = {name: version(name) for name in ("ray", "torch")}
    return {"python": platform.python_version(), **libraries, "detr-panoptic": code_version()}


@cache
def code_version() -> str:
    """Such as `0.1.0+1a2b3c4`, or `0.1.0` where the package is installed without its repository.

    Code that was submitted to a cluster left its repository behind and brings its version along.
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
