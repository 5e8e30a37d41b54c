import numpy as np
import pytest
import torch
from PIL import Image

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError, RecordError
from grpo_stream.grounding.prompts import PromptTemplate
from grpo_stream.images import resize
from grpo_stream.train.batches.collate import (
    PromptCollator,
)
from grpo_stream.train.batches.groups import PromptGroups
from grpo_stream.train.models.patches import image_inputs
from grpo_stream.train.models.processor import load_processor
from tests.train.support import (
    CPU,
    MIXED_SIZES,
    make_collator,
    make_mixed_stream,
    make_stream_sample,
)

SIZES = [(56, 56), (112, 84), (28, 168)]


@pytest.fixture(scope="module")
def samples():
    return [make_stream_sample(number, size) for number, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def batch(processor, samples):
    return make_collator(processor)(samples)


class TestPrompts:
    def test_one_image_token_per_merged_patch(self, processor, batch):
        image_token_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        for ids, types, (width, height) in zip(
            batch["prompt_ids"], batch["mm_token_type_ids"], SIZES, strict=True
        ):
            num_tokens = (width // 28) * (height // 28)
            assert (ids == image_token_id).sum() == num_tokens
            assert torch.equal(types, (ids == image_token_id).long())
            assert ids.dtype == types.dtype == torch.int64

    def test_is_what_the_processor_gives_for_text_and_images(self, processor, samples, batch):
        texts = [
            processor.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            for prompt in batch["prompt"]
        ]
        images = [Image.fromarray(sample.pixels) for sample in samples]
        expected = processor(text=texts, images=images, padding=True, return_tensors="pt")
        for row, mask, ids in zip(
            expected["input_ids"], expected["attention_mask"], batch["prompt_ids"], strict=True
        ):
            assert torch.equal(row[mask.bool()], ids)
        pixel_values, grids = image_inputs(batch, CPU)
        assert torch.equal(expected["pixel_values"], pixel_values)
        assert torch.equal(expected["image_grid_thw"], grids)
        assert torch.equal(expected["image_grid_thw"], batch["image_grid_thw"])

    def test_one_entry_per_prompt(self, samples, batch):
        assert batch["image_grid_thw"].tolist() == [[1, h // 14, w // 14] for w, h in SIZES]
        assert [tuple(image.shape) for image in batch["pixel_values"]] == [
            (h, w, 3) for w, h in SIZES
        ]
        assert {image.dtype for image in batch["pixel_values"]} == {torch.uint8}
        for image, sample in zip(batch["pixel_values"], samples, strict=True):
            assert np.array_equal(image.numpy(), sample.pixels)
        assert batch["key"] == ["000000", "000001", "000002"]
        assert batch["solution"] == [[10, 20, 30, 40]] * 3
        assert batch["scales"] == [(2 * w, 2 * h) for w, h in SIZES]
        assert batch["model_size"] == SIZES
        assert batch["answer_frame"] == ["model"] * 3
        assert batch["extra"] == [{}] * 3
        text = batch["prompt"][1][0]["content"][1]["text"]
        assert text.startswith(f"The image is 112x84 pixels. {samples[1].prompt}\n")

    @pytest.mark.parametrize(
        ("frame", "expected"),
        [("model", "112x84"), ("original", "224x168"), ("per_mille", "1000x1000")],
    )
    def test_the_prompt_names_the_size_of_the_answers_frame(
        self, processor, samples, frame, expected
    ):
        batch = make_collator(processor, answer_frame=frame)([samples[1]])
        assert f"is {expected} pixels" in batch["prompt"][0][0]["content"][1]["text"]

    def test_system_text(self, processor, samples):
        batch = make_collator(processor, "point_thinking")(samples[:1])
        assert [message["role"] for message in batch["prompt"][0]] == ["system", "user"]
        text = processor.tokenizer.decode(batch["prompt_ids"][0])
        assert text.startswith("<|im_start|>system\nFirst think")
        assert text.endswith("<|im_start|>assistant\n")

    @pytest.mark.parametrize("word", ["<|image_pad|>", "<|vision_start|>", "<|im_end|>"])
    def test_control_words_of_a_record_are_plain_text(self, processor, word):
        control = processor.tokenizer.convert_tokens_to_ids(word)
        collate = make_collator(processor)
        (usual,) = collate([make_stream_sample(prompt="Click here")])["prompt_ids"]
        (odd,) = collate([make_stream_sample(prompt=f"Click {word} here")])["prompt_ids"]
        assert (odd == control).sum() == (usual == control).sum()

    def test_a_template_may_not_hold_the_image_token(self, processor):
        template = PromptTemplate(None, "<|image_pad|>{instruction}")
        collate = PromptCollator(processor, template, "model")
        with pytest.raises(RecordError, match=r"image_pad\|> 2 times, once is expected"):
            collate([make_stream_sample()])


class TestImageProcessors:
    def test_another_one_is_normalised_by(self, processor, tiny_folder, samples):
        other = load_processor(tiny_folder).image_processor
        other.image_mean, other.image_std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
        batch = make_collator(processor, image_processor=other)(samples)
        images = [Image.fromarray(sample.pixels) for sample in samples]
        expected = other(images=images, return_tensors="pt")["pixel_values"]
        assert torch.equal(image_inputs(batch, CPU)[0], expected)

    def test_another_one_decides_the_size_of_raw_records(self, processor, tiny_folder, tmp_path):
        Image.fromarray(make_stream_sample(size=(112, 112)).pixels).save(tmp_path / "a.png")
        other = load_processor(tiny_folder, max_pixels=784 * 4).image_processor
        collator = make_collator(processor, image_processor=other, images_root=tmp_path)
        batch = collator([{"image": "a.png", "prompt": "Click", "solution": [1, 2, 3, 4]}])
        assert batch["image_grid_thw"].tolist() == [[1, 4, 4]]
        assert batch["mm_token_type_ids"][0].sum() == 4
        assert batch["model_size"] == [(56, 56)]

    def test_one_of_another_kind_is_run_and_its_patches_handed_on(
        self, processor, tiny_folder, samples
    ):
        other = Inverting(load_processor(tiny_folder).image_processor)
        batch = make_collator(processor, image_processor=other)(samples)
        images = [Image.fromarray(255 - sample.pixels) for sample in samples]
        expected = processor.image_processor(images=images, return_tensors="pt")
        assert batch["patch_rule"] is None
        pixel_values, grids = image_inputs(batch, CPU)
        assert torch.equal(pixel_values, expected["pixel_values"])
        assert torch.equal(grids, expected["image_grid_thw"])

    def test_images_that_are_not_at_the_models_size_are_refused(self, processor):
        with pytest.raises(ConfigError, match=r"resize=.*100x56.*multiples of 28"):
            make_collator(processor)([make_stream_sample(size=(100, 56))])


class Inverting:
    """An image processor with settings of the Qwen-VL kind, and one step more."""

    def __init__(self, image_processor):
        self.image_processor = image_processor

    def __getattr__(self, name):
        return getattr(self.image_processor, name)

    def __call__(self, images, **kwargs):
        images = [Image.fromarray(255 - np.asarray(image)) for image in images]
        return self.image_processor(images=images, **kwargs)


class TestRawRecords:
    @pytest.fixture
    def root(self, tmp_path, samples):
        Image.fromarray(make_stream_sample(size=(100, 70)).pixels).save(tmp_path / "a.png")
        return tmp_path

    def test_are_loaded_from_images_root(self, processor, root):
        record = {"image": "a.png", "prompt": "Click", "solution": [10, 20, 30, 40], "id": 7}
        batch = make_collator(processor, images_root=root)([record])
        pixels = resize(make_stream_sample(size=(100, 70)).pixels, Size(112, 56))
        expected = processor.image_processor(images=[Image.fromarray(pixels)], return_tensors="pt")
        assert torch.equal(image_inputs(batch, CPU)[0], expected["pixel_values"])
        assert batch["scales"] == [(100, 70)]
        assert batch["model_size"] == [(112, 56)]
        assert batch["solution"] == [[10, 20, 30, 40]]
        assert batch["extra"] == [{"image": "a.png", "id": 7}]

    def test_mix_with_samples_of_a_stream(self, processor, root, samples):
        record = {"image": "a.png", "prompt": "Click", "solution": [10, 20]}
        batch = make_collator(processor, images_root=root)([samples[0], record])
        assert [len(solution) for solution in batch["solution"]] == [4, 2]

    def test_need_images_root(self, processor):
        record = {"image": "a.png", "prompt": "Click", "solution": [10, 20]}
        with pytest.raises(ConfigError, match="images_root"):
            make_collator(processor)([record])


def test_images_are_not_changed(processor, samples):
    before = [sample.pixels.copy() for sample in samples]
    make_collator(processor)(samples)
    assert all(np.array_equal(b, s.pixels) for b, s in zip(before, samples, strict=True))


def test_a_prompt_above_its_bound_is_named(processor):
    short, long = make_stream_sample(), make_stream_sample(prompt="word " * 200)
    (ids,) = make_collator(processor)([short])["prompt_ids"]
    collate = make_collator(processor, max_prompt_tokens=len(ids))
    collate([short])
    with pytest.raises(RecordError, match=r"prompt_too_long: key='.*more than max_prompt_tokens="):
        collate([short, long])


class TestImages:
    """One, no, two and three images a prompt."""

    def test_is_what_the_processor_gives(self, processor):
        samples = make_mixed_stream(processor)
        batch = make_collator(processor)(samples)
        texts = [
            processor.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            for prompt in batch["prompt"]
        ]
        images = [Image.fromarray(pixels) for sample in samples for pixels in sample.images]
        expected = processor(text=texts, images=images, padding=True, return_tensors="pt")
        for row, mask, ids in zip(
            expected["input_ids"], expected["attention_mask"], batch["prompt_ids"], strict=True
        ):
            assert torch.equal(row[mask.bool()], ids)
        pixel_values, grids = image_inputs(batch, CPU)
        assert torch.equal(expected["pixel_values"], pixel_values)
        assert torch.equal(expected["image_grid_thw"], grids)

    def test_columns(self, processor):
        batch = make_collator(processor)(make_mixed_stream(processor))
        assert batch["num_images"] == [1, 0, 2, 3]
        assert batch["scales"] == [(112, 84), [], [(56, 56), (84, 140)], list(MIXED_SIZES[3])]
        assert batch["model_size"] == batch["scales"]
        one, none, two, _ = batch["pixel_values"]
        assert (one.shape, none, len(two)) == ((84, 112, 3), [], 2)
        assert [extra.get("solution_images") for extra in batch["extra"]] == [None, None, [1], [2]]
        assert "spare_media" not in make_collator(processor)(make_mixed_stream(processor, (0, 2)))

    def test_a_batch_of_texts_alone(self, processor):
        batch = make_collator(processor)(make_mixed_stream(processor, (1, 1)))
        pixel_values, grids = image_inputs(batch, CPU)
        assert (len(pixel_values), grids.shape) == (0, (0, 3))
        assert not any(types.any() for types in batch["mm_token_type_ids"])

    def test_a_processor_that_cuts_its_own_patches(self, processor):
        collate = make_collator(processor)
        expected = collate(make_mixed_stream(processor))
        collate.patch_rule = None
        for order in ((0, 1, 2, 3), (1,)):
            batch = collate(make_mixed_stream(processor, order))
            groups = PromptGroups.from_batch(batch, 2, CPU, num_ranks=2)
            wanted = PromptGroups.from_batch(expected, 2, CPU, num_ranks=2)
            for number, media in zip(order, groups.media, strict=True):
                for name, tensor in wanted.media[number].items():
                    torch.testing.assert_close(media[name], tensor)
                assert bool(media) is (number != 1)
            assert groups.spare is not None

    def test_the_instruction_must_not_write_the_token(self, processor):
        with pytest.raises(RecordError, match="2 times are expected"):
            make_collator(processor).ids_of(
                [[{"role": "user", "content": [{"type": "image"}]}]],
                torch.tensor([[1, 4, 4]] * 2),
                [2],
            )
