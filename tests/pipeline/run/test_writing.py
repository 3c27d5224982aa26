"""The rule for writing: which leases a path that was typed stands for, and what may be moved."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.errors import LeaseError, UserError
from pipeline.run.lease import lease, read_holder
from pipeline.run.run import Run
from pipeline.run.series import Nights
from pipeline.run.writing import locate, writing
from pipeline.storage.storage import Storage
from tests.factories import made_scenes, make_run, publish_run, shard_row
from tests.servers import S3Server


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    nights = Nights(Storage(tmp_path / "out"))
    run = publish_run(tmp_path / "out" / "run-a", [])
    nights.publish("run-a", run, 1)
    return nights


def holders(*folders: Storage) -> list[bool]:
    return [read_holder(folder) is not None for folder in folders]


@pytest.mark.parametrize("typed", ["", "run-a", "run-b"])
def test_in_a_folder_of_nights_both_leases_are_taken_whichever_path_is_typed(
    nights: Nights, typed: str
) -> None:
    storage = nights.storage.below(typed) if typed else nights.storage
    run = nights.storage.below(typed or "run-a")
    with writing(locate(storage)) as writer:
        assert holders(nights.storage, run) == [True, True]
        assert not writer.may_publish
    assert holders(nights.storage, run) == [False, False]


@pytest.mark.parametrize(
    "typed",
    [
        *("{out}/run-a/", "{out}//run-a", "/{out}/run-a", "{out}/x/../run-a", "out/run-a"),
        *("file://{out}/run-a", "file:{out}/run-a", "file://localhost{out}/run-a/"),
        *("{above}/current", "{above}/link/run-a", "{out}/run-elsewhere"),
    ],
)
def test_a_run_folder_is_the_same_however_it_is_typed(
    nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    """Also by a link to it, below a link, and where a link in the folder of nights leads to it."""
    out = tmp_path / "out"
    (tmp_path / "current").symlink_to(out / "run-a")
    (tmp_path / "link").symlink_to(out)
    publish_run(tmp_path / "another disk", [])
    (out / "run-elsewhere").symlink_to(tmp_path / "another disk")
    monkeypatch.chdir(tmp_path)
    run = nights.storage.below("run-elsewhere" if "elsewhere" in typed else "run-a")
    with writing(locate(Storage(typed.format(out=out, above=tmp_path)))) as writer:
        assert holders(nights.storage, run) == [True, True]
        assert not writer.may_publish


@pytest.mark.parametrize("typed", ["s3://data/out/run-a/", "s3a://data/out/run-a", "s3://data/out"])
def test_a_run_folder_in_a_bucket_is_the_same_however_it_is_typed(
    moto: S3Server, typed: str
) -> None:
    moto.client().create_bucket(Bucket="data")
    nights = Nights(Storage("s3://data/out"))
    nights.storage.write("latest.json", b'{"run": "run-a"}')
    with lease(nights.storage, of_nights=True):
        pass
    with writing(locate(Storage(typed))) as writer:
        assert holders(nights.storage, nights.storage.below("run-a")) == [True, True]
        assert not writer.may_publish


def test_a_folder_named_nights_makes_no_folder_of_nights(tmp_path: Path) -> None:
    (tmp_path / "nights/run-0").mkdir(parents=True)
    (tmp_path / "nights/run-0/run.json").write_text("{}")
    assert locate(Storage(tmp_path / "run-1")).nights is None
    (tmp_path / "old/nights").mkdir(parents=True)
    (tmp_path / "old/nights/2026-11-01T030000.000000Z.json").write_text("{}")
    assert locate(Storage(tmp_path / "old/run-1")).nights is not None


def test_a_night_at_work_keeps_off_a_writer_of_its_run_folder(nights: Nights) -> None:
    with (
        lease(nights.storage, of_nights=True),
        pytest.raises(LeaseError, match=nights.storage.url),
        writing(locate(nights.storage.below("run-a"))),
    ):
        pass


def test_a_run_folder_by_itself_takes_one_lease_and_may_publish(tmp_path: Path) -> None:
    run = publish_run(tmp_path / "run-a", [])
    with writing(locate(run.storage)) as writer:
        assert writer.may_publish
        assert read_holder(run.storage) is not None
    assert not (tmp_path / "lease.json").exists()


def test_a_folder_is_one_of_nights_from_the_first_moment_of_its_first_night(
    tmp_path: Path,
) -> None:
    storage = Storage(tmp_path)
    with lease(storage, of_nights=True):
        pass
    with pytest.raises(UserError, match="folder of nights with nothing published yet"):
        locate(storage)
    assert locate(storage.below("run-x")).nights is not None


def test_a_run_that_an_older_night_left_is_known_by_its_name(tmp_path: Path) -> None:
    made = publish_run(tmp_path / "x", [])
    info = {k: v for k, v in dataclasses.asdict(made.info).items() if k != "withheld"}
    folder = tmp_path / f"run-{made.info.fingerprint}"
    (tmp_path / "x").rename(folder)
    assert json.loads((folder / "run.json").read_text()) == info
    assert locate(Storage(folder)).nights is not None


def test_old_run_folders_are_written_as_before(tmp_path: Path) -> None:
    """Pointers without an epoch, plans without a name of their own, no lease."""
    rows = {name: shard_row(name, own) for name, own in made_scenes(3).items()}
    run = make_run(tmp_path, rows)
    plan = tmp_path / "manifest/0001/generation.json"
    [part] = run.generation(1).parts()
    (tmp_path / part).rename(tmp_path / "manifest/0001/part-00000.parquet")
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "plan": ""}))
    (tmp_path / "latest.json").write_text('{"snapshot": 1}')
    with writing(locate(Storage(tmp_path))) as writer:
        again = writer.run()
        assert isinstance(again, Run)
        [unit] = again.generation(1).units()
        assert again.read_unit(unit).num_rows == 3
        again.publish(2)
    moved = json.loads((tmp_path / "latest.json").read_text())
    assert moved == {"snapshot": 2, "previous": [1], "epoch": 1}
