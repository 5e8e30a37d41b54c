import pytest
from transformers import Qwen3VLMoeConfig
from trl import SFTConfig

from grpo_stream.errors import ConfigError
from grpo_stream.train.supervised.supervised_checks import check_no_balancing_loss


def test_a_mixture_of_experts_needs_its_loss_turned_off(tmp_path):
    config = Qwen3VLMoeConfig(text_config={"router_aux_loss_coef": 0.001})
    quiet = {"use_cpu": True, "bf16": False, "report_to": []}
    with pytest.raises(ConfigError, match=r"router_aux_loss_coef=None.*use 0"):
        check_no_balancing_loss(config, SFTConfig(str(tmp_path), **quiet))
    check_no_balancing_loss(config, SFTConfig(str(tmp_path), router_aux_loss_coef=0.0, **quiet))
