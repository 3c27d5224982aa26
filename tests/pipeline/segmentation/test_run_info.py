"""What `run.json` says of storage options: the values of those that are no secret, no more."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from pipeline.cluster.device import Device
from pipeline.config import make_config
from pipeline.segmentation.model_spec import Identity, ModelDescription
from pipeline.segmentation.run_info import describe_run
from pipeline.train.synthetic import SCENE_CATEGORIES

KEY = "pl4nted"
KEPT = {"region": "eu-west-1", "endpoint_url": "https://host:9000", "profile": "prod"}
SECRET = {  # as the clients of each store call them
    "s3": ("AWS_SECRET_ACCESS_KEY", "aws-session-token", "secret", "client_kwargs"),
    "gs": ("token", "google_service_account_key", "session_kwargs"),
    "az": ("account_key", "SAS_TOKEN", "credential", "connection_string"),
    "https": ("headers", "client_kwargs", "auth", "proxy"),
}


@pytest.mark.parametrize("scheme", SECRET)
def test_a_secret_option_leaves_its_name_alone(scheme: str) -> None:
    secret = dict.fromkeys(SECRET[scheme], json.dumps({"Authorization": f"Bearer {KEY}"}))
    config = make_config(
        {
            "source": f"{scheme}://host/photos",
            "out": f"{scheme}://host/run",
            "source_options": {**KEPT, **secret},
            "out_options": {**KEPT, **secret},
        }
    )
    identity = Identity("0" * 64, "0" * 64, "card")
    description = ModelDescription(SCENE_CATEGORIES, "0" * 64, {}, identity)
    info = describe_run(config, description, Device("cpu", "cpu", "fp32"))
    assert KEY not in json.dumps(asdict(info))
    assert info.config["source_options"] == info.config["out_options"] == KEPT
    names = sorted(secret)
    assert info.withheld == {"source_options": names, "out_options": names}
