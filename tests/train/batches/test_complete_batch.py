"""A collator that hands over what the project promises, and no more."""

import numpy as np
import pytest
import torch
from PIL import Image

from grpo_stream.errors import ConfigError
from grpo_stream.train.batches.collate import PromptCollator
from grpo_stream.train.batches.complete_batch import CompletedCollator
from grpo_stream.train.models.patches import image_inputs
from grpo_stream.train.models.processor import load_processor
from grpo_stream.train.models.tiny import make_tiny_policy
from tests.train.runs import logged
from tests.train.support import TASK_TEXTS, make_collator, make_mixed_stream, make_stream_sample

SIZES = ((56, 84), (112, 56), (56, 56))


@pytest.fixture
def own(processor):
    return make_collator(processor)


@pytest.fixture
def samples():
    return [make_stream_sample(number, size) for number, size in enumerate(SIZES)]


def normalised(pixels, processor):
    """As an image processor of torchvision's kind hands it over: float32, (3, height, width)."""
    image = processor.image_processor
    mean, std = (np.array(v, dtype=np.float32) for v in (image.image_mean, image.image_std))
    floats = ((pixels / 255).astype(np.float32) - mean) / std
    return torch.from_numpy(floats).permute(2, 0, 1)


def promised(samples, pixel_values):
    return {
        "pixel_values": pixel_values,
        "prompt": [sample.prompt for sample in samples],
        "solution": [list(sample.solution) for sample in samples],
        "scales": [tuple(sample.scales) for sample in samples],
    }


def completed(own, samples, **changes):
    batch = promised(samples, [torch.from_numpy(sample.pixels) for sample in samples])
    return CompletedCollator(lambda _: batch | changes, own)(samples)


def assert_same(found, expected, atol=0.0):
    for name in ("prompt", "solution", "scales", "model_size", "answer_frame", "key", "extra"):
        assert found[name] == expected[name], name
    for name in ("prompt_ids", "mm_token_type_ids"):
        for own_ids, ids in zip(found[name], expected[name], strict=True):
            assert torch.equal(own_ids, ids), name
    images = zip(image_inputs(found, "cpu"), image_inputs(expected, "cpu"), strict=True)
    for tensor, wanted in images:
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=atol)


def images_of(kind, samples, processor):
    pixels = [sample.pixels for sample in samples]
    if kind == "floats":
        return [normalised(one, processor) for one in pixels]
    if kind == "arrays":
        return pixels
    if kind == "pictures":
        return [Image.fromarray(one) for one in pixels]
    if kind == "channels first":
        return [torch.from_numpy(one).permute(2, 0, 1) for one in pixels]
    encoded = processor.image_processor(
        images=[Image.fromarray(one) for one in pixels], return_tensors="pt"
    )
    patches = encoded["pixel_values"]
    if kind == "patches":
        return patches
    return list(patches.split(encoded["image_grid_thw"].prod(-1).tolist()))


class TestWhatIsDerived:
    @pytest.mark.parametrize(
        "kind",
        ["arrays", "pictures", "channels first", "floats", "patches", "patches of each"],
    )
    def test_of_images(self, own, samples, processor, kind):
        found = completed(own, samples, pixel_values=images_of(kind, samples, processor))
        assert_same(found, own(samples), atol=1e-6 if kind == "floats" else 0.0)

    @pytest.mark.parametrize("kind", ["floats", "arrays"])
    def test_of_a_stack(self, own, processor, kind):
        samples = [make_stream_sample(number) for number in range(2)]
        images = [torch.as_tensor(one) for one in images_of(kind, samples, processor)]
        found = completed(own, samples, **promised(samples, torch.stack(images)))
        assert_same(found, own(samples), atol=1e-6)

    def test_of_one_mapping_per_sample(self, own, samples):
        batch = promised(samples, [sample.pixels for sample in samples])
        rows = [{name: values[n] for name, values in batch.items()} for n in range(len(samples))]
        assert_same(CompletedCollator(lambda _: rows, own)(samples), own(samples))

    def test_of_tensors(self, own, samples):
        solution = torch.tensor([sample.solution for sample in samples])
        scales = torch.tensor([tuple(sample.scales) for sample in samples])
        assert_same(completed(own, samples, solution=solution, scales=scales), own(samples))

    def test_of_a_conversation(self, own, samples):
        expected = own(samples)
        bare = [
            [{"role": "user", "content": prompt[0]["content"][1]["text"]}]
            for prompt in expected["prompt"]
        ]
        assert_same(completed(own, samples, prompt=bare), expected)
        assert_same(completed(own, samples, prompt=expected["prompt"]), expected)

    def test_sizes_are_those_of_the_images(self, own):
        """A collator may resize by itself."""
        sample = make_stream_sample(0, (300, 200))
        pixels = np.zeros((56, 84, 3), dtype=np.uint8)
        found = completed(own, [sample], **promised([sample], [pixels]))
        assert found["model_size"] == [(84, 56)]
        assert "84x56" in found["prompt"][0][0]["content"][1]["text"]

    def test_what_is_there_stays(self, own, samples):
        whole = own(samples) | {"key": ["a", "b", "c"]}
        assert CompletedCollator(lambda _: whole, own)(samples) == whole

    def test_of_another_family(self, tmp_path):
        processor = load_processor(make_tiny_policy(tmp_path, TASK_TEXTS, family="llava"))
        own = PromptCollator(processor, make_collator(processor).template, "original")
        samples = [make_stream_sample(number, (70, 56)) for number in range(2)]
        expected = own(samples)
        floats = [media["pixel_values"][0] for media in expected["media"]]
        for images in ([sample.pixels for sample in samples], floats):
            found = completed(own, samples, **promised(samples, images))
            for one, other in zip(found["media"], expected["media"], strict=True):
                assert torch.equal(one["pixel_values"], other["pixel_values"])
            assert [ids.tolist() for ids in found["prompt_ids"]] == [
                ids.tolist() for ids in expected["prompt_ids"]
            ]


class TestWhatIsNot:
    def refused(self, own, samples, batch):
        with pytest.raises(ConfigError, match="cannot be trained on") as caught:
            CompletedCollator(lambda _: batch, own)(samples)
        assert caught.value.field == "data_collator"
        return caught.value.expected

    def test_all_that_is_missing_is_listed(self, own, samples):
        told = self.refused(own, samples, {"input_ids": [1, 2, 3], "prompt": ["a", "b", "c"]})
        for name in ("pixel_values", "solution", "scales"):
            assert f"{name} is missing" in told
        assert "prompt" not in told

    def test_other_lengths(self, own, samples):
        batch = promised(samples, [sample.pixels for sample in samples])
        told = self.refused(own, samples, batch | {"prompt": ["a"], "scales": [(1, 2)] * 2})
        assert "prompt has 1 entries for 3 samples" in told
        assert "scales has 2 entries for 3 samples" in told

    @pytest.mark.parametrize(
        ("images", "words"),
        [
            ([np.zeros((50, 56, 3), np.uint8)] * 3, "multiples of 28 (resize_rule), not 56x50"),
            ([torch.zeros(3, 56, 50)] * 3, "multiples of 28 (resize_rule), not 50x56"),
            ([torch.zeros(1, 56, 56)] * 3, "not Tensor torch.float32 (1, 56, 56)"),
            (["a.png"] * 3, "not str"),
            (torch.zeros(7, 1176), "image_grid_thw is missing, and 7 patches are not those of"),
        ],
    )
    def test_other_images(self, own, samples, images, words):
        assert words in self.refused(own, samples, promised(samples, images))

    def test_other_scales(self, own, samples):
        batch = promised(samples, [sample.pixels for sample in samples])
        assert "scales must be" in self.refused(own, samples, batch | {"scales": [1.0, 2.0, 3.0]})

    def test_no_mapping(self, own, samples):
        with pytest.raises(ConfigError, match="must return a mapping of columns"):
            CompletedCollator(list, own)(samples)


@pytest.mark.parametrize("kind", ["arrays", "floats"])
def test_it_trains_what_the_own_collator_trains(make_trainer, make_args, processor, kind):
    def collate(samples):
        return promised(samples, images_of(kind, samples, processor))

    trainers = [make_trainer(make_args(), data_collator=one) for one in (None, collate)]
    for trainer in trainers:
        trainer.train()
    assert logged(trainers[1], "loss") == pytest.approx(logged(trainers[0], "loss"), abs=1e-5)
    assert logged(trainers[1], "reward") == logged(trainers[0], "reward")


def test_the_first_batch_tells(make_trainer, make_args):
    trainer = make_trainer(make_args(), data_collator=lambda _: {"pixel_values": [1]})
    with pytest.raises(ConfigError, match="prompt is missing; solution is missing; scales is mis"):
        trainer.train()
    assert trainer.state.global_step == 0


class TestImages:
    """A collator of one's own for one, no, two and three images a prompt."""

    def promised(self, samples, kind, processor):
        own = {
            "floats": lambda one: normalised(one, processor),
            "bytes": lambda one: torch.from_numpy(one.copy()),
        }
        images = [[own[kind](pixels) for pixels in sample.images] for sample in samples]
        return {
            "pixel_values": [one[0] if len(one) == 1 else one for one in images],
            "prompt": [sample.prompt for sample in samples],
            "solution": [list(sample.solution) for sample in samples],
            "scales": [
                list(map(list, s.original_sizes)) if len(s.images) != 1 else list(s.scales)
                for s in samples
            ],
        }

    @pytest.mark.parametrize("kind", ["floats", "bytes"])
    def test_gives_the_trainers_own_batch(self, own, processor, kind):
        samples = make_mixed_stream(processor)
        given = self.promised(samples, kind, processor)
        found, expected = CompletedCollator(lambda _: given, own)(samples), own(samples)
        assert_same(found, expected, atol=1e-6)
        assert found["num_images"] == expected["num_images"]
        assert found["spare_media"].keys() == expected["spare_media"].keys()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                lambda given: given["pixel_values"][2].pop(),
                "a list of 2 images of sample '000002', not 1",
            ),
            (
                lambda given: given["scales"][3].pop(),
                r"scales must be \(width, height\) of a list of 3",
            ),
        ],
    )
    def test_no_image_gets_lost(self, own, processor, change, words):
        samples = make_mixed_stream(processor)
        given = self.promised(samples, "bytes", processor)
        change(given)
        with pytest.raises(ConfigError, match=words):
            CompletedCollator(lambda _: given, own)(samples)
