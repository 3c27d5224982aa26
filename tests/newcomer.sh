#!/usr/bin/env bash
# Walk README as somebody would who has never seen this: in an empty folder, in the order written,
# with a stop-watch and a look at each message. What can't be had here is stood in for: the bucket by
# a local S3 server, the cluster by a local head, the official weights by random ones in their layout.
# Ends with 1 if a command fails, says something that a person can't read, or names no next step.
#
#     tests/newcomer.sh            about ten minutes on two cores
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" -m tests.newcomer "$@"
