"""No planted key, token or signature is left anywhere: run folder, output, Ray's session folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest
from ray._private import worker as ray_worker

from jobs.cli import run as panoptic
from pipeline.run.run import open_run
from tests.night_model import png
from tests.run_rows import live_rows

pytestmark = pytest.mark.usefixtures("ray_session")

KEY = "pl4ntedKEY"
SIGNATURE = "pl4ntedSIGNATURE%2Fwith%2Fslashes"
SHAPES = {  # options as the stores' clients name them
    "s3": ["key=A", f"secret={KEY}"],
    "gcs": [f"token={KEY}"],
    "azure": [f"account_key={KEY}", f"sas_token={KEY}"],
    "http": [f"password={KEY}"],
}


SLOW = pytest.mark.slow(seconds=15)


def session_folder() -> Path:
    node = ray_worker._global_node
    assert node is not None
    return Path(node.get_session_dir_path())


def holders(text: str, *folders: Path) -> list[str]:
    """The files that hold a text, Parquet by its rows: they are compressed."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if not path.is_file():
                continue
            content = path.read_bytes()
            if path.suffix == ".parquet":
                content += str(pq.read_table(path).to_pylist()).encode()
            if text.encode() in content:
                found.append(str(path.relative_to(folder)))
    return found


def words(source: Path, tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "level").write_text("128")
    return [
        *("segment", str(source), "--out", str(tmp_path / "run"), "--max-error-rate", "1"),
        *("--weights", str(tmp_path / "level"), "--model", "tests.night_model:load"),
        *("--num-actors", "1", *more),
    ]


@pytest.mark.parametrize(
    "shape",
    ["azure", *(pytest.param(own, marks=SLOW) for own in ("s3", "gcs", "http"))],
)
def test_a_storage_option_outside_the_list_stays_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.png").write_bytes(png(1))
    (photos / "2.png").write_bytes(b"no image")
    given = [word for pair in SHAPES[shape] for word in ("--source-option", pair)]
    assert panoptic(words(photos, tmp_path, *given)) == 0
    said = "".join(capsys.readouterr())
    name = SHAPES[shape][-1].partition("=")[0]
    assert f"{name} stays in the memory of this job" in said
    assert panoptic(["retry", str(tmp_path / "run"), "--all"]) == 2
    refused = "".join(capsys.readouterr())
    assert "which is written nowhere: give it again" in refused
    assert panoptic(["retry", str(tmp_path / "run"), "--all", *given]) == 0
    said += refused + "".join(capsys.readouterr())
    assert KEY not in said
    assert holders(KEY, tmp_path, session_folder()) == []
    assert open_run(str(tmp_path / "run")).info.config["source_options"] == {}


@pytest.fixture
def server() -> Iterator[str]:
    """Photos for whoever has the signature."""

    class Photos(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = unquote(SIGNATURE) in unquote(self.path) and "/gone" not in self.path
            self.send_response(200 if good else 404)
            self.end_headers()
            if good:
                self.wfile.write(png(1))

        def log_message(self, format: str, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Photos) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_kept_signature_is_in_the_manifest_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    listing = tmp_path / "list.txt"
    urls = [f"{server}/{name}.png?X-Amz-Signature={SIGNATURE}" for name in ("a", "b", "gone")]
    listing.write_text("\n".join(urls))
    assert panoptic(words(listing, tmp_path)) == 2
    refused = "".join(capsys.readouterr())
    assert "--keep-signed-urls" in refused
    assert not (tmp_path / "run").exists()

    assert panoptic(words(listing, tmp_path, "--keep-signed-urls")) == 0
    run = str(tmp_path / "run")
    assert panoptic(["verify", run]) == 0
    assert panoptic(["errors", run]) == 0
    said = refused + "".join(capsys.readouterr())
    rows = {row["file_name"]: row for row in live_rows(tmp_path / "run").to_pylist()}
    assert sorted(rows) == [f"{server}/{name}.png" for name in ("a", "b", "gone")]
    assert all(row["uri"] == name for name, row in rows.items())
    assert [row["status"] for _, row in sorted(rows.items())] == ["ok", "ok", "error"]
    planted = SIGNATURE.partition("%")[0]
    assert planted not in said
    assert holders(planted, session_folder()) == []
    kept = holders(planted, tmp_path / "run")
    assert kept
    assert all(name.startswith("manifest/") for name in kept)
