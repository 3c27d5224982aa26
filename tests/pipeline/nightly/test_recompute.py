"""A sample is decoded as the run's images were, without Ray: shards made by the real segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from pipeline.config import RunConfig, make_config
from pipeline.nightly.recompute import recompute
from pipeline.planning.generations import plan_first, stage_listing
from pipeline.planning.scratch_db import Staging
from pipeline.planning.source import Source
from pipeline.run.folder import RunInfo
from pipeline.run.publish import finish_generation
from pipeline.run.run import Run, create_run
from pipeline.run.shard_format import Provenance, encode_shard
from pipeline.schema import SCHEMA_VERSION
from pipeline.segmentation.sink import UNIT_COLUMN
from pipeline.storage.storage import Storage
from tests.factories import jpeg, segmenter, unit_of

IMAGES = 4


def drafted(folder: Path, weights: Path) -> tuple[Run, RunConfig]:
    """A finished run over photos larger than the model needs, decoded in draft mode."""
    photos = folder / "photos"
    photos.mkdir()
    files = {f"{number}.jpg": jpeg(480, 640, number) for number in range(IMAGES)}
    for name, data in files.items():
        (photos / name).write_bytes(data)
    info = RunInfo(
        SCHEMA_VERSION, {}, None, "made", "0" * 64, "f", {}, [], "cpu", "test", "2026", {}
    )
    run = create_run(Storage(folder / "run"), info)
    with Staging() as staging:
        images, size = stage_listing(staging, Source(url=str(photos)), None, lambda count: None)
        generation = plan_first(run, staging, images, size, IMAGES)
    [unit] = generation.units()
    names = run.read_unit(unit)["file_name"].to_pylist()
    actor = segmenter(weights, method="draft")
    rows = actor(unit_of({name: files[name] for name in names})).drop_columns([UNIT_COLUMN])
    run.storage.write(unit.path, encode_shard(rows, Provenance("f", "0" * 64, "cpu")))
    finish_generation(run, generation, run.present(1), 1.0)
    values = {"source": str(photos), "out": str(folder / "run"), "weights": str(weights)}
    return run, make_config({**values, "batch_size": 4})


@pytest.mark.parametrize(("decode", "same"), [("draft", True), ("pil", False), ("nvjpeg", False)])
def test_a_sample_is_decoded_as_the_run_s_images_were(
    tmp_path: Path, tiny_weights: Path, decode: Literal["draft", "pil", "nvjpeg"], same: bool
) -> None:
    run, config = drafted(tmp_path, tiny_weights)
    config = config.model_copy(update={"decode": decode})
    again = recompute(run, config, IMAGES, number=1, seed=0)
    assert again.compared == IMAGES
    assert (again.same == IMAGES) == same
    assert bool(again.note) == (decode == "nvjpeg")
