import json
import shutil
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError
from grpo_stream.images import ResizeRule, resize
from grpo_stream.train.models.patches import image_inputs
from grpo_stream.train.models.processor import ImageTextProcessor, load_processor, resize_rule
from tests.train.support import CPU, make_collator, make_stream_sample

SIDES = st.integers(1, 4000)


def make_processor(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return ImageTextProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(folder),
        tokenizer,
        chat_template=tokenizer.chat_template,
    )


class TestResizeRule:
    @given(
        st.tuples(SIDES, SIDES).filter(lambda size: max(size) <= 200 * min(size)),
        st.sampled_from([(56 * 56, 28 * 28 * 1280), (28 * 28 * 4, 28 * 28 * 16), (784, 784)]),
    )
    def test_is_transformers_smart_resize(self, size, limits):
        processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": limits[0], "longest_edge": limits[1]}
        )
        height, width = smart_resize(size[1], size[0], 28, *limits)
        assert resize_rule(processor).target(Size(*size)) == (width, height)

    def test_the_defaults_are_the_models(self, processor):
        assert resize_rule(processor.image_processor) == ResizeRule()

    @pytest.mark.parametrize("size", [(8, 6), (112, 112), (390, 844), (1000, 30), (1920, 1080)])
    def test_a_processor_finds_nothing_left_to_resize(self, processor, size):
        target = resize_rule(processor.image_processor).target(Size(*size))
        pixels = resize(make_stream_sample(size=size).pixels, target)
        image = Image.fromarray(pixels)
        normal, unresized = (
            processor.image_processor(images=[image], return_tensors="pt", do_resize=do_resize)
            for do_resize in (True, False)
        )
        assert normal["image_grid_thw"].tolist() == [[1, target.height // 14, target.width // 14]]
        assert torch.equal(normal["pixel_values"], unresized["pixel_values"])

    @pytest.mark.parametrize("processor", [CLIPImageProcessor, object, lambda: None])
    def test_of_another_family_is_refused(self, processor):
        with pytest.raises(ConfigError, match=r"image_processor=.*Qwen2VLImageProcessor"):
            resize_rule(processor())


class TestLoad:
    def test_pads_on_the_left(self, processor):
        assert processor.tokenizer.padding_side == "left"

    @pytest.mark.parametrize(
        ("pixels", "expected"),
        [
            ({}, (3136, 1003520)),
            ({"max_pixels": 784 * 4}, (3136, 3136)),
            ({"min_pixels": 784}, (784, 1003520)),
            ({"min_pixels": 784, "max_pixels": 784 * 9}, (784, 7056)),
        ],
    )
    def test_sizes_can_be_set(self, tiny_folder, pixels, expected):
        processor = load_processor(tiny_folder, **pixels)
        rule = resize_rule(processor.image_processor)
        assert (rule.min_pixels, rule.max_pixels) == expected
        image = Image.new("RGB", (300, 200))
        grid = processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"]
        target = rule.target(Size(300, 200))
        assert grid.tolist() == [[1, target.height // 14, target.width // 14]]

    def test_the_hubs_files_of_qwen_are_read(self, tiny_folder, tmp_path):
        """Sizes as min_pixels and max_pixels; the template in a file that no tokenizer reads."""
        folder = tmp_path / "policy"
        shutil.copytree(tiny_folder, folder)
        template = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        (folder / "chat_template.jinja").unlink()
        (folder / "processor_config.json").unlink()
        preprocessor = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": 784,
            "max_pixels": 784 * 9,
            "patch_size": 14,
            "merge_size": 2,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        processor = load_processor(folder)
        assert processor.chat_template == template
        rule = resize_rule(processor.image_processor)
        assert (rule.min_pixels, rule.max_pixels) == (784, 784 * 9)

    def test_every_part_is_of_the_revision_that_is_asked_for(self, tiny_folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchvision", None)
        asked = {}

        def note(part, method):
            original = getattr(part, method)

            def noted(*args, **kwargs):
                asked[part.__name__] = kwargs["revision"]
                return original(*args, **kwargs)

            monkeypatch.setattr(part, method, noted)

        note(AutoTokenizer, "from_pretrained")
        note(Qwen2VLImageProcessorPil, "from_pretrained")
        note(ImageTextProcessor, "get_processor_dict")
        load_processor(tiny_folder, revision="v2")
        assert asked == dict.fromkeys(asked, "v2")
        assert len(asked) == 3

    @pytest.mark.parametrize("name", ["no/such/folder", "tests"])
    def test_a_missing_processor_is_named(self, name):
        with pytest.raises(ConfigError, match=f"model_name_or_path='{name}'"):
            load_processor(name)

    def test_sizes_that_cannot_be_are_refused(self, tiny_folder):
        processor = load_processor(tiny_folder, max_pixels=784)
        with pytest.raises(ConfigError, match="max_pixels=784"):
            resize_rule(processor.image_processor)


class TestImageTextProcessor:
    @pytest.mark.parametrize("size", [(56, 56), (112, 84)])
    def test_gives_what_the_collator_gives(self, tiny_folder, size):
        processor = make_processor(tiny_folder)
        sample = make_stream_sample(size=size)
        batch = make_collator(processor)([sample])
        text = processor.apply_chat_template(
            batch["prompt"][0], tokenize=False, add_generation_prompt=True
        )
        expected = processor(
            text=[text], images=[Image.fromarray(sample.pixels)], return_tensors="pt"
        )
        assert torch.equal(expected["input_ids"][0], batch["prompt_ids"][0])
        assert torch.equal(expected["pixel_values"], image_inputs(batch, CPU)[0])
        assert torch.equal(expected["image_grid_thw"], batch["image_grid_thw"])

    def test_saves_and_loads(self, tiny_folder, tmp_path):
        processor = make_processor(tiny_folder)
        processor.save_pretrained(tmp_path)
        loaded = ImageTextProcessor.from_pretrained(tmp_path)
        for again in (loaded, load_processor(tmp_path)):
            assert again.chat_template == processor.chat_template
            assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
            assert resize_rule(again.image_processor) == resize_rule(processor.image_processor)
        assert loaded.to_dict() == processor.to_dict()

    def test_a_saved_size_is_kept(self, tiny_folder, tmp_path):
        load_processor(tiny_folder, max_pixels=784 * 16).save_pretrained(tmp_path)
        again = load_processor(tmp_path)
        assert resize_rule(again.image_processor).max_pixels == 784 * 16

    def test_is_saved_as_the_class_that_auto_processor_knows(self, tiny_folder, tmp_path):
        make_processor(tiny_folder).save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "processor_config.json").read_text())
        assert saved["processor_class"] == "Qwen2_5_VLProcessor"
        assert saved["image_processor"]["image_processor_type"] == "Qwen2VLImageProcessor"
        # AutoProcessor refuses a folder that says nothing of videos.
        assert saved["video_processor"]["video_processor_type"] == "Qwen2VLVideoProcessor"
        assert saved["video_processor"]["size"] == saved["image_processor"]["size"]

    def test_stands_in_where_torchvision_is_missing(self, tiny_folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchvision", None)
        assert type(load_processor(tiny_folder)) is ImageTextProcessor
