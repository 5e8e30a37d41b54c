import importlib.util
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from grpo_stream.boxes import Size
from grpo_stream.errors import ConfigError
from grpo_stream.train.models.patches import (
    PatchRule,
    device_rule,
    image_inputs,
    image_tensor,
    to_patches,
)

QWEN2 = {"patch_size": 14, "merge_size": 2}
QWEN3 = {"patch_size": 16, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
FREE = {"shortest_edge": 1, "longest_edge": 10**9}  # no image is resized
KINDS = [
    QWEN2,
    QWEN3,
    {"patch_size": 14, "merge_size": 1},
    {"patch_size": 7, "merge_size": 3, "temporal_patch_size": 1},
    {"patch_size": 2, "merge_size": 4, "temporal_patch_size": 3},
]
SIDES = st.integers(1, 6)


def make_processor(**changes):
    return Qwen2VLImageProcessorPil(size=FREE, **changes)


def make_fast_processor(**changes):
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(size=FREE, **changes)


def make_images(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]


def patches_of(processor, images):
    return to_patches([torch.from_numpy(image) for image in images], PatchRule.of(processor))


def expected_of(processor, images):
    pictures = [Image.fromarray(image) for image in images]
    encoded = processor(images=pictures, return_tensors="pt")
    return encoded["pixel_values"], encoded["image_grid_thw"]


def assert_same(processor, images, tolerance=0.0):
    expected, found = expected_of(processor, images), patches_of(processor, images)
    assert found[0].dtype == torch.float32
    assert found[0].shape == expected[0].shape
    assert (found[0] - expected[0]).abs().max() <= tolerance
    assert torch.equal(found[1], expected[1])


class TestEqualsTheProcessor:
    @settings(max_examples=60)
    @given(
        st.sampled_from(KINDS),
        st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=4),
        st.integers(0, 99),
    )
    def test_sizes_and_batches(self, kind, sizes, seed):
        multiple = kind["patch_size"] * kind["merge_size"]
        images = make_images([(w * multiple, h * multiple) for w, h in sizes], seed)
        assert_same(make_processor(**kind), images)

    @settings(max_examples=30)
    @given(
        st.lists(st.floats(0, 1), min_size=3, max_size=3),
        st.lists(st.floats(0.01, 2), min_size=3, max_size=3),
        st.sampled_from([1 / 255, 1 / 127.5, 1.0]),
        st.booleans(),
        st.booleans(),
    )
    def test_means_and_deviations(self, mean, std, factor, rescales, normalises):
        processor = make_processor(
            image_mean=mean,
            image_std=std,
            rescale_factor=factor,
            do_rescale=rescales,
            do_normalize=normalises,
        )
        assert_same(processor, make_images([(56, 28)]))

    @pytest.mark.parametrize("size", [(1288, 728), (28, 1400), (364, 644)])
    def test_sizes_of_screenshots(self, size):
        assert_same(make_processor(**QWEN2), make_images([size]))

    @pytest.mark.parametrize("kind", [QWEN2, QWEN3])
    def test_every_value_of_every_channel(self, kind):
        multiple = kind["patch_size"] * kind["merge_size"]
        values = np.arange(multiple * multiple * 4 * 3) % 256
        image = values.astype(np.uint8).reshape(2 * multiple, 2 * multiple, 3)
        assert all(len(np.unique(image[:, :, channel])) == 256 for channel in range(3))
        assert_same(make_processor(**kind), [image])

    @pytest.mark.skipif(
        importlib.util.find_spec("torchvision") is None, reason="that processor needs torchvision"
    )
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_torchvision(self, kind):
        multiple = kind["patch_size"] * kind["merge_size"]
        images = make_images([(2 * multiple, multiple), (multiple, 3 * multiple)])
        assert_same(make_fast_processor(**kind), images, 1e-6)

    @pytest.mark.parametrize("kind", [QWEN2, QWEN3])
    def test_the_arithmetic_of_torchvisions(self, kind):
        # That processor folds 1 / rescale_factor into mean and deviation, in float32.
        rule = PatchRule.of(make_processor(**kind))
        mean, std = (
            torch.tensor(values)[:, None] * (1.0 / rule.rescale_factor)
            for values in (rule.mean, rule.std)
        )
        folded = (torch.arange(256, dtype=torch.float32) - mean) / std
        assert (torch.from_numpy(rule.table()) - folded).abs().max() <= 1e-6


class TestToPatches:
    def test_are_made_in_the_asked_type(self):
        (image,) = make_images([(56, 28)])
        rule = PatchRule()
        wide, _ = to_patches([torch.from_numpy(image)], rule)
        narrow, _ = to_patches([torch.from_numpy(image)], rule, dtype=torch.bfloat16)
        assert torch.equal(narrow, wide.bfloat16())

    def test_images_are_not_changed(self):
        (image,) = make_images([(56, 28)])
        before = image.copy()
        to_patches([torch.from_numpy(image)], PatchRule())
        assert np.array_equal(image, before)

    def test_of_an_image_that_is_no_whole_tensor(self):
        (image,) = make_images([(84, 56)])
        part = torch.from_numpy(image)[:, 28:]
        expected, _ = to_patches([part.clone()], PatchRule())
        assert torch.equal(to_patches([part], PatchRule())[0], expected)

    @pytest.mark.parametrize("size", [(28, 27), (42, 28), (28, 0)])
    def test_refuses_sizes_that_are_not_the_models(self, size):
        with pytest.raises(ConfigError, match=rf"{size[0]}x{size[1]}.*multiples of 28"):
            to_patches([torch.zeros(size[1], size[0], 3, dtype=torch.uint8)], PatchRule())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    def test_on_cuda(self):
        images = [image_tensor(image) for image in make_images([(56, 28), (84, 112)])]
        assert all(image.is_pinned() for image in images)
        rule = PatchRule()
        expected, found = to_patches(images, rule), to_patches(images, rule, "cuda")
        assert found[0].is_cuda
        assert torch.equal(found[0].cpu(), expected[0])


class TestImageTensor:
    def test_is_a_copy_even_of_pixels_that_cannot_be_written(self, recwarn):
        (image,) = make_images([(56, 28)])
        image.flags.writeable = False
        tensor = image_tensor(image)
        assert np.array_equal(tensor.numpy(), image)
        tensor.zero_()
        assert image.any()
        assert not recwarn.list


class TestPatchRule:
    def test_the_defaults_are_the_models(self):
        assert PatchRule.of(Qwen2VLImageProcessorPil()) == PatchRule()
        assert PatchRule().patch_dim == 1176

    def test_grid(self):
        assert PatchRule().grid(Size(112, 56)) == (1, 4, 8)

    @pytest.mark.parametrize("processor", [CLIPImageProcessor, object, lambda: None])
    def test_of_another_family_is_refused(self, processor):
        with pytest.raises(ConfigError, match=r"image_processor=.*Qwen2VLImageProcessor"):
            PatchRule.of(processor())

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("patch_size", 0),
            ("temporal_patch_size", 0),
            ("merge_size", -1),
            ("mean", (0.5,)),
            ("std", (1.0, 0.0, 1.0)),
        ],
    )
    def test_refuses(self, field, value):
        with pytest.raises(ConfigError, match=field):
            PatchRule(**{field: value})


class Brighter(Qwen2VLImageProcessorPil):
    """One of the Qwen-VL kind whose arithmetic was overridden."""

    def normalize(self, image, *args, **kwargs):
        return super().normalize(image, *args, **kwargs) + 1


class OtherOrder(Qwen2VLImageProcessorPil):
    """One that does not put merged patches together."""

    def patchify(self, image, patch_size, merge_size, temporal_patch_size):
        return super().patchify(image, patch_size, 1, temporal_patch_size)


class Unstated:
    """One with a size and patches, but without mean and deviation."""

    patch_size = merge_size = 2


class TestDeviceRule:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_qwens_own(self, kind):
        processor = make_processor(**kind)
        assert device_rule(processor) == PatchRule.of(processor)

    def test_of_qwens_own_with_the_models_sizes(self):
        assert device_rule(Qwen2VLImageProcessorPil()) == PatchRule()

    @pytest.mark.parametrize("other", [Brighter, OtherOrder, Unstated])
    def test_is_none_where_the_processor_does_something_else(self, other, caplog):
        with caplog.at_level(logging.WARNING, "grpo_stream"):
            assert device_rule(other()) is None
        assert other.__name__ in caplog.text


def test_inputs_that_have_been_made_are_only_moved():
    made = {"pixel_values": torch.randn(4, 6), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    pixel_values, grids = image_inputs(made, "cpu")
    assert pixel_values.data_ptr() == made["pixel_values"].data_ptr()
    assert torch.equal(grids, made["image_grid_thw"])
