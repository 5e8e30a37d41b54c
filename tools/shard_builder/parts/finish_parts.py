"""``finish``: from the results of all parts to lists and manifests, once all of them are there."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress

from grpo_stream.errors import ConfigError, GrpoStreamError, ManifestError
from grpo_stream.shards.manifest import MANIFEST_NAME, Manifest
from grpo_stream.storage.store import open_store
from shard_builder.build.build_result import BuildResult, finish_build, result_found
from shard_builder.build.build_settings import BuildSettings
from shard_builder.build.output.output_folder import Output
from shard_builder.build.output.output_lock import PlaceTakenError
from shard_builder.build.output.temp_folder import temp_folder
from shard_builder.build.progress import Tell, tell_nobody
from shard_builder.build.workers.worker import rare_collections, split_store
from shard_builder.parts.plan_files import StoredPlan, load_plan

_NUM_NAMED = 20


class PartsMissingError(GrpoStreamError):
    """Some parts of a build are not whole yet."""


def finish(out: str, tell: Tell = tell_nobody) -> BuildResult:
    """Finishes a build whose parts are all done; a finished one is left alone.

    Args:
        out: The place of the data set.
        tell: Gets the progress.

    Raises:
        PartsMissingError: with the numbers of the parts that are to be run, or run again.
        ConfigError: no build in parts is there, or another process is finishing it.
        RecordError: no sample is left, or too many records are not; there is no manifest then.
        StoreError: something of what the parts wrote is there no more.
    """
    store = open_store(out)
    plan = load_plan(store)
    if plan is None:
        return _found_or_refused(out)
    with ExitStack() as stack:
        output = Output(out, plan.build.splits, "")
        stack.callback(output.close)
        plan = load_plan(store)
        if plan is None:  # finished while the lock was waited for
            return _found_or_refused(out)
        missing = plan.missing(store)
        if missing:
            raise PartsMissingError(_missing_text(out, plan, missing))
        request = plan.request
        output.adopt(plan.build.content, request["images_root_sha256"])
        temp = stack.enter_context(temp_folder())
        stack.enter_context(rare_collections())
        settings = BuildSettings(
            inputs=(),
            images_root="",
            out=out,
            max_rejects=request["max_rejects"],
            max_reject_share=request["max_reject_share"],
            given_flags=plan.given_flags,
        )
        result = finish_build(settings, plan.build, store, temp, output, tell)
        # Not before: what a part that runs twice is writing now may then be missed in peace.
        output.remove_unfinished()
        return result


def is_finished(out: str, plan: StoredPlan) -> bool:
    """Whether the data set of a plan is there, and the plan no longer."""
    store = open_store(out)
    if load_plan(store) is not None:
        return False
    for split in plan.build.splits:
        try:
            manifest = Manifest.load(split_store(out, split))
        except ManifestError:
            return False
        if manifest.settings != {**plan.build.content, "split_name": split}:
            return False
    return True


def clear_leftovers(out: str, plan: StoredPlan) -> None:
    """Removes what a part has left beside a data set that was finished while it was at work."""
    with suppress(PlaceTakenError), ExitStack() as stack:
        output = Output(out, plan.build.splits, "")
        stack.callback(output.close)
        if is_finished(out, plan):
            output.remove_unfinished()
            output.clear_state()


def finished_set(out: str) -> BuildResult | None:
    """The finished data set, or its splits, in a place; None where there is none."""
    names = [name for name in open_store(out).walk() if name.count("/") < 2]
    manifests = {}
    for name in names:
        split, _, base = name.rpartition("/")
        if base == MANIFEST_NAME:
            with suppress(ManifestError):
                manifests[split] = Manifest.load(split_store(out, split))
    return result_found(manifests) if manifests else None


def named_parts(parts: Sequence[int]) -> str:
    """The first few numbers, and how many more there are."""
    named = ", ".join(map(str, parts[:_NUM_NAMED]))
    return f"{named} and {len(parts) - _NUM_NAMED} more" if len(parts) > _NUM_NAMED else named


def _found_or_refused(out: str) -> BuildResult:
    found = finished_set(out)
    if found is not None:
        return found
    expected = (
        "holds no plan of a build in parts: run shard-builder build ... --part 1/N first, on "
        "storage that all machines share"
    )
    raise ConfigError("--out", out, expected)


def _missing_text(out: str, plan: StoredPlan, missing: dict[int, list[tuple[str, int]]]) -> str:
    parts = sorted(missing)
    num_chunks = sum(map(len, missing.values()))
    num_all = sum(plan.build.num_chunks.values())
    return (
        f"{out}: of {plan.num_parts} parts {len(parts)} are not whole yet: {named_parts(parts)} "
        f"({num_chunks} of {num_all} chunks are missing). Run them, with --part "
        f"{parts[0]}/{plan.num_parts} and so on; where they have run, is this the --out that "
        "their machines wrote to?"
    )
