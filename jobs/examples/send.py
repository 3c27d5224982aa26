"""A small report command for `panoptic nightly`: sends two lines to a chat channel.

In nightly.toml:

    report = ["python", "send.py", "{run}", "{snapshot}", "{baseline}"]

`panoptic nightly` runs the command before publishing, also if the release gate failed. The
command's stderr goes to the night's log; with an exit code other than 0, nothing is published. Set
CHAT_WEBHOOK to the URL of a chat channel that takes {"text": ...}, or change `send`.
"""

from __future__ import annotations

import json
import os
import sys
from urllib.request import Request, urlopen

import pipeline


def message(run: str, snapshot: int, baseline: str) -> str:
    """Two lines of text. run: the run folder's URL; baseline: the baseline's name, or empty."""
    rows = pipeline.open_run(run).table(["status"], snapshot=snapshot)["status"].to_pylist()
    failed = rows.count("error")
    compared = f"; baseline {baseline}" if baseline else ""
    return f"{run}, snapshot {snapshot}{compared}\n{len(rows):,} images, {failed:,} failed"


def send(text: str) -> None:
    address = os.environ.get("CHAT_WEBHOOK")
    if address is None:
        print(text, file=sys.stderr)
        return
    body = json.dumps({"text": text}).encode()
    headers = {"Content-Type": "application/json"}
    urlopen(Request(address, body, headers), timeout=30).close()


if __name__ == "__main__":
    send(message(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
