"""What travels with a job, what stays, and what makes two jobs the same."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from jobs.parcel import Parcel, check_runtime_env, pack, stage_code
from pipeline.errors import UserError
from tests.servers import S3Server


@pytest.fixture
def out(moto: S3Server) -> str:
    moto.client().create_bucket(Bucket="data")
    return "s3://data/run"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"numbers")
    return path


def objects(server: S3Server) -> dict[str, int]:
    listed = server.client().list_objects_v2(Bucket="data").get("Contents", [])
    return {entry["Key"]: entry["Size"] for entry in listed}


def test_the_same_job_has_the_same_id_and_another_one_another() -> None:
    words = ["segment", "s3://b/photos", "--out", "s3://b/run", "--limit", "5"]
    one = pack(words, shared_files=False)
    assert one.submission_id == pack(words, shared_files=False).submission_id
    assert one.submission_id.startswith("panoptic-segment-")
    other = pack([*words[:-1], "6"], shared_files=False)
    assert other.submission_id != one.submission_id


def test_local_weights_go_into_the_run_folder_once(moto: S3Server, out: str, weights: Path) -> None:
    words = ["segment", "s3://data/photos", "--out", out, "--weights", str(weights)]
    first = pack(words, shared_files=False)
    [key] = objects(moto)
    assert key.startswith("run/inputs/")
    assert first.words[-1] == f"s3://data/{key}"
    assert pack(words, shared_files=False) == first
    assert list(objects(moto)) == [key]
    weights.write_bytes(b"other numbers")
    assert pack(words, shared_files=False).submission_id != first.submission_id


def test_truth_takes_its_pngs_along(moto: S3Server, out: str, tmp_path: Path) -> None:
    (tmp_path / "gt.json").write_text("{}")
    (tmp_path / "gt").mkdir()
    (tmp_path / "gt/1.png").write_bytes(b"png")
    parcel = pack(["evaluate", out, f"--truth={tmp_path}/gt.json"], shared_files=False)
    url = parcel.words[-1].removeprefix("--truth=")
    keys = sorted(objects(moto))
    folder = url.removeprefix("s3://data/").removesuffix(".json")
    assert keys == sorted([f"{folder}.json", f"{folder}/1.png"])


@pytest.mark.parametrize(
    ("flag", "changed"),
    [
        ("--weights={}/weights", "weights/config.json"),
        ("--truth-masks={}/gt", "gt/1.png"),
        ("--truth={}/gt.json", "gt/1.png"),  # the folder beside it
    ],
)
def test_a_folder_that_changed_in_any_byte_is_sent_again(
    moto: S3Server, out: str, tmp_path: Path, flag: str, changed: str
) -> None:
    for name in ("weights/config.json", "weights/deep/model.safetensors", "gt/1.png", "gt.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"first")
    words = ["evaluate", out, flag.format(tmp_path)]
    first = pack(words, shared_files=False)
    sent = objects(moto)
    assert pack(words, shared_files=False) == first
    assert objects(moto) == sent
    (tmp_path / changed).write_bytes(b"other")  # as long as it was
    second = pack(words, shared_files=False)
    assert second.submission_id != first.submission_id
    url = second.words[-1].partition("=")[2]
    key = url.removeprefix("s3://data/").rpartition("/")[0] + "/" + changed
    assert moto.client().get_object(Bucket="data", Key=key)["Body"].read() == b"other"
    assert len(objects(moto)) == 2 * len(sent)


def test_a_config_file_travels_rewritten(out: str, weights: Path, tmp_path: Path) -> None:
    toml = tmp_path / "nightly.toml"
    settings = {"source": "s3://data/photos", "out": out, "weights": str(weights)}
    toml.write_text(tomli_w.dumps({**settings, "source_options": {"profile": "prod"}}))
    parcel = pack(["nightly", str(toml), "--allow-full"], shared_files=False)
    assert parcel.words == ("nightly", "config.toml", "--allow-full")
    sent = tomllib.loads(parcel.config or "")
    assert sent["weights"].startswith("s3://data/run/inputs/")
    assert sent["source_options"] == {"profile": "prod"}
    staged = tmp_path / "staged"
    staged.mkdir()
    stage_code(staged, parcel)
    assert (staged / "config.toml").read_text() == parcel.config
    assert {path.name for path in staged.iterdir()} == {
        *("detr", "pipeline", "jobs", "config.toml", "requirements.lock")
    }
    assert not list(staged.rglob("__pycache__"))


def test_inputs_go_to_the_run_folder_whatever_order_words_have(
    moto: S3Server, out: str, weights: Path
) -> None:
    moto.client().create_bucket(Bucket="images")  # may be read alone
    for words in (
        ["doctor", "s3://images/photos", out, f"--weights={weights}"],
        ["segment", "--refresh", "s3://images/photos", "--weights", str(weights), "--out", out],
    ):
        parcel = pack(words, shared_files=False)
        sent = next(word for word in parcel.words if word.endswith("weights.pth"))
        assert sent.removeprefix("--weights=").startswith(f"{out}/inputs/")
    assert "Contents" not in moto.client().list_objects_v2(Bucket="images")


def test_flags_may_come_before_the_file_of_a_night(tmp_path: Path) -> None:
    toml = tmp_path / "nightly.toml"
    toml.write_text('source = "s3://b/p"\nout = "s3://b/o"\n')
    words = ["nightly", "--allow-full", "--max-recompute", "0.9", str(toml)]
    parcel = pack(words, shared_files=False)
    assert parcel.words == ("nightly", "--allow-full", "--max-recompute", "0.9", "config.toml")
    assert tomllib.loads(parcel.config or "")["source"] == "s3://b/p"


def test_the_scripts_of_the_report_command_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "send.py"
    script.write_text("print(1)")
    settings = {"source": "s3://b/p", "out": "s3://b/o"}

    def packed(*report: str) -> Parcel:
        Path("nightly.toml").write_text(tomli_w.dumps({**settings, "report": report}))
        return pack(["nightly", "nightly.toml"], shared_files=False)

    parcel = packed("python", "send.py", "/usr/bin/env", "/app/post.py", "{run}")
    report = tomllib.loads(parcel.config or "")["report"]
    assert [report[0], *report[2:]] == ["python", "/usr/bin/env", "/app/post.py", "{run}"]
    staged = tmp_path / "staged"
    staged.mkdir()
    stage_code(staged, parcel)
    assert (staged / report[1]).read_text() == "print(1)"
    script.write_text("print(2)")
    again = packed("python", "send.py", "/usr/bin/env", "/app/post.py", "{run}")
    assert again.submission_id != parcel.submission_id

    with pytest.raises(UserError, match=r"there is no 'sent\.py' in"):
        packed("python", "sent.py")
    with pytest.raises(UserError, match="does not travel as a program"):
        packed("./send.py")


def test_a_model_of_one_s_own_travels(tmp_path: Path) -> None:
    words = ["segment", "s3://b/p", "--out", "s3://b/r", "--model", "tests.toy_model:load"]
    parcel = pack(words, shared_files=False)
    stage_code(tmp_path, parcel)
    assert (tmp_path / "tests/toy_model.py").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("segment {folder} --out s3://data/run", "source '{folder}': a folder of this machine"),
        ("segment s3://b/p --out {folder}/run", "the nodes of a cluster write to a bucket"),
        ("nightly {folder}/none.toml", "no such file"),
        ("evaluate {folder} --truth s3://b/gt.json", "the nodes of a cluster write to a bucket"),
        ("evaluate --truth {weights}", "no bucket to put them in"),
        ("evaluate --predictions {weights} --truth s3://b/gt.json", "predictions '{weights}': a"),
        ("doctor s3://b/p {folder}", "the nodes of a cluster write to a bucket"),
        ("segment s3://b/p --out s3://b/r --model no.such:load", "can't be imported here"),
    ],
)
def test_what_cannot_travel_is_a_sentence(
    words: str, sentence: str, weights: Path, tmp_path: Path
) -> None:
    places = {"folder": tmp_path, "weights": weights}
    with pytest.raises(UserError) as caught:
        stage_code(tmp_path, pack(words.format(**places).split(), shared_files=False))
    assert sentence.format(**places) in str(caught.value)


def test_shared_files_stay_where_they_are(weights: Path, tmp_path: Path) -> None:
    words = ["segment", str(tmp_path), "--out", str(tmp_path / "run"), "--weights", str(weights)]
    assert pack(words, shared_files=True).words == tuple(words)


def test_where_the_data_is_travels_and_who_may_read_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_PROFILE", "prod")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    parcel = pack(["status", "s3://b/run"], shared_files=False)
    assert parcel.environment["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"
    assert parcel.environment["AWS_REGION"] == "eu-central-1"
    assert parcel.environment["AWS_PROFILE"] == "prod"
    text = json.dumps([parcel.words, parcel.config, parcel.environment])
    assert "very secret" not in text
    assert "AKIAEXAMPLE" not in text


@pytest.mark.parametrize(
    "words",
    [
        ["--source-option", "account_key=pl4nted"],
        ["--out-option=sas_token=pl4nted"],
        ["--source-option", "token=pl4nted"],
        ["--source-option", "endpoint_url=https://user:pl4nted@host"],
        ["--source-option=AWS-Secret-Access-Key=pl4nted"],
        ["--out-option", "default_headers={'Authorization': 'pl4nted'}"],
        ["--out-option=endpoint=https://host?token=pl4nted"],
        ["--source-option", "pl4nted="],
        ["--source-option", "pl4nted"],
        ["--weights", "simplecache::https://user:pl4nted@host/w.pth"],
        ["--weights", "https://user:pl4nted@host/w.pth"],
        ["--weights=https://host/w.pth?X-Amz-Signature=pl4nted"],
    ],
)
def test_a_credential_on_the_command_line_does_not_travel(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"role|must be KEY=VALUE") as refused:
        pack(["segment", "s3://b/photos", "--out", "s3://b/run", *words], shared_files=True)
    assert "pl4nted" not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('weights = "gs://user:pl4nted@b/w"', "role"),
        ('[source_options]\nclient_secret = "pl4nted"', "role"),
        ('[source_options.client_kwargs]\naws_secret_access_key = "pl4nted"', "a table of texts"),
        ('[out_options]\nendpoint_url = "https://me:pl4nted@host"', "role"),
        ("[out_options]\n\"{'key': 'pl4nted'}\" = \"x\"", "must be KEY=VALUE"),
        ('source_options = "secret=pl4nted"', "a table of texts"),
        ('source_options = [{ secret = "pl4nted" }]', "a table of texts"),
        ('aws_secret_access_key = "pl4nted"', "unknown setting 'aws_secret_access_key'"),
        ('[storage_options]\nsecret = "pl4nted"', "unknown setting 'storage_options'"),
        ('report = ["curl", "https://host/hook?token=pl4nted"]', "role"),
        ('report = ["sh", "-c", "curl https://me:pl4nted@host"]', "role"),
        ('report = ["curl", "-H", "Authorization: Bearer pl4nted"]', "role"),
    ],
)
def test_a_credential_in_a_config_file_does_not_travel(
    tmp_path: Path, line: str, words: str
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'source = "s3://b/photos"\nout = "s3://b/run"\n{line}\n')
    commands = [["nightly", str(config)]]
    if "report" not in line:
        commands.append(["segment", "--config", str(config)])
    for command in commands:
        with pytest.raises(UserError, match=words) as refused:
            pack(command, shared_files=True)
        assert "pl4nted" not in str(refused.value)


@pytest.mark.parametrize("verb", ["segment", "train", "nightly"])
def test_a_setting_that_the_verb_lacks_is_refused_before_anything_is_sent(
    moto: S3Server, out: str, weights: Path, tmp_path: Path, verb: str
) -> None:
    config = tmp_path / "settings.toml"
    config.write_text(f'out = "{out}"\nweights = "{weights}"\ncolour = "red"\n')
    words = [verb, *(["--config"] if verb != "nightly" else []), str(config)]
    with pytest.raises(UserError, match=r"unknown setting 'colour' in .*settings\.toml"):
        pack(words, shared_files=False)
    assert objects(moto) == {}
    config.write_text(f'out = "{out}"\nweights = "{weights}"\n')
    pack(words, shared_files=False)
    assert len(objects(moto)) == 1


def test_options_that_say_where_the_data_is_travel() -> None:
    words = ["segment", "s3://b/photos", "--out", "s3://b/run", "--source-option", "profile=prod"]
    assert pack(words, shared_files=True).words[-1] == "profile=prod"


def test_a_credential_of_a_runtime_environment_is_refused() -> None:
    check_runtime_env({"env_vars": {"AWS_REGION": "eu-west-1"}, "pip": ["adlfs"]})
    for environment in (
        {"env_vars": {"AWS_SECRET_ACCESS_KEY": "pl4nted"}},
        {"env_vars": {"https_proxy": "http://me:pl4nted@proxy:3128"}},
        {"working_dir": "https://me:pl4nted@git.example/x.zip"},
        {"pip": ["--extra-index-url https://me:pl4nted@pypi.example/simple", "adlfs"]},
    ):
        with pytest.raises(UserError, match="role") as refused:
            check_runtime_env(environment)
        assert "pl4nted" not in str(refused.value)


@pytest.mark.parametrize("suffix", ["txt", "parquet"])
def test_a_local_list_of_signed_urls_does_not_travel(
    moto: S3Server, out: str, tmp_path: Path, suffix: str
) -> None:
    url = "https://host/a.jpg?X-Amz-Signature=pl4nted"
    path = tmp_path / f"list.{suffix}"
    if suffix == "txt":
        path.write_text(url)
    else:
        pq.write_table(pa.table({"uri": [url]}), path)
    words = ["segment", str(path), "--out", out, "--keep-signed-urls"]
    with pytest.raises(UserError, match="holds signed URLs, which don't travel"):
        pack(words, shared_files=False)
    assert objects(moto) == {}
