"""The Kubernetes files hold only fields that KubeRay has; the image and the night agree."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.verbs import VERBS

ROOT = Path(__file__).resolve().parent.parent
FIELDS = json.loads((ROOT / "tests/kuberay_fields.json").read_text())
FILES = ("rayjob", "raycronjob")
LOCKED_RAY = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
PYTHON = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
HADOLINT = Path(sys.executable).parent / "hadolint"
SCALARS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "map": dict}


def load(name: str) -> dict[str, Any]:
    """The document of KubeRay's kind."""
    return documents(name)[0]


def documents(name: str) -> list[dict[str, Any]]:
    """The night, and who may reach its pods."""
    night, policy = yaml.safe_load_all((ROOT / f"jobs/k8s/{name}.yaml").read_text())
    return [night, policy]


def faults(value: Any, kind: str, path: str = "") -> list[str]:
    """What the API server would refuse: unknown or missing fields, values of another type."""
    if kind.endswith("[]"):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [f for i, own in enumerate(value) for f in faults(own, kind[:-2], f"{path}[{i}]")]
    if kind == "any":
        return []
    if kind in SCALARS:
        fits = isinstance(value, SCALARS[kind])
        fits = fits and isinstance(value, bool) == (kind == "boolean")
        if kind == "map" and fits:
            texts = ((name, own) for name, own in value.items() if not isinstance(own, str))
            return [f"{path}.{name} is no string" for name, _ in texts]
        return [] if fits else [f"{path} is no {kind}"]
    known = FIELDS[kind]
    found = [f"{path}.{name} is no field" for name in value if name not in known]
    found += [f"{path}.{n} is missing" for n in FIELDS["required"].get(kind, ()) if n not in value]
    for name, own in value.items():
        if name in known:
            found += faults(own, known[name], f"{path}.{name}")
    return found


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document["spec"].get("jobTemplate", document["spec"])["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [own for pod in pods(document) for own in pod["containers"]]


def test_the_field_list_names_the_commits_it_was_made_from() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in FIELDS["commits"].values())


@pytest.mark.parametrize("name", FILES)
def test_every_field_is_known_to_kuberay(name: str) -> None:
    document = load(name)
    assert document["apiVersion"] == "ray.io/v1"
    assert faults(document, document["kind"]) == []


@pytest.mark.parametrize("name", FILES)
def test_every_process_of_the_cluster_must_show_the_token(name: str) -> None:
    document = load(name)
    job = document["spec"].get("jobTemplate", document["spec"])
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    job["rayClusterSpec"]["authOptions"]["modus"] = "token"
    [fault] = faults(document, document["kind"])
    assert "modus" in fault


@pytest.mark.parametrize("name", FILES)
def test_only_ray_and_who_submits_reach_the_pods(name: str) -> None:
    night, policy = documents(name)
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert faults(policy, "NetworkPolicy") == []
    spec = policy["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["podSelector"]["matchLabels"] == {"panoptic": "ray"}
    job = night["spec"].get("jobTemplate", night["spec"])["rayClusterSpec"]
    for group in (job["headGroupSpec"], *job["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"].items() >= {("panoptic", "ray")}
    for rule in spec["ingress"]:
        assert rule["from"]  # an empty list would let everybody in
        assert all(
            peer.get("podSelector", {}).get("matchLabels")
            or peer.get("podSelector", {}).get("matchExpressions")
            for peer in rule["from"]
        )
        among_themselves = rule["from"] == [{"podSelector": spec["podSelector"]}]
        assert among_themselves or [port["port"] for port in rule["ports"]] == [8265]


def test_both_files_have_the_same_policy() -> None:
    assert documents("rayjob")[1] == documents("raycronjob")[1]


def test_each_document_can_be_chosen_by_its_label() -> None:
    for name in FILES:
        assert [own["metadata"]["labels"] for own in documents(name)] == [
            {"panoptic": "night"},
            {"panoptic": "network"},
        ]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("spec",), "scheduel", "1 2 * * *"),
        (("job",), "ttlSecondsAfterFinish", 60),
        (("job", "rayClusterSpec"), "headGroupSpecs", {}),
        (("job", "rayClusterSpec", "workerGroupSpecs", 0), "maxReplica", 3),
        (("job", "rayClusterSpec", "workerGroupSpecs", 0), "maxReplicas", "3"),
        (("job", "rayClusterSpec", "headGroupSpec", "rayStartParams"), "num-cpus", 0),
        (("job", "rayClusterSpec", "headGroupSpec", "template", "spec"), "container", []),
    ],
)
def test_a_wrong_field_is_found(
    name: str, path: tuple[str | int, ...], key: str, value: object
) -> None:
    document = copy.deepcopy(load(name))
    place: Any = document
    for step in path:
        if step == "job":
            spec = document["spec"]
            place = spec.get("jobTemplate", spec)
        else:
            place = place[step]
    place[key] = value
    [fault] = faults(document, document["kind"])
    assert key in fault


@pytest.mark.parametrize("field", ["jobTemplate", "schedule"])
def test_a_cron_job_without_its_schedule_or_job_is_found(field: str) -> None:
    document = load("raycronjob")
    del document["spec"][field]
    assert faults(document, "RayCronJob") == [f".spec.{field} is missing"]


def test_the_cron_job_is_the_job_every_night() -> None:
    cron = load("raycronjob")["spec"]
    assert cron["jobTemplate"] == load("rayjob")["spec"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", cron["schedule"])
    assert cron["timeZone"] == "Etc/UTC"


@pytest.mark.parametrize("name", FILES)
def test_a_night_costs_nothing_before_and_after_and_a_bounded_sum_between(name: str) -> None:
    document = load(name)
    job = document["spec"].get("jobTemplate", document["spec"])
    assert job["shutdownAfterJobFinishes"] is True
    assert 0 < job["ttlSecondsAfterFinished"] <= 3600
    assert 0 < job["activeDeadlineSeconds"] <= 24 * 3600
    cluster = job["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert all(group["minReplicas"] == group["replicas"] == 0 for group in groups.values())
    assert groups["gpu"]["maxReplicas"] <= 16
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("name", FILES)
def test_every_container_runs_the_locked_ray(name: str) -> None:
    assert LOCKED_RAY is not None
    document = load(name)
    job = document["spec"].get("jobTemplate", document["spec"])
    assert job["rayClusterSpec"]["rayVersion"] == LOCKED_RAY[1]
    images = {container["image"] for container in containers(document)}
    assert images == {f"registry.example/panoptic:ray-{LOCKED_RAY[1]}"}


@pytest.mark.parametrize("name", FILES)
def test_every_container_can_write_the_image_s_cache(name: str) -> None:
    found = re.search(r"PANOPTIC_CACHE=(\S+)", (ROOT / "Dockerfile").read_text())
    assert found is not None
    for pod in pods(load(name)):
        disks = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
        for container in pod["containers"]:
            mounts = [m for m in container["volumeMounts"] if m["name"] in disks]
            assert any(
                Path(found[1]).is_relative_to(m["mountPath"]) and not m.get("readOnly", False)
                for m in mounts
            ), container["name"]


def test_the_image_makes_its_cache_before_it_gives_up_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    found = re.search(r"PANOPTIC_CACHE=(\S+)", text)
    assert found is not None
    made = re.search(rf"^RUN install -d -m 1777 .*{found[1]}$", text, re.MULTILINE)
    assert made is not None
    assert re.findall(r"^USER (\d+)", text[: made.start()], re.MULTILINE) == ["0"]
    assert re.findall(r"^USER (\d+)", text[made.end() :], re.MULTILINE) == ["1000"]


def test_the_entrypoint_is_a_command_of_ours() -> None:
    words = load("rayjob")["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "jobs.cli"]
    assert words[3] in VERBS


def test_the_image_is_built_on_the_locked_ray_and_lints() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert LOCKED_RAY is not None
    assert PYTHON is not None
    version = f"py3{PYTHON[1]}"
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == [
        f"rayproject/ray:{LOCKED_RAY[1]}-{version}-gpu"
    ]
    copied = {
        word
        for line in re.findall(r"^COPY \S+ (.+)", text, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert all((ROOT / name).exists() for name in copied)
    assert {"detr", "pipeline", "jobs", "requirements.lock"} <= copied
    hadolint = Path(sys.executable).parent / "hadolint"
    lint = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert lint.returncode == 0, lint.stdout


def test_the_linter_finds_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text((ROOT / "Dockerfile").read_text() + "RUN pip install something && cd /tmp\n")
    assert subprocess.run([HADOLINT, bad], capture_output=True, check=False).returncode == 1
