"""From uint8 images to a batch: colour order, normalisation, padding."""

import pytest
import torch
from helpers.tiny import picture

from detector.modeling.preprocess import ImagePreprocessor

CPU = torch.device("cpu")


def batch(pixels: ImagePreprocessor, *images: torch.Tensor, dtype: torch.dtype = torch.float32):
    return pixels.batch(images, CPU, dtype)


def test_images_are_normalised_and_padded_to_the_divisor():
    image = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)
    rgb = batch(ImagePreprocessor(mean=(1, 2, 3), std=(1, 2, 4), divisor=1), image).images
    assert rgb[0, :, 0, 0].tolist() == [9, 9, 6.75]
    bgr = batch(ImagePreprocessor(order="bgr", mean=(1, 2, 3), std=(1, 2, 4), divisor=1), image).images
    assert bgr[0, :, 0, 0].tolist() == [29, 9, 1.75]  # the mean is in the order of the channels
    for divisor, padded in ((1, (33, 65)), (11, (33, 66)), (32, (64, 96)), (128, (128, 128))):
        pixels, image = ImagePreprocessor(divisor=divisor), picture(33, 65)
        assert pixels.padded_size(image) == padded
        assert batch(pixels, image).images.shape == (1, 3, *padded)


def test_images_of_all_sizes_share_a_batch_of_the_dtype_that_is_asked_for_and_stay_as_they_are():
    small, wide, tall = picture(20, 30), picture(32, 64), picture(50, 10)
    made = batch(ImagePreprocessor(), small, wide, tall)
    assert made.images.shape == (3, 3, 64, 64) and made.sizes == [(20, 30), (32, 64), (50, 10)]
    for slot, image in zip(made.images, (small, wide, tall)):
        h, w = image.shape[1:]
        alone = batch(ImagePreprocessor(divisor=1), image).images[0]
        assert torch.equal(slot[:, :h, :w], alone)
        assert slot[:, h:].abs().sum() == slot[:, :, w:].abs().sum() == 0
    image = picture(32, 32)
    images = batch(ImagePreprocessor(order="bgr"), image, dtype=torch.bfloat16).images
    assert images.dtype == torch.bfloat16 and images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(image, picture(32, 32))


def test_what_is_no_image_is_refused():
    bytes_ = [torch.zeros(shape, dtype=torch.uint8) for shape in (
        (1, 8, 8), (8, 8, 3), (8, 8), (8,), (2, 3, 8, 8), (3, 0, 8),
    )]  # fmt: skip
    for image in (torch.zeros(3, 8, 8), *bytes_):
        with pytest.raises(ValueError, match=r"image 1: expected a uint8 RGB tensor of shape \(3, H, W\)"):
            batch(ImagePreprocessor(), picture(8, 8), image)
