"""Which names are photos: a generous set, and a sentence for what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import make_config
from pipeline.errors import UserError
from pipeline.planning.generations import stage_listing
from pipeline.planning.photo_names import FIRST_SUFFIXES, LeftOut, is_companion, rule_of, suffix_of
from pipeline.planning.scratch_db import Staging
from pipeline.planning.source import Source

TAKEN = [
    *("a.jpg", "b.JPEG", "c.jfif", "d.jpe", "e.PPM", "f.heif", "g.apng", "h.dib", "i.avifs"),
    *("j.JpG", "k.pjpeg", "l.mpo", "m.j2k", "n.tar.jpg", "o.v1/p.png", ".hidden/q.webp"),
]
OTHERS = ["notes.txt", "scan.PDF", "photo", "archive.tar.gz", "photo.jpg.bak", ".jpg", "a.d/b"]
COMPANIONS = [
    *("._a.jpg", "d/.DS_Store", "Thumbs.db", "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg"),
    *("__MACOSX/._a.jpg", "x/__MACOSX/b.jpg", ".AppleDouble/a.jpg", "desktop.ini"),
]


def make(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def listing(source: Source) -> tuple[list[str], list[str]]:
    """(names, notes) of a listing."""
    notes: list[str] = []
    with Staging() as staging:
        stage_listing(staging, source, None, lambda count: None, notes.append)
        rows = staging.connection.execute("select file_name from listing").fetchall()
    return sorted(name for (name,) in rows), notes


def test_photos_of_every_suffix_are_listed_and_the_rest_is_said(tmp_path: Path) -> None:
    names, [note] = listing(Source(str(make(tmp_path, [*TAKEN, *OTHERS, *COMPANIONS]))))
    assert names == sorted(TAKEN)
    assert note.startswith("left out: 6 other files (")
    for words in ("3 without a suffix", "1 .txt", "1 .pdf", "1 .gz", "1 .bak", "--any-suffix"):
        assert words in note
    assert "8 companion files" in note


def test_odd_suffixes_are_said_on_one_short_line(tmp_path: Path) -> None:
    make(tmp_path, ["a.jpg", "b.x\ny", "c.\x1b[31m", "d." + "e" * 200])
    _, [note] = listing(Source(str(tmp_path)))
    assert note.isprintable()
    for words in ("1 .x\\x0ay", "1 .\\x1b[31m", f"1 .{'e' * 20}..."):
        assert words in note


def test_nothing_left_out_is_no_note(tmp_path: Path) -> None:
    assert listing(Source(str(make(tmp_path, ["a.jpg"])))) == (["a.jpg"], [])


def test_any_suffix_takes_what_may_be_a_picture(tmp_path: Path) -> None:
    make(tmp_path, [*TAKEN, *OTHERS, *COMPANIONS])
    config = make_config({"source": str(tmp_path), "out": str(tmp_path / "r"), "any_suffix": True})
    names, [note] = listing(Source.of(config))
    assert names == sorted([*TAKEN, "photo", "photo.jpg.bak", ".jpg", "a.d/b"])
    assert "2 other files" in note


def test_include_takes_its_own_suffixes_and_no_companions(tmp_path: Path) -> None:
    make(tmp_path, ["a.xyz", "._b.xyz", "c.jpg"])
    names, [note] = listing(Source(str(tmp_path), include=("*.xyz",)))
    assert names == ["a.xyz"]
    assert note.startswith("left out: 1 companion file of file systems (._*, .DS_Store,")
    assert "--include" not in note


def test_an_empty_listing_says_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images found.*left out: 2 other files \(2 \.txt\)"):
        listing(Source(str(make(tmp_path, ["a.txt", "b.txt"]))))


def test_a_run_keeps_the_set_that_it_was_listed_by(tmp_path: Path) -> None:
    """A longer set in a later version must not flood a night that exists."""
    make(tmp_path, ["a.jpg", "b.jfif", "._c.jpg", "d.xyz"])
    config = make_config({"source": str(tmp_path), "out": str(tmp_path / "run")})
    for recorded, expected in (
        ({}, ["._c.jpg", "a.jpg"]),
        ({"suffixes": list(FIRST_SUFFIXES)}, ["._c.jpg", "a.jpg"]),
        ({"suffixes": ["xyz"]}, ["d.xyz"]),
        (None, ["a.jpg", "b.jfif"]),
    ):
        assert listing(Source.of(config, recorded))[0] == expected


def test_many_suffixes_are_summed_up() -> None:
    left_out = LeftOut()
    for number in range(30):
        left_out.suffixes[f"s{number}"] = number + 1
    sentence = left_out.sentence()
    assert sentence is not None
    assert sentence.count(" .s") == 8
    assert "253 of other suffixes" in sentence


@pytest.mark.parametrize(
    ("path", "suffix"),
    [
        ("a/b.C", "c"),
        ("a.b/c", ""),
        (".jpg", ""),
        ("a.", ""),
        ("a.jpg/", "jpg"),
        ("a b.PNG", "png"),
    ],
)
def test_a_suffix_is_the_name_s(path: str, suffix: str) -> None:
    assert suffix_of(path) == suffix


@pytest.mark.parametrize("path", ["a.jpg", "my._a.jpg", "macosx/a.jpg", "thumbs.db.jpg"])
def test_photos_are_no_companions(path: str) -> None:
    assert not is_companion(path)
    assert rule_of(["jpg"], any_suffix=False).takes(path)


@pytest.mark.parametrize(
    "path",
    [
        *("lost+found/a.jpg", ".snapshot/hourly.0/a.jpg", "x/#recycle/a.jpg", ".@__thumb/a.jpg"),
        *("..data/a.jpg", "..2026_11_27_16_00_00.123456789/a.jpg", ".ipynb_checkpoints/a.jpg"),
    ],
)
def test_folders_of_file_servers_and_mounts_are_companions(path: str) -> None:
    assert is_companion(path)


@pytest.mark.parametrize("path", ["../a.jpg", "a/../b.jpg", "..holiday/a.jpg", "snapshot/a.jpg"])
def test_other_folders_with_dots_are_not(path: str) -> None:
    assert not is_companion(path)


def test_with_any_suffix_nobody_is_told_to_use_it(tmp_path: Path) -> None:
    config = make_config({"source": str(tmp_path), "out": str(tmp_path / "r"), "any_suffix": True})
    with pytest.raises(
        UserError, match=r"no images found.*check the path \(left out: the run folder"
    ):
        listing(Source.of(config))
    make(tmp_path, ["a.txt", "b"])
    _, [note] = listing(Source.of(config))
    assert "--any-suffix" not in note
    assert "--include" in note


def test_a_mounted_folder_of_kubernetes_is_listed_once(tmp_path: Path) -> None:
    make(tmp_path, ["..2026_11_27_16_00_00.1/a.jpg"])
    (tmp_path / "..data").symlink_to("..2026_11_27_16_00_00.1")
    (tmp_path / "a.jpg").symlink_to("..data/a.jpg")
    names, _ = listing(Source(str(tmp_path)))
    assert names == ["a.jpg"]
