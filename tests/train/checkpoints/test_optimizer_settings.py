import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.train.checkpoints.optimizer_settings import OptimizerSettings


def settings(make_args, **values):
    args = make_args()
    for name, value in values.items():  # transformers wants an evaluation beside some of them
        setattr(args, name, value)
    return OptimizerSettings(args)


@pytest.mark.parametrize(
    ("before", "now", "name"),
    [
        ({"lr_scheduler_type": "greedy"}, {"learning_rate": 1e-6}, "learning_rate"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, {"warmup_steps": 2}, "warmup_steps"),
        ({}, {"lr_scheduler_type": "greedy"}, "lr_scheduler_type"),
        ({"lr_scheduler_type": "greedy"}, {"lr_scheduler_type": "cosine"}, "lr_scheduler_type"),
    ],
)
def test_a_schedule_that_remembers_rates_is_kept(make_args, tmp_path, before, now, name):
    saved = settings(make_args, **before)
    saved.write(tmp_path)
    settings(make_args, **before).check(tmp_path)
    settings(make_args, **before, weight_decay=0.5).check(tmp_path)
    with pytest.raises(ConfigError, match=r"the schedule remembers rates\); use") as caught:
        settings(make_args, **before | now).check(tmp_path)
    assert caught.value.field == name
    assert caught.value.value == now[name]
