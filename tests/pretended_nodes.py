"""Nodes that Ray's own pretending provider starts on this machine, with memory.

Ray Data asks the autoscaler for nodes of the shape that it sees, memory included, and an actor
declares its memory too: a node type that lists none can serve neither. Ray's provider hands every
resource it doesn't know to the new node as a custom one, which memory must not be.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from ray._private.parameter import RayParams
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class PretendedNodes(FakeMultiNodeProvider):
    """`provider: {type: external, module: tests.pretended_nodes.PretendedNodes}`."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: Any, resources: Any, labels: Any
    ) -> None:
        with patch("ray._private.parameter.RayParams", _with_memory):
            super()._create_node_with_resources_and_labels(
                node_config, tags, count, resources, labels
            )


def _with_memory(*, resources: dict[str, float], **others: Any) -> RayParams:
    return RayParams(memory=resources.pop("memory", None), resources=resources, **others)
