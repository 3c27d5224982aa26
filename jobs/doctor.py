"""`panoptic doctor`: checks of machine, source, run folder and weights, one line per check."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from typing import Annotated

import typer
from rich.text import Text

from detr.config import ModelError
from detr.inference.decode import ImageError, decode_image
from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, LabelSet, parse_options
from jobs.submit import submit
from pipeline.amounts import counted, duration
from pipeline.config import RunConfig, make_config
from pipeline.errors import TryAgainError, UserError
from pipeline.planning.source import Source
from pipeline.run.run import find_run
from pipeline.segmentation.model_spec import ModelSpec
from pipeline.storage.entry import as_user_error
from pipeline.storage.guarantees import Guarantee, guarantees
from pipeline.storage.node_cache import cache_folder
from pipeline.storage.storage import Storage


@dataclass(frozen=True)
class Check:
    """The result of one check; `found` is what the check saw, or the error with its mend.

    `store`: the guarantees of OUT's store to writers; a missing guarantee does not fail the check.
    """

    name: str
    ok: bool
    found: str
    store: tuple[Guarantee, ...] = ()


def doctor(
    source: Annotated[str, typer.Argument(help="The images, as for segment.")],
    out: Annotated[str, typer.Argument(help="The run folder, as for segment.")],
    weights: Annotated[str | None, typer.Option(help="Check these weights too.")] = None,
    categories: LabelSet = None,
    source_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="As for segment.")
    ] = None,
    out_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="As for segment.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Check on a worker of this Ray cluster: dashboard (http://) or auto."),
    ] = None,
    json_output: JsonOutput = False,
) -> None:
    """Check this machine, the bucket and the weights.

    With --address, a worker of that cluster is checked instead of this machine. The checks are:
    versions, device, free disk, listing SOURCE and decoding one of its images, writing to OUT, and
    with --weights the weights. Lines below the check of OUT say which conditional writes its store
    keeps; one that it lacks fails no check. A small probe object is written to OUT and deleted.
    Exits 2 if a check fails.

        panoptic doctor s3://bucket/images s3://bucket/out --weights r50

        panoptic doctor s3://bucket/images s3://bucket/out --address http://head:8265
    """
    if address is not None and address.startswith(("http://", "https://")):
        words = ["doctor", source, out, "--address", "auto"]
        words += ["--weights", weights] if weights else []
        words += ["--categories", categories] if categories else []
        words += [f"--source-option={pair}" for pair in source_option or ()]
        words += [f"--out-option={pair}" for pair in out_option or ()]
        words += ["--json"] if json_output else []
        raise typer.Exit(submit(words, address))  # there, the address is `auto`
    options = parse_options(source_option, "--source-option")
    config = make_config(
        {
            "source": source,
            "out": out,
            "weights": weights,
            "categories": categories,
            "source_options": options,
            "out_options": parse_options(out_option, "--out-option"),
        }
    )
    checks: list[Check] = []
    console = plain_console()
    with_weights = weights is not None
    results = _checks(config, with_weights=with_weights)
    if address is not None:
        results = _on_worker(config, address, with_weights=with_weights)
    for check in results:
        checks.append(check)
        if not json_output:
            mark = Text("ok  ", "green") if check.ok else Text("FAIL", "red")
            console.print(mark, f"{check.name}:", end=" ")
            console.print(check.found)
            for guarantee in check.store:
                kept = "yes" if guarantee.kept else "no"
                line = f"       {guarantee.name:8}{kept:4}{guarantee.meaning}"
                console.print(line)
    if json_output:
        print_json({"ok": all(check.ok for check in checks), "checks": [*map(asdict, checks)]})
    if not all(check.ok for check in checks):
        raise typer.Exit(2)


def _on_worker(config: RunConfig, address: str, *, with_weights: bool) -> Iterator[Check]:
    """The checks on a worker of the cluster: on a GPU node if the cluster has or can start one."""
    import ray
    from ray.exceptions import GetTimeoutError

    from pipeline.cluster.capacity import capacity
    from pipeline.cluster.ray_session import join_ray

    join_ray(address)
    gpu = capacity(address).ceiling("GPU") >= 1
    checks = ray.remote(num_cpus=0.5, num_gpus=1 if gpu else 0, max_retries=3)(_all_checks)
    try:
        yield from ray.get(checks.remote(config, with_weights), timeout=config.wait_for_gpus)
    except GetTimeoutError:
        raise TryAgainError(
            f"no worker could be had within {duration(config.wait_for_gpus)}: see `ray status`"
        ) from None


def _all_checks(config: RunConfig, with_weights: bool) -> list[Check]:
    return list(_checks(config, with_weights=with_weights))


def _checks(config: RunConfig, *, with_weights: bool) -> Iterator[Check]:
    yield _try("python", _python)
    yield _try("device", _device)
    yield _try("disk", _disk)
    yield _try("images", lambda: _source(config))
    store: list[Guarantee] = []
    out = _try("run folder", lambda: _out(config, store))
    yield replace(out, store=tuple(store))
    if with_weights:
        yield _try("weights", lambda: _weights(config))


def _try(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (UserError, ModelError) as error:
        return Check(name, False, str(error))
    except Exception as error:  # noqa: BLE001  # any exception of a storage back end is a result
        return Check(name, False, str(as_user_error(error, name)))


def _python() -> str:
    import torch

    return f"{platform.python_version()}, ray {version('ray')}, torch {torch.__version__}"


def _device() -> str:
    import torch

    from detr.cuda_settings import why_no_gpu
    from detr.inference.check_gpu import check_gpu

    if reason := why_no_gpu():
        raise UserError(reason)
    if not torch.cuda.is_available():
        threads = counted(torch.get_num_threads(), "thread")
        return f"cpu, {threads} (no GPU here; a cluster's is its workers')"
    return check_gpu()


def _disk() -> str:
    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < 2e9:
        raise UserError(
            f"{free / 1e9:.1f} GB free for {folder}: set PANOPTIC_CACHE to a larger disk"
        )
    return f"{free / 1e9:.0f} GB free for the weights' cache in {folder}"


def _source(config: RunConfig) -> str:
    table = next(iter(Source.of(config).tables()), None)
    if table is None or not table.num_rows:
        raise UserError(f"no images found in {config.source}: check the path, or use --include")
    for uri in islice(table["uri"].to_pylist(), 5):
        folder, _, name = uri.rpartition("/")
        data = Storage(folder, config.source_options).read(name)
        try:
            height, width, _ = decode_image(data).shape
        except ImageError:
            continue  # a broken image is an error row, not a failed check
        return f"listed, and read and decoded {name} ({width} x {height})"
    raise UserError(f"none of the first images of {config.source} can be decoded")


def _out(config: RunConfig, store: list[Guarantee]) -> str:
    """Appends the guarantees of OUT's store to `store`."""
    storage = Storage(config.out, config.out_options)
    run = find_run(storage)
    store.extend(guarantees(storage))
    state = "holds a run" if run else "is new"
    missing = ", ".join(guarantee.name for guarantee in store if not guarantee.kept)
    if missing:
        return f"{state}; can be written, but lacks conditional writes that jobs need: {missing}"
    return f"{state}; can be written, and honours conditional writes (the lease holds)"


def _weights(config: RunConfig) -> str:
    description = ModelSpec.of(config, device="cpu", dtype="fp32").describe()
    count = len(description.categories)
    classes = f"{count:,} {'category' if count == 1 else 'categories'}"
    kept = f"threshold {description.threshold:g}"
    if description.recommended is not None:
        kept += ", as these weights recommend"
    return f"{config.weights}: {classes}, sha256 {description.weights_sha256[:12]}, {kept}"
