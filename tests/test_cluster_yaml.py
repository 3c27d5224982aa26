"""`cluster.yaml`: Ray's own checks, and ours on what Ray passes on without looking."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.model import Shape
from botocore.session import get_session
from botocore.validate import ParamValidator
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import (
    _default_utilization_scorer,
    get_nodes_for,
)
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "cluster.yaml").read_text()
CONFIG: dict[str, Any] = yaml.safe_load(TEXT)
TYPES: dict[str, dict[str, Any]] = CONFIG["available_node_types"]
WORKERS = {name: own for name, own in TYPES.items() if name != CONFIG["head_node_type"]}
PYTHON = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
LOCKED_RAY = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def run_instances() -> Shape:
    """What EC2 takes to start a node, as boto3 knows it."""
    model: Any = get_session().get_service_model("ec2").operation_model("RunInstances")
    assert model.input_shape is not None
    return model.input_shape


def node_config_faults(node_config: dict[str, Any]) -> str:
    """Ray adds the counts, keys, groups and subnets; everything else goes to EC2 as it is."""
    given = {"MinCount": 1, "MaxCount": 1, **node_config}
    return ParamValidator().validate(given, run_instances()).generate_report()


def test_ray_takes_it() -> None:
    validate_config(prepare_config(copy.deepcopy(CONFIG)))


@pytest.mark.parametrize("name", TYPES)
def test_ec2_knows_every_key_of_every_node(name: str) -> None:
    assert node_config_faults(TYPES[name]["node_config"]) == ""


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((), "InstanceTyp", "g6.2xlarge"),
        (("MetadataOptions",), "HttpToken", "required"),
        (("BlockDeviceMappings", 0, "Ebs"), "VolumeSize", "150"),
        ((), "IamInstanceProfile", "panoptic-node"),
    ],
)
def test_a_wrong_key_is_found(path: tuple[Any, ...], key: str, value: object) -> None:
    node_config = copy.deepcopy(TYPES["gpu-spot"]["node_config"])
    place: Any = node_config
    for step in path:
        place = place[step]
    place[key] = value
    assert key in node_config_faults(node_config)


def test_the_image_is_the_locked_ray_and_python() -> None:
    assert LOCKED_RAY is not None
    assert PYTHON is not None
    version = f"py3{PYTHON[1]}"
    assert CONFIG["docker"]["image"] == f"rayproject/ray:{LOCKED_RAY[1]}-{version}-gpu"


def test_the_head_takes_no_work() -> None:
    head = TYPES[CONFIG["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "--num-cpus=0" in CONFIG["head_start_ray_commands"][-1]


def test_the_bill_is_bounded_and_nothing_idles() -> None:
    assert CONFIG["max_workers"] <= 10
    assert all(own["min_workers"] == 0 for own in WORKERS.values())
    assert all(own["max_workers"] <= CONFIG["max_workers"] for own in WORKERS.values())
    assert CONFIG["idle_timeout_minutes"] <= 10
    assert CONFIG["provider"]["cache_stopped_nodes"] is False


def demand(
    types: dict[str, dict[str, Any]], bundle: dict[str, float], count: int
) -> dict[str, int]:
    """What Ray's autoscaler starts for so many bundles."""
    everything = NodeAvailabilitySummary(node_availabilities={})

    def scorer(node: Any, demands: Any, name: str) -> Any:
        return _default_utilization_scorer(
            node, demands, name, node_availability_summary=everything
        )

    bundles: Any = [bundle] * count
    found, _ = get_nodes_for(types, {}, CONFIG["head_node_type"], 100, bundles, scorer)
    return dict(found)


def test_spot_gpus_come_first_and_on_demand_ones_where_there_are_none() -> None:
    gpu = {"GPU": 1.0, "CPU": 1.0}
    assert demand(TYPES, gpu, 3) == {"gpu-spot": 3}
    without = {name: own for name, own in TYPES.items() if name != "gpu-spot"}
    assert demand(without, gpu, 3) == {"gpu-on-demand": 3}


def test_work_without_a_gpu_starts_no_gpu() -> None:
    assert demand(TYPES, {"CPU": 1.0}, 8) == {"cpu-on-demand": 1}


def test_only_gpus_are_spot_and_every_node_has_a_role_and_imdsv2() -> None:
    for name, own in TYPES.items():
        node_config = own["node_config"]
        spot = node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert spot == (name == "gpu-spot")
        assert node_config["IamInstanceProfile"]["Name"] == "panoptic-node"
        assert node_config["MetadataOptions"]["HttpTokens"] == "required"
        assert node_config["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    assert (
        TYPES["gpu-spot"]["node_config"]["InstanceType"]
        == (TYPES["gpu-on-demand"]["node_config"]["InstanceType"])
    )


def test_no_key_a_token_and_a_dashboard_that_listens_to_nobody() -> None:
    assert not re.search(r"AKIA|aws_secret|AWS_ACCESS_KEY|KeyName", TEXT)
    assert "-e RAY_AUTH_MODE=token" in CONFIG["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in CONFIG["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in CONFIG["head_start_ray_commands"][-1]
    assert CONFIG["setup_commands"]
    assert not any("nightly" in command for command in CONFIG["setup_commands"])


def test_spilled_objects_go_to_the_nvme_and_ray_knows_every_flag() -> None:
    shown = subprocess.run(
        [Path(sys.executable).parent / "ray", "start", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = CONFIG[commands][-1]
        assert "--object-spilling-directory=/mnt/nvme/spill" in start
        for flag in re.findall(r"--[a-z-]+", start):
            assert flag in shown
    made = " ".join(CONFIG["initialization_commands"])
    assert "/mnt/nvme/spill" in made
    assert "-v /mnt/nvme:/mnt/nvme" in CONFIG["docker"]["run_options"]


def test_every_number_has_its_reason() -> None:
    """A line with a number of ours has a comment, on it or in the block above."""
    reasoned = False
    for line in TEXT.splitlines():
        if line.strip().startswith("#"):
            reasoned = True
            continue
        if not line.strip():
            reasoned = False
        bare = line.split("#")[0]
        if re.search(r"(max_workers|timeout|speed|VolumeSize|HopLimit|shm-size|nofile)\D*\d", bare):
            assert reasoned or "#" in line, line
