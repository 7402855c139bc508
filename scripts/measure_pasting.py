"""CPU seconds of pasting 100 masks into an image of 800 x 1216, beside torchvision's `paste_masks_in_image`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detector.records.region_masks import RegionMasks

SIZE, MASKS, REPEATS = (800, 1216), 100, 15


def made_masks() -> RegionMasks:
    """Smooth blobs in boxes of all scales."""
    torch.manual_seed(0)
    h, w = SIZE
    centres = torch.rand(MASKS, 2) * torch.tensor([w, h])
    sides = 8 * (400 / 8) ** torch.rand(MASKS, 2)
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    boxes = boxes.clamp(min=0).minimum(torch.tensor([w, h, w, h]))
    noise = F.interpolate(torch.randn(MASKS, 1, 5, 5), size=28, mode="bicubic")[:, 0]
    return RegionMasks((3 * noise).sigmoid(), boxes, SIZE)


def least_cpu_seconds(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Of each work, the fewest of several runs that take turns."""
    seconds = dict.fromkeys(works, float("inf"))
    for _ in range(REPEATS):
        for name, work in works.items():
            began = time.process_time()
            work()
            seconds[name] = min(seconds[name], time.process_time() - began)
    return seconds


def main() -> None:
    """Print a line for each way."""
    masks = made_masks()
    soft = masks.probabilities[:, None]
    seconds = least_cpu_seconds(
        {
            "torchvision's paste_masks_in_image": lambda: paste_masks_in_image(soft, masks.boxes, SIZE),
            "the same, thresholded": lambda: paste_masks_in_image(soft, masks.boxes, SIZE) > 0.5,
            "sampled": masks.paste,
            "sampled, as run lengths": masks.rle,
            "torchvision's way": lambda: masks.paste("torchvision"),
        }
    )
    slowest = next(iter(seconds.values()))
    for name, value in seconds.items():
        print(f"{1000 * value:8.1f} ms  {slowest / value:5.1f} x  {name}")


if __name__ == "__main__":
    main()
