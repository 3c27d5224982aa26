"""A run folder of three generations and a folder of nights, made by one job after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline import make_config, segment
from tests.golden.command_line import call
from tests.golden.freeze import folder, masked
from tests.golden.model import MODEL, write_picture, write_truth

PICTURES = range(10)
SCORED = range(8)


def run_folder(below: Path) -> dict[str, Any]:
    """What a user has after segment, retry, refresh, evaluate, a rollback, and a night.

    Ray must be there. below: an empty folder.
    """
    source, out, nights = below / "photos", below / "run", below / "nights"
    source.mkdir()
    for number in PICTURES:
        write_picture(source / f"{number:03d}.bmp", number)
    whole = (source / "000.bmp").read_bytes()
    (source / "empty.bmp").write_bytes(b"")
    (source / "half.bmp").write_bytes(whole[: len(whole) // 2])
    (source / "page.jpg").write_bytes(b"<!doctype html><title>403 Forbidden</title>")
    truth = write_truth(below, SCORED)
    weights = below / "weights.json"
    weights.write_text(json.dumps({"level": 170, "narrow": 4}))
    settings = {
        "source": str(source),
        "out": str(out),
        "weights": str(weights),
        "model": MODEL,
        "device": "cpu",
        "images_per_shard": 8,
        "max_error_rate": 0.5,
    }
    said: dict[str, Any] = {}

    segment(make_config(settings))
    said["retry"] = call(["retry", str(out), "--all", "--json"], below)
    (source / "005.bmp").unlink()
    write_picture(source / "half.bmp", 20)
    write_picture(source / "003.bmp", 3, 24, 40)
    write_picture(source / "new.bmp", 21)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    refresh = ["segment", str(source), *flags[1:], "--refresh", "--json"]
    said["segment --refresh"] = call(refresh, below)
    said["evaluate"] = call(["evaluate", str(out), "--truth", str(truth), "--json"], below)
    said["status"] = call(["status", str(out), "--json"], below)
    said["errors"] = call(["errors", str(out), "--json"], below)
    said["verify"] = call(["verify", str(out), "--json"], below)
    said["sql"] = call(["sql", str(out), "--json"], below)
    said["rollback"] = call(["rollback", str(out), "--json"], below)

    toml = below / "nightly.toml"
    night = {**settings, "out": str(nights), "truth": str(truth), "price_per_gpu_hour": 3600.0}
    toml.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in night.items()))
    said["nightly"] = call(["nightly", str(toml), "--json"], below)
    said["nightly again"] = call(["nightly", str(toml)], below)
    return {
        "run": folder(out, below),
        "nights": folder(nights, below),
        "said": masked(said, "said", below),
    }
