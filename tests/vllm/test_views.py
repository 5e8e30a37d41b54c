"""Groups over several views, sampled by an engine in the process that trains."""

from transformers import PrinterCallback
from trl import GRPOConfig

from grpo_stream.stream.config import StreamConfig
from grpo_stream.stream.prompt_stream import PromptStream
from grpo_stream.stream.sample_views import OpenViews
from grpo_stream.stream.sources import ShardSource
from grpo_stream.train.models.processor import resize_rule
from grpo_stream.train.trainer import PersonalizedGRPOTrainer
from tests.train.runs import logged, spread_reward
from tests.train.support import QUIET
from tests.train.vllm_stand_in import forget_world
from tests.vllm.engines import EXACT, use_engines


def test_the_engines_log_probabilities_are_the_policys(
    folder_of, processor_of, shapes, tmp_path, monkeypatch
):
    forget_world(monkeypatch)
    use_engines(monkeypatch, **EXACT)
    processor = processor_of("qwen2_5_vl")
    config = StreamConfig(num_lanes=2, resize=resize_rule(processor.image_processor))
    source = ShardSource(str(shapes.shards))
    settings = {
        **QUIET,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "use_vllm": True,
        "vllm_mode": "colocate",
    }
    trainer = PersonalizedGRPOTrainer(
        str(folder_of("qwen2_5_vl")),
        spread_reward,
        GRPOConfig(str(tmp_path), **settings),
        PromptStream(source, config, open_sample=OpenViews(2)),
        processing_class=processor,
    )
    try:
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    finally:
        trainer.close()
    differences = logged(trainer, "sampling/sampling_logp_difference/mean")
    assert len(differences) == 3
    assert max(differences) < 1e-5
