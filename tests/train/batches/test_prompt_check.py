"""What a processor or chat template cannot do is named before weights are loaded."""

import numpy as np
import pytest

from grpo_stream.errors import ConfigError
from grpo_stream.stream.record_source import RecordSource
from grpo_stream.stream.selected_source import SelectedSource
from grpo_stream.train.batches.prompt_check import check_prompts
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.models.tiny import make_tiny_policy
from tests.train.support import TASK_TEXTS, make_collator

ROOM_FOR_ONE = (
    "{% set ns = namespace(seen=false) %}"
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' and not ns.seen %}IMAGE{% set ns.seen = true %}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return make_tiny_policy(tmp_path_factory.mktemp("llava"), TASK_TEXTS, family="llava")


@pytest.fixture(params=["qwen2_5_vl", "llava"])
def processor(request, tiny_folder, llava):
    return load_processor(tiny_folder if request.param == "qwen2_5_vl" else llava)


@pytest.fixture
def mixed(shapes):
    """Records of one, two and no images."""
    one, other, *_ = shapes.records
    two = {**one, "image": [one["image"], other["image"]]}
    return RecordSource([one, two, {**one, "image": [], "solution": []}], shapes.images)


def fault(processor, *sources):
    with pytest.raises(ConfigError) as caught:
        check_prompts(make_collator(processor), sources)
    assert caught.value.field == "model_name_or_path"
    assert caught.value.value == type(processor).__name__
    return caught.value.expected


def test_what_works_is_let_through(processor, mixed):
    check_prompts(make_collator(processor), [mixed])


def test_no_chat_template(processor):
    processor.chat_template = None
    assert "has no chat template: save one with it that writes a place" in fault(processor)


def test_no_room_for_images(processor):
    processor.chat_template = "{{ messages[-1]['content'][-1]['text'] }}"
    words = fault(processor)
    assert "takes no prompt with an image: the chat template has no room for it; use one" in words


def test_room_for_one_image_alone(processor, mixed):
    processor.chat_template = ROOM_FOR_ONE.replace("IMAGE", "<|image_pad|>")
    check_prompts(make_collator(processor), [])  # a set of one image a sample
    assert "with 2 images: the chat template has no room for all of them" in fault(processor, mixed)


def test_more_places_than_images(processor):
    processor.chat_template = processor.chat_template.replace(
        "<|image_pad|>", "<|image_pad|><|image_pad|>"
    )
    words = fault(processor)
    assert words.startswith("takes no prompt with an image: image_token: ")
    assert "image_pad" in words


def test_a_template_that_cannot_be_written(processor):
    processor.chat_template = "{{ raise_exception('no system message') }}"
    assert "no system message; use another chat template" in fault(processor)


def test_a_processor_that_needs_an_image(llava, mixed):
    processor = load_processor(llava)
    own = type(processor).__call__

    class NeedsImages(type(processor)):  # type: ignore[misc]
        def __call__(self, images=None, **kwargs):
            if images is None:
                raise ValueError("images are expected")
            return own(self, images=images, **kwargs)

    processor.__class__ = NeedsImages
    check_prompts(make_collator(processor), [])
    words = fault(processor, mixed)
    assert "takes no prompt with no image: image_token: images are expected" in words


def test_tensors_that_cannot_be_told_apart(llava):
    processor = load_processor(llava)
    own = type(processor).__call__

    class TwoRows(type(processor)):  # type: ignore[misc]
        def __call__(self, **kwargs):
            made = own(self, **kwargs)
            return made | {"input_ids": made["input_ids"].repeat(2, 1)}

    processor.__class__ = TwoRows
    assert "makes 2 rows of tokens of one prompt, which cannot be told apart" in fault(processor)


def test_a_choice_of_samples_hides_none(llava, mixed):
    processor = load_processor(llava)
    processor.chat_template = ROOM_FOR_ONE.replace("IMAGE", "<|image_pad|>")
    chosen = SelectedSource(mixed, np.array([0, 1, 2], np.uint8))
    assert "with 2 images" in fault(processor, chosen)
