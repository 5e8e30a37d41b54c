"""Short runs of the trainer, what they log and where they stop."""

import json

from transformers import TrainerCallback

from grpo_stream.train.feed import CURSOR_NAME

NUM_LANES = 4  # 4 completions x 2 steps per generation / groups of 2
SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}


def spread_reward(completions, **_):
    """Another reward for each completion of a group, so that every group teaches something."""
    return [float(number % 4) for number in range(len(completions))]


class KeySpy:
    """A reward that notes the keys it is given: one list per generation batch, once per group."""

    __name__ = "key_spy"

    def __init__(self):
        self.batches = []

    def __call__(self, completions, key, **_):
        assert len(completions) == len(key)
        self.batches.append(list(dict.fromkeys(key)))
        return spread_reward(completions)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


class StopAfter(TrainerCallback):
    """Ends a run after so many global steps, as a crash right behind a checkpoint would."""

    def __init__(self, num_steps):
        self.num_steps = num_steps

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.num_steps
        return control


def place_of(checkpoint):
    """Epoch and generation batch of a checkpoint's cursor."""
    cursor = json.loads((checkpoint / CURSOR_NAME).read_text())
    return cursor["epoch"], cursor["batch_index"]


def run(make_trainer, args, *, stop_after=None, resume_from=None, **changes):
    """Trains; the trainer, and the keys of the generation batches that were scored."""
    spy = KeySpy()
    trainer = make_trainer(args, reward_funcs=spy, **changes)
    if stop_after is not None:
        trainer.add_callback(StopAfter(stop_after))
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer, spy.batches
