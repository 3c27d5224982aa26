"""`nightly.toml`: the settings of `segment`, and those of brakes, release gate and report.

Brakes (`max_removed_rate`, `max_recompute`) stop a call before it computes images; the limits of
the release gate stop it before it publishes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.config import RunConfig, load_config
from pipeline.errors import UserError
from pipeline.evaluation.drift import ShareLimits
from pipeline.evaluation.quality_gate import MIN_SEGMENTS

NOT_OF_A_NIGHT = ("refresh", "shards")


class NightlyConfig(RunConfig):
    """The settings of `panoptic nightly`. out: a folder of nights, which holds run folders."""

    truth: str | None = Field(
        None, description="COCO panoptic JSON of the images that new weights are judged by."
    )
    truth_masks: str | None = Field(None, description="Folder of the truth's PNGs.")
    evaluation: str | None = Field(None, description="Name of the evaluation; default: from truth.")
    max_pq_drop: float = Field(
        0.5, ge=0, description="Points of PQ that new weights may lose against the baseline."
    )
    max_class_drop: float | None = Field(
        None, ge=0, description="Points of PQ that a class may be shown to lose."
    )
    min_class_segments: int = Field(
        MIN_SEGMENTS,
        ge=1,
        description="Test only classes with at least so many segments in the truth.",
    )
    decide_by: Literal["interval", "estimate"] = Field(
        "interval", description="Whether the interval or the estimate of the change of PQ decides."
    )
    max_empty_rise: float = Field(
        0.05, ge=0, le=1, description="Allowed rise of the share of images without a segment."
    )
    max_class_drift: float = Field(
        0.1, ge=0, le=1, description="Allowed change of the share of images that show a class."
    )
    max_recompute: float = Field(
        0.5, ge=0, description="Stop if a larger share of the live images must be computed."
    )
    allow_full: bool = Field(False, description="Compute any number of images: no max_recompute.")
    retries: int = Field(3, ge=0, description="Later calls that try a transient failure again.")
    report: tuple[str, ...] = Field(
        (),
        description="Command run before publishing; {run} {snapshot} {baseline} {out} are filled.",
    )
    price_per_gpu_hour: float | None = Field(
        None, ge=0, description="Price of an hour of a GPU; without a GPU, of the machine."
    )

    @property
    def limits(self) -> ShareLimits:
        return ShareLimits(self.max_error_rate, self.max_empty_rise, self.max_class_drift)

    def of_run(self, out: str) -> RunConfig:
        """These settings as those of one run, without those that only a night has.

        out: the run folder, in the folder of nights.
        """
        shared = set(RunConfig.model_fields) - {"out"}
        return RunConfig(out=out, **self.model_dump(include=shared))


def load_nightly(toml: str, flags: dict[str, Any] | None = None) -> NightlyConfig:
    """The settings in a TOML file, replaced by `flags` that are not None.

    Raises UserError with the name of the setting.
    """
    if not Path(toml).exists():
        raise UserError(f"{toml}: no such file; docs/operations.md shows one")
    config = load_config(NightlyConfig, flags or {}, toml)
    for name in NOT_OF_A_NIGHT:
        if name in config.model_fields_set:
            raise UserError(f"{toml}: {name!r} has no meaning in a night: take it out")
    return config
