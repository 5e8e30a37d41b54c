"""What launch scripts do around their trainer, whichever it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.world import World
from grpo_stream.train.checkpoints.universal import fitting_marker
from grpo_stream.train.checkpoints.whole_checkpoint import choose_checkpoint
from grpo_stream.train.cluster.process_group import CollectiveTimeout
from grpo_stream.train.cluster.same_settings import check_agreement, run_settings
from grpo_stream.train.cluster.stop_on_request import StopOnRequest
from grpo_stream.train.cluster.waiting import WaitForFirstStep
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.observe.stragglers import HealthLog
from grpo_stream.train.setup.open_data import make_stream
from grpo_stream.train.setup.run_plan import RunPlan, Settings

if TYPE_CHECKING:
    from grpo_stream.train.streaming_trainer import StreamingTrainer
    from grpo_stream.train.supervised.supervised_plan import SupervisedSettings


class LaunchInputs(NamedTuple):
    """What a script has before it makes streams and trainer."""

    checkpoint: Path | None
    """To resume from; None: the run begins anew."""
    model_id: str
    processor: Any
    of_streams: dict[str, Any]
    """Arguments that every stream of the run is made with."""


def load_inputs(settings: "Settings | SupervisedSettings") -> LaunchInputs:
    """Chooses the checkpoint and loads the processor; every rank must call this.

    How the policy is loaded is noted in the settings' ``model_init_kwargs``.

    Raises:
        ConfigError: there is no such checkpoint, it does not fit the run, or no such processor.
        CheckpointError: it is not whole.
    """
    args, data, model = settings.args, settings.data, settings.model
    checkpoint = choose_checkpoint(
        args.resume_from_checkpoint, Path(args.output_dir), looks=args.should_save
    )
    if checkpoint is not None:
        fitting_marker(checkpoint, args)
    args.model_init_kwargs = model_init_kwargs(settings)
    processor = load_processor(
        model.model_name_or_path,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        revision=args.model_init_kwargs["revision"],
    )
    world = World(args.process_index, args.world_size, args.local_process_index)
    of_streams = {
        "seed": args.seed,
        "image_processor": processor.image_processor,
        "world": world,
    }
    return LaunchInputs(checkpoint, str(model.model_name_or_path), processor, of_streams)


def model_init_kwargs(settings: "Settings | SupervisedSettings") -> dict[str, Any]:
    """How the policy is loaded; trl's ``model_init_kwargs`` win over ModelConfig's fields.

    The fields have values even where nobody set them (``dtype`` is float32 in trl 1.16).
    """
    model = settings.model
    kwargs: dict[str, Any] = {"revision": model.model_revision, "dtype": model.dtype}
    if model.attn_implementation is not None:
        kwargs["attn_implementation"] = model.attn_implementation
    return kwargs | (settings.args.model_init_kwargs or {})


def check_ranks_agree(
    stream: PromptStream, plan: RunPlan, settings: "Settings | SupervisedSettings"
) -> None:
    """Checks that all ranks train on one order of one data set; every rank must call this.

    Raises:
        ConfigError: what is different, and on which ranks.
    """
    cursor = stream.cursor()
    check_agreement(
        {
            "digest": cursor.digest,
            "weights": cursor.weights,
            "num_batches": plan.num_batches,
            "stream": stream.config.to_dict(),
            **run_settings(settings),
        }
    )


def eval_stream(
    settings: "Settings | SupervisedSettings",
    plan: RunPlan,
    num_lanes: int,
    of_streams: dict[str, Any],
) -> PromptStream | None:
    """The stream for evaluation while training; None without ``eval_shards``."""
    if plan.eval_data_sets is None:
        return None
    return make_stream(plan.eval_data_sets, settings.data, num_lanes=num_lanes, **of_streams)


def train_and_save(
    trainer: "StreamingTrainer",
    checkpoint: Path | None,
    stop: StopOnRequest,
    *callbacks: TrainerCallback,
) -> None:
    """Trains, and saves the model where the run was not stopped before its end.

    Args:
        trainer: Closed at the end.
        checkpoint: To resume from.
        stop: Is asked after each global step.
        *callbacks: In the place of transformers' own progress.
    """
    if trainer.args.process_index == 0:
        print(f"begins {f'from {checkpoint}' if checkpoint else 'anew'}", flush=True)  # noqa: T201
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    first_step = WaitForFirstStep()
    for callback in (*callbacks, CollectiveTimeout(), first_step, stop):
        trainer.add_callback(callback)
    HealthLog.of_trainer(trainer).add_to(trainer)
    with first_step:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not stop.has_stopped:
        trainer.save_model(trainer.args.output_dir)
        trainer.save_state()
    # The first rank to end has the launcher end the others: none may still be writing.
    trainer.accelerator.wait_for_everyone()
    trainer.close()
