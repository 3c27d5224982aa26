"""run.json of a new run, and the check of later calls against run.json.

A call with another model, source or option of the fingerprint raises UserError with the field.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pipeline.cluster.device import Device
from pipeline.config import SOURCE_FIELDS, RunConfig
from pipeline.errors import UserError
from pipeline.planning.photo_names import PhotoNames
from pipeline.planning.s3_inventory import undated
from pipeline.progress import Reporter
from pipeline.run.folder import RunInfo
from pipeline.run.run import Run
from pipeline.schema import SCHEMA_VERSION
from pipeline.secrets import kept, withheld
from pipeline.segmentation.model_spec import ModelDescription, run_fingerprint
from pipeline.storage.storage import normalize_url
from pipeline.version import code_version


def recorded_device(run: Run | None, config: RunConfig) -> Device | None:
    """The CPU and dtype of a run that was made on a CPU; None if the caller names a device."""
    if run is None or config.device != "auto" or run.info.device != "cpu":
        return None
    dtype = config.dtype if config.dtype != "auto" else str(run.info.config["dtype"])
    return Device("cpu", run.info.device, dtype)


def check_same(run: Run, config: RunConfig, description: ModelDescription) -> None:
    """Raises UserError with the field in which the run differs from the settings or the model, or
    with a storage option that the run was made with and `config` lacks."""
    for setting, names in run.info.withheld.items():
        missing_names = [name for name in names if name not in getattr(config, setting)]
        if missing_names:
            flag = "--" + setting.replace("_", "-").removesuffix("s")
            raise UserError(
                f"{config.out} was made with {flag} {missing_names[0]}=..., which is written "
                "nowhere: give it again"
            )
    for name, value in source_fields(config).items():
        # A run that is older than a setting was made with its default.
        recorded = run.info.source.get(name, RunConfig.model_fields[name].default)
        if undated(recorded) != undated(value):
            raise UserError(
                f"{config.out} was made with {name} {recorded!r}, not {value!r}: "
                "a run keeps its source; use another --out"
            )
    digest, fields = run_fingerprint(description, config)
    if digest == run.info.fingerprint:
        return
    former = run.info.fingerprint_fields
    names = [name for name in {**former, **fields} if former.get(name) != fields.get(name)]
    raise UserError(
        f"{config.out} was made with {names[0]} {_short(former.get(names[0]))}, not "
        f"{_short(fields.get(names[0]))}: results of two settings don't mix; use another --out"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:28] + "..." + text[-28:]


def source_fields(config: RunConfig) -> dict[str, Any]:
    """The settings that say which images a run holds."""
    values = config.model_dump(mode="json", include=set(SOURCE_FIELDS))
    return {**values, "source": normalize_url(config.source)}


def describe_run(
    config: RunConfig,
    description: ModelDescription,
    device: Device,
    photos: PhotoNames | None = None,
) -> RunInfo:
    """The contents of `run.json` of a new run, with storage options but without credentials.

    photos: which names of the source are photos; None: the default.
    """
    photos = photos or PhotoNames()
    digest, fields = run_fingerprint(description, config)
    settings = config.model_dump(mode="json", exclude={"refresh", "shards", "address"})
    if not config.keep_signed_urls:  # older versions refuse a run.json with this name
        del settings["keep_signed_urls"]
    if config.images_per_shard is None:
        del settings["images_per_shard"]
    options = {name: getattr(config, name) for name in ("source_options", "out_options")}
    return RunInfo(
        schema_version=SCHEMA_VERSION,
        source={
            **source_fields(config),
            "suffixes": list(photos.suffixes),
            "archives": photos.archives,
        },
        limit=config.limit,
        weights=config.weights,
        weights_sha256=description.weights_sha256,
        fingerprint=digest,
        fingerprint_fields=fields,
        category_list=description.categories.to_json(),
        device=device.kind if device.kind == "cpu" else device.name,
        code_version=code_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config={
            **settings,
            "dtype": device.dtype,
            "threshold": description.threshold,
            **{name: kept(given) for name, given in options.items()},
        },
        withheld={name: withheld(given) for name, given in options.items() if withheld(given)},
    )


def say_withheld(run: Run, reporter: Reporter) -> None:
    """Report the options of a new run that run.json leaves out."""
    for setting, names in run.info.withheld.items():
        reporter.note(
            f"{setting}: {', '.join(names)} stays in the memory of this job and is written "
            "nowhere: give it again with each command on this run"
        )
