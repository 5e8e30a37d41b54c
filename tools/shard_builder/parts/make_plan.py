"""The plan of a build in parts: made by the first that comes, waited for by the others."""

import json
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from grpo_stream.records.formats.open_inputs import InputSource
from grpo_stream.records.formats.rules import Rules
from grpo_stream.records.stored_image import ImageReader
from grpo_stream.storage.store import open_store
from shard_builder.build.build_result import BuildResult, result_found
from shard_builder.build.build_settings import BuildSettings
from shard_builder.build.output.kept_results import PLAN_NAME, REQUEST_NAME
from shard_builder.build.output.output_folder import Output
from shard_builder.build.output.output_lock import PlaceTakenError
from shard_builder.build.output.temp_folder import temp_folder
from shard_builder.build.progress import Progress, Tell
from shard_builder.build.surveyed_inputs import survey_inputs
from shard_builder.build.workers.worker import rare_collections
from shard_builder.parts.plan_files import StoredPlan, load_plan, load_request, write_chunks
from shard_builder.parts.plan_request import Part, check_same

_POLL_SECONDS = 1.0
_GRACE_SECONDS = 15.0

_logger = logging.getLogger(__name__)


def plan_of(
    settings: BuildSettings,
    sources: Sequence[InputSource],
    rules: Sequence[Rules],
    request: dict[str, Any],
    part: Part,
    tell: Tell,
) -> StoredPlan | BuildResult:
    """The plan that is there, or a new one, or the finished data set that is there.

    Where another process is making the plan, this waits for it.

    Args:
        settings: Of the build.
        sources: The inputs.
        rules: What the user calls the fields of each, and says of its numbers.
        request: What all parts must have in common.
        part: The part that asks.
        tell: Gets the progress.

    Raises:
        ConfigError: the plan is, or will be, of another build; or a build without parts is at
            work there.
        RecordError, StoreError: as a build.
    """
    store = open_store(settings.out)
    started = time.monotonic()
    has_said = False
    while True:
        plan = load_plan(store)
        if plan is not None:
            check_same(request, plan.request, part)
            return plan
        try:
            return make_plan(settings, sources, rules, request, part, tell)
        except PlaceTakenError:
            planned = load_request(store)
            if planned is not None:
                check_same(request, planned, part)
            elif load_plan(store) is None and time.monotonic() > started + _GRACE_SECONDS:
                raise
        if not has_said:
            _logger.warning("%s: another process is making the plan: waiting for it", settings.out)
            has_said = True
        time.sleep(_POLL_SECONDS)


def make_plan(
    settings: BuildSettings,
    sources: Sequence[InputSource],
    rules: Sequence[Rules],
    request: dict[str, Any],
    part: Part,
    tell: Tell,
) -> StoredPlan | BuildResult:
    """A new plan, or that of another process which made one meanwhile.

    Args and errors are those of :func:`plan_of`; where another process is at work, it does not
    wait. With ``overwrite`` (``--part plan/N --overwrite``) whatever is there is replaced.
    """
    store = open_store(settings.out)
    with ExitStack() as stack:
        output = Output(settings.out, settings.split_names, settings.images_root)
        stack.callback(output.close)
        plan = load_plan(store)
        if plan is not None and not settings.overwrite:  # made while the lock was waited for
            check_same(request, plan.request, part)
            return plan
        temp = stack.enter_context(temp_folder())
        stack.enter_context(rare_collections())
        words = json.dumps(request).encode()
        stack.callback(store.delete, REQUEST_NAME)  # before the lock is given back
        store.write(REQUEST_NAME, words)
        reader = ImageReader(settings.images_root, settings.pictures)
        stack.callback(reader.close)
        inputs = survey_inputs(settings, sources, rules, reader, temp, tell)
        store.delete(PLAN_NAME)  # of another build: what it may do now is up to begin
        found = output.begin(inputs.content, overwrite=settings.overwrite)
        if found is not None:
            return result_found(found, inputs.facts, inputs.lines)
        store.write(REQUEST_NAME, words)  # begin has cleared the place
        tell(Progress("plan", inputs.survey.num_wanted))
        cutter = inputs.cutter(settings, reader)
        num_done = 0

        def check() -> None:
            nonlocal num_done
            output.check(asks_store=False)
            num_done = min(num_done + settings.limits.max_samples, inputs.survey.num_wanted)
            tell(Progress("plan", inputs.survey.num_wanted, num_done))

        write_chunks(store, cutter.cut(inputs.reading.records()), check)
        num_chunks = {split: cutter.num_chunks[split] for split in settings.split_names}
        plan = StoredPlan(request, inputs.plan(num_chunks), settings.given_flags)
        output.check()
        store.write(PLAN_NAME, plan.to_json())
        return plan
