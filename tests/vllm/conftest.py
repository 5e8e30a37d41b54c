"""Real engines on the CPU: ``make test-vllm``. Left out where there is no vLLM."""

import importlib.util
import os
from dataclasses import replace
from typing import Any

# vLLM reads these when it is imported: engines in this process, 1 GiB for keys and values, no talk.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from grpo_stream.families import FAMILIES as ROWS
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.models.tiny import make_tiny_policy
from grpo_stream.train.models.tiny_families import OWN_RECIPES
from tests.train.support import TASK_TEXTS, write_shapes

FAMILIES = (
    "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v",
    "internvl", "idefics3", "smolvlm", "gemma3",
)  # fmt: skip

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """A family's tiny policy."""
    made = {}

    def folder(family):
        if family not in made:
            path = tmp_path_factory.mktemp(family)
            with pytest.MonkeyPatch.context() as patch:
                recipe = OWN_RECIPES["gemma3"]
                patch.setitem(OWN_RECIPES, "gemma3", replace(recipe, **ONE_TOKEN_IMAGES))
                made[family] = make_tiny_policy(path, TASK_TEXTS, family=family)
            if family == "smolvlm":
                use_own_processor(path)
        return made[family]

    return folder


# Tokens of an image see each other in both directions, but not by vLLM's attention on the CPU.
ONE_TOKEN_IMAGES: dict[str, Any] = {
    "config": {"mm_tokens_per_image": 1},
    "options": {"image_seq_length": 1},
}


def use_own_processor(folder):
    """SmolVLM's, with a video half: an engine asks for it, and it for torchvision and num2words."""
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    old = load_processor(folder)
    names = ("size", "max_image_size")
    sizes = {name: dict(getattr(old.image_processor, name)) for name in names}
    parts = SmolVLMImageProcessor(**sizes), old.tokenizer, SmolVLMVideoProcessor(**sizes)
    options = {"image_seq_len": old.image_seq_len, "chat_template": old.chat_template}
    SmolVLMProcessor(*parts, **options).save_pretrained(folder)


@pytest.fixture(autouse=True)
def _configs_of_transformers():
    """An engine puts vLLM's own classes of configurations in the place of some of transformers'."""
    yield
    CONFIG_MAPPING._extra_content.clear()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Few enough that each image comes again in every run."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), 4)


@pytest.fixture(scope="session")
def processor_of(folder_of):
    """A family's; those of Qwen-VL's kind make the images smaller than their 112 x 112."""

    def load(family):
        return load_processor(folder_of(family), **pixel_limits_of(family))

    return load


def pixel_limits_of(family):
    """Under which images are made smaller, to sizes that are within them."""
    kind = ROWS[family].processor
    if kind is None:
        return {}
    return {"min_pixels": 56**2, "max_pixels": (3 * kind.resize_multiple) ** 2}
