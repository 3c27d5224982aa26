"""One call of `panoptic nightly`: compute the changes of the source, check them, publish them.

    lease -> finish the generation of an earlier call -> list and compare -> compute -> snapshot
          -> evaluate -> release gate against the live snapshot and the pinned baseline
          -> report command -> summary -> latest.json

Each step reads the folder and does what is missing, so a killed call is continued by the next one,
and a call without changes computes nothing. New weights get a run folder of their own: the images
with ground truth are computed first, and all others only if these pass the release gate.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final

from pipeline.amounts import counted
from pipeline.cluster.archive_tasks import in_tasks
from pipeline.error_budget import enough_rate, over_budget
from pipeline.errors import ErrorBudgetError, TryAgainError, UserError
from pipeline.nightly.precheck import (
    brake_full,
    check_truth,
    night_device,
    only_with_truth,
    refuse_short,
)
from pipeline.nightly.prune import is_going, remove_rest, unmark
from pipeline.nightly.release_gate import (
    Judged,
    evaluate_candidate,
    evaluation_name,
    judge_quality,
    judge_shares,
)
from pipeline.nightly.settings import NightlyConfig
from pipeline.nightly.summary import NightSummary, summarize
from pipeline.planning.generations import Brakes, plan_first, plan_refresh, stage_listing
from pipeline.planning.scratch_db import Staging
from pipeline.planning.source import Source
from pipeline.progress import Reporter
from pipeline.run.lease import Hold, lease
from pipeline.run.publish import failures
from pipeline.run.run import Run, create_run
from pipeline.run.series import PREFIX, Nights, Pinned
from pipeline.run.snapshots import RunSnapshot
from pipeline.schema import TRANSIENT_CODES
from pipeline.segmentation.job import work
from pipeline.segmentation.model_spec import (
    ModelSpec,
    run_fingerprint,
    with_recommended,
    with_run_threshold,
    with_size_quantum,
)
from pipeline.segmentation.run_info import check_same, describe_run, say_withheld
from pipeline.sharding import IMAGES_PER_SHARD
from pipeline.storage.entry import StorageError, as_user_error, of_storage
from pipeline.storage.storage import Storage, normalize_url

STAMP: Final = "%Y-%m-%dT%H%M%S.%fZ"


def nightly(
    config: NightlyConfig, reporter: Reporter | None = None, *, pin: bool = False
) -> NightSummary:
    """Compute, check and publish the changes of the source. Nothing is published if the summary has
    reasons; readers see a new snapshot only by the last write.

    pin: make the snapshot that is live afterwards the baseline. Raises UserError for an error that
    the caller can mend, LeaseError while another job writes, ErrorBudgetError when too many images
    fail, TryAgainError when the store fails.
    """
    try:
        storage = Storage(config.out, config.out_options)
        Nights(storage)  # raises UserError for a run folder, before anything is written
        with lease(storage, of_nights=True) as hold, ExitStack() as held:
            return _Night(Nights(storage, hold), config, reporter or Reporter(), held).do(pin)
    except StorageError as error:
        raise TryAgainError(str(error)) if error.may_pass else error from error
    except UserError:
        raise
    except Exception as error:
        if not of_storage(error):
            raise
        raise TryAgainError(
            f"{as_user_error(error, f'the store of {config.out} failed')}; run it again"
        ) from error


def filled(word: str, places: Mapping[str, str]) -> str:
    """A word of the report command with the values of {run}, {snapshot}, {baseline} and {out}.

    Other braces stay, such as a shell's ${HOME}.
    """
    return re.sub(r"(?<!\$)\{(\w+)\}", lambda match: places.get(match[1], match[0]), word)


def program_of(command: Sequence[str]) -> str:
    """The name of a command's program, also if the whole command is one word by mistake."""
    first = command[0].split()[0] if command[0].strip() else ""
    return first.partition("=")[0].rpartition("/")[2]


def failure_of(command: Sequence[str]) -> str | None:
    """Run the report command; how it failed, or None.

    Of its words only the program is told: the others may hold a token, and the sentence stands in
    the night's summary and in the log. What the command writes to stderr goes to the log.
    """
    program = program_of(command)
    try:
        code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a word
        why = error.strerror if isinstance(error, OSError) else "a word holds a zero byte"
        return f"the report command can't be run: {program}: {why}"
    return f"the report command ended with {code}: {program}" if code else None


class _Night:
    """One call: the folder of nights, its live snapshot, and the run of the present weights.

    held: the stack that holds the lease of the run folder until the call ends.
    """

    def __init__(
        self, nights: Nights, config: NightlyConfig, reporter: Reporter, held: ExitStack
    ) -> None:
        self.nights, self.reporter, self.held = nights, reporter, held
        self.hold: Hold | None = None
        self.began = time.monotonic()
        self.started = datetime.now(UTC)
        self.live = nights.live()
        self.device = night_device(self.live, config, reporter.note)
        recorded = self.live.run.info.config if self.live is not None else None
        config = with_size_quantum(config, recorded, self.device.kind, reporter.note)
        self.description = self._spec(config).describe()
        if self.live and self.live.run.info.weights_sha256 == self.description.weights_sha256:
            config = with_run_threshold(config, recorded)
            if config.threshold != self.description.threshold:
                self.description = self._spec(config).describe()
        self.config = config = with_recommended(config, self.description, reporter.note)
        self.spec = self._spec(config).expecting(self.description)
        self.name = PREFIX + run_fingerprint(self.description, config)[0]
        self.settings = config.of_run(nights.storage.join(self.name))
        self.same_weights = self.live is None or nights.live_name() == self.name
        self._refuse_withdrawn()
        if config.truth is not None:
            check_truth(config.truth, config.options_of(config.truth))

    def _spec(self, config: NightlyConfig) -> ModelSpec:
        return ModelSpec.of(config, device=self.device.kind, dtype=self.device.dtype)

    def do(self, pin: bool) -> NightSummary:
        run = self.nights.run(self.name)
        if run is not None:
            check_same(run, self.settings, self.description)
            run = run.held(self._lease())
            if is_going(run):
                remove_rest(run)
                run = None
        if run is None or not run.generations():
            run = self._first(run)
        computed = self._compute(run)
        if not self.same_weights and self.config.truth and max(run.generations()) == 1:
            candidate = RunSnapshot(run, 1)
            self._refuse_failures(candidate, f"delete {run.storage.url}, mend the source")
            judged = self._judge_truth(candidate)
            if judged.reasons:
                reasons = (*judged.reasons, *self._report(candidate))
                return self._stop(candidate, dataclasses.replace(judged, reasons=reasons))
            self._brake(run)
        # Images that failed in this call are tried again by the next call.
        if self._difference(run, retry=not computed):
            self._compute(run)
        candidate = RunSnapshot(run, max(run.generations()))
        if self._is_live(candidate):
            return self._nothing_to_do(candidate, pin)
        self._refuse_failures(candidate, "mend the source (transient failures are tried again)")
        judged = self._judge(candidate)
        if judged.reasons:
            return self._stop(candidate, judged)
        if judged.evaluation is not None and (pin or self.nights.pinned() is None):
            self._pin(candidate)
        summary = self._summary(candidate, judged, "published")
        self.reporter.note(f"publishing snapshot {candidate.number} of {self.name}")
        self.nights.publish(self.name, run, candidate.number)
        return summary

    # -- steps

    def _first(self, run: Run | None) -> Run:
        """List, make the run folder, and plan generation 1: all images, or with new weights those
        with ground truth."""
        config = self.config
        with Staging() as staging:
            images, size = stage_listing(
                staging, self._source(run), config.limit, self.reporter.listed, self.reporter.note
            )
            if self.live is not None:
                refuse_short(images, self.live, config)
            if not self.same_weights and config.truth:
                images, size = only_with_truth(
                    staging, config.truth, config.options_of(config.truth)
                )
                self.reporter.note(
                    f"other weights: {counted(images, 'image')} with ground truth first"
                )
            elif not self.same_weights:
                self._brake(None)
            if run is None:
                hold, storage = self.hold or self._lease(), self.nights.storage.below(self.name)
                unmark(storage)
                photos = self._source(None).photos
                info = describe_run(self.settings, self.description, self.device, photos)
                run = create_run(storage, info, hold)
            say_withheld(run, self.reporter)
            plan_first(run, staging, images, size, self._images_per_shard)
        self.reporter.note(f"{counted(images, 'image')} to compute in {self.name}")
        return run

    def _difference(self, run: Run, *, retry: bool) -> bool:
        """Plan a generation of new, changed, removed and retried images; False without any."""
        config = self.config
        free = config.allow_full or self.live is None or not self.same_weights
        generation = plan_refresh(
            run,
            self._source(run),
            config.limit,
            images_per_shard=self._images_per_shard,
            brakes=Brakes(
                max_removed_rate=config.max_removed_rate,
                max_recompute=None if free else config.max_recompute,
                retry_codes=tuple(sorted(TRANSIENT_CODES)) if retry else (),
                retries=config.retries,
            ),
            progress=self.reporter.listed,
            note=self.reporter.note,
        )
        if generation is None:
            return False
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in generation.counts.items() if count)
        self.reporter.note(f"generation {generation.number}: {kinds}")
        return True

    def _compute(self, run: Run) -> int:
        """Finish the newest generation without publishing; the number of computed images."""
        return work(
            run, self.settings, self.spec, self.device, self.reporter, self.began, publish=False
        ).computed

    @property
    def _images_per_shard(self) -> int:
        """Full shards, also for few images: the shards of each night stay for years."""
        return self.config.images_per_shard or IMAGES_PER_SHARD

    def _lease(self) -> Hold:
        """Take the lease of the run folder until the end of the call."""
        self.hold = self.held.enter_context(lease(self.nights.storage.below(self.name)))
        return self.hold

    def _refuse_failures(self, candidate: RunSnapshot, mend: str) -> None:
        """Raises ErrorBudgetError if too many images failed; the summary is written before."""
        snapshot, limit = candidate.snapshot, self.config.max_error_rate
        reason = over_budget(snapshot.rows, failures(candidate.run, snapshot), limit)
        if reason is None:
            return
        reason += (
            f"; nothing is published: see `panoptic errors {candidate.run.storage.url}`, {mend} "
            "and call the night again, or set max_error_rate = "
            f"{enough_rate(snapshot.rows, snapshot.error):g} in its settings"
        )
        self._stop(candidate, Judged((reason,)))
        raise ErrorBudgetError(reason)

    def _judge_truth(self, candidate: RunSnapshot) -> Judged:
        pinned = self.nights.pinned()
        baseline = self.nights.pinned_snapshot(pinned) if pinned else self.live
        return judge_quality(candidate, baseline, self.config, self.reporter.note)

    def _judge(self, candidate: RunSnapshot) -> Judged:
        self.reporter.note(f"judging snapshot {candidate.number} of {self.name}")
        judged = self._judge_truth(candidate)
        shares = judge_shares(candidate, self.live, self.config, same_weights=self.same_weights)
        return dataclasses.replace(
            judged, reasons=(*judged.reasons, *shares, *self._report(candidate))
        )

    def _report(self, candidate: RunSnapshot) -> list[str]:
        """Run the report command; returns its failure as a reason not to publish."""
        if not self.config.report:
            return []
        pinned = self.nights.pinned()
        places = {
            "run": candidate.run.storage.url,
            "snapshot": str(candidate.number),
            "baseline": self.nights.pinned_snapshot(pinned).url if pinned else "",
            "out": self.nights.storage.url,
        }
        command = [filled(word, places) for word in self.config.report]
        self.reporter.note(f"running the report command {program_of(command)}")
        failure = failure_of(command)
        return [failure] if failure else []

    # -- outcomes

    def _nothing_to_do(self, candidate: RunSnapshot, pin: bool) -> NightSummary:
        candidate.run.mark_success(True)  # an earlier call may have been killed before this
        if candidate.number in (candidate.run.pointer() or {}).get("withdrawn", ()):
            self.reporter.note(
                f"snapshot {candidate.number} was rolled back and nothing has changed since: "
                "publish it with "
                f"`panoptic rollback {self.nights.storage.url} --to {candidate.number}`"
            )
            candidate = self.live or candidate
        if pin:
            evaluate_candidate(candidate, self.config, self.reporter.note)
            self._pin(candidate)
        return self._summary(candidate, Judged(()), "nothing to do")

    def _stop(self, candidate: RunSnapshot, judged: Judged) -> NightSummary:
        return self._summary(candidate, judged, "stopped")

    def _pin(self, candidate: RunSnapshot) -> None:
        if self.config.truth is None:
            raise UserError("--pin needs ground truth: set truth in the file")
        name = evaluation_name(self.config)
        self.nights.pin(Pinned(self.name, candidate.number, name))
        self.reporter.note(f"the baseline is now snapshot {candidate.number} of {self.name}")

    def _summary(self, candidate: RunSnapshot, judged: Judged, outcome: str) -> NightSummary:
        summary = summarize(
            candidate,
            judged,
            outcome,
            out=self.nights.storage.url,
            live=self.live,
            price=self.config.price_per_gpu_hour,
            seconds=time.monotonic() - self.began,
            started=self.started,
            counted=(self.nights.last_summary() or {}).get("counted"),
        )
        self.nights.write_summary(
            self.started.strftime(STAMP), dataclasses.asdict(summary), summary.text()
        )
        return summary

    # -- state and source

    def _is_live(self, candidate: RunSnapshot) -> bool:
        withdrawn = (candidate.run.pointer() or {}).get("withdrawn", ())
        if candidate.number in withdrawn:
            return True
        return (
            self.live is not None
            and self.live.run.storage.url == candidate.run.storage.url
            and self.live.number == candidate.number
        )

    def _source(self, run: Run | None) -> Source:
        """The source, listed as for `run`, else as for the live run; the folder of nights is left
        out if it lies inside the source."""
        before = run or (self.live.run if self.live else None)
        recorded = before.info.source if before else None
        source = Source.of(self.settings, recorded, in_tasks(self.settings.address))
        return dataclasses.replace(source, output_url=normalize_url(self.config.out))

    def _refuse_withdrawn(self) -> None:
        pointer = self.nights.pointer() or {}
        if self.name in pointer.get("withdrawn", ()):
            raise UserError(
                f"these weights and settings were rolled back ({self.name}): set the former ones, "
                f"or publish them again with `panoptic rollback {self.nights.storage.url} --to "
                f"{self.name}`"
            )

    def _brake(self, run: Run | None) -> None:
        assert self.live is not None
        done = run.generation(1).images if run else 0
        brake_full(self.name, self.live, done, self.config)
