"""The Prometheus metrics of a running job, through Ray's metrics endpoint.

Only the progress actor sets metrics, so a shard that is computed twice counts once in the counters
of images. docs/faults.md has the table of names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from ray.util import metrics

BATCH_BOUNDARIES: Final = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
_KINDS: Final = {
    "counter": metrics.Counter,
    "gauge": metrics.Gauge,
    "histogram": partial(metrics.Histogram, boundaries=BATCH_BOUNDARIES),
}

# Name -> (kind, tag besides `run`, description). A test compares docs/faults.md.
METRICS: Final = {
    "panoptic_images_total": ("counter", "code", "images with a row in the store; ok or the error"),
    "panoptic_segments_total": ("counter", None, "segments in those rows"),
    "panoptic_shards_total": ("counter", None, "shards in the store"),
    "panoptic_bytes_total": ("counter", "direction", "bytes fetched and written"),
    "panoptic_fetch_retries_total": ("counter", "code", "GETs that were made again, by error"),
    "panoptic_stage_seconds_total": ("counter", "stage", "seconds of work, by stage"),
    "panoptic_batch_images": ("histogram", None, "images in a batch of the model"),
    "panoptic_images_planned": ("gauge", None, "images that this call has to compute"),
    "panoptic_images_per_second": ("gauge", None, "rows written, over the whole call"),
    "panoptic_shards_in_flight": ("gauge", "state", "shards between fetch and store, by state"),
    "panoptic_quiet_seconds": ("gauge", None, "since any stage last reported"),
}


class Metrics:
    """The metrics of one run, in the process of the progress actor."""

    def __init__(self, run: str) -> None:
        self._run = {"run": run}
        self._made: dict[str, Any] = {
            name: _KINDS[kind](name, description=text, tag_keys=("run", tag) if tag else ("run",))
            for name, (kind, tag, text) in METRICS.items()
        }

    def add(self, name: str, value: float, tag: str | None = None) -> None:
        """Increase a counter; a value of 0 creates no series."""
        if value > 0:
            self._made[name].inc(value, tags=self._tags(name, tag))

    def set(self, name: str, value: float, tag: str | None = None) -> None:
        self._made[name].set(value, tags=self._tags(name, tag))

    def batches(self, sizes: Mapping[int, int]) -> None:
        """Add batches to the histogram. sizes: number of batches by their images."""
        for size in Counter(sizes).elements():
            self._made["panoptic_batch_images"].observe(size, tags=self._run)

    def _tags(self, name: str, value: str | None) -> dict[str, str]:
        tag = METRICS[name][1]
        return {**self._run, tag: value} if tag and value is not None else self._run
