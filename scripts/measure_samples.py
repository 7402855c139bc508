"""Images a second that one core decodes, resizes and flips for training, beside torchvision's reference pipeline.

torchvision resizes inside the model, in float32; here that counts as loading, because it is the same work. Both read the same
JPEG files by turns, and the seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.data.image import read_image
from detector.data.transforms import Compose, HorizontalFlip, Resize
from detector.device import describe_device
from detector.errors import DataError
from detector.structures import Target

SHORT, LONG = (640, 672, 704, 736, 768, 800), 1333  # of the published recipes
BOXES = torch.tensor([[20.0, 30, 200, 220], [100, 90, 400, 300]])
LABELS = torch.tensor([1, 2])
GPU = 100  # images that one GPU may train with in a second, the goal of `make gpu`


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = CommandParser(prog="measure_samples.py", description=__doc__)
    parser.add_argument(
        "images", nargs="?", type=Path, help="a folder of JPEG files (default: 32 of 640 x 480 are made)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="over all images (default 5)")
    return parser.parse_args(argv)


def make_pictures(folder: Path, count: int = 32) -> list[Path]:
    """JPEG files of COCO's usual size whose bytes a pixel are near COCO's, of textures at several scales."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        pixels = np.zeros((480, 640, 3))
        for cells in (4, 16, 60, 240):
            coarse = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8))
            pixels += np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)) / 4
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1], quality=93)
    return paths


def own() -> dict[str, Callable[[Path], object]]:
    """Decoding, and all of a sample, as `detector train` makes it."""
    transform = Compose([Resize(SHORT, LONG), HorizontalFlip()])
    return {
        "decode": read_image,
        "sample": lambda path: transform(read_image(path), Target(BOXES.clone(), LABELS.clone())),
    }


def torchvisions() -> dict[str, Callable[[Path], object]]:
    """The reference's `hflip` preset on PIL images, and the resizing of its models."""
    flip = v2.Compose([v2.RandomHorizontalFlip(), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    resize = GeneralizedRCNNTransform(SHORT, LONG, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).train()

    def sample(path: Path) -> object:
        image = Image.open(path).convert("RGB")
        boxes = BoundingBoxes(BOXES, format="XYXY", canvas_size=image.size[::-1])
        pixels, objects = flip(image, {"boxes": boxes, "labels": LABELS})
        return resize.resize(pixels, {"boxes": objects["boxes"].as_subclass(Tensor), "labels": LABELS})

    return {"decode": lambda path: v2.functional.pil_to_tensor(Image.open(path).convert("RGB")), "sample": sample}


def measure(paths: list[Path], rounds: int) -> dict[tuple[str, str], float]:
    """Median images a second of one core by (library, part), after one round that warms up."""
    torch.set_num_threads(1)
    makers = {"detector": own(), "torchvision": torchvisions()}
    rates: dict[tuple[str, str], list[float]] = {}
    for turn, (library, part) in itertools.product(range(rounds + 1), itertools.product(makers, ("decode", "sample"))):
        began = time.process_time()
        for path in paths:
            makers[library][part](path)
        if turn:
            rates.setdefault((library, part), []).append(len(paths) / (time.process_time() - began))
    return {key: statistics.median(values) for key, values in rates.items()}


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        paths = make_pictures(Path(folder)) if args.images is None else sorted(args.images.glob("*.jpg"))
        if not paths:
            raise DataError(f"{args.images}: no .jpg file in it; name a folder of JPEG files")
        torch.manual_seed(0)
        rates = measure(paths, args.rounds)
        mean = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    print(
        f"{len(paths)} JPEG files of {mean:.0f} kB, {describe_device(torch.device('cpu'))}, torch {torch.__version__}\n"
    )
    print(f"{'images/s of one core':22}{'decode':>9}{'sample':>9}")
    for library in ("detector", "torchvision"):
        print(f"{library:22}{rates[library, 'decode']:9.0f}{rates[library, 'sample']:9.0f}")
    ratios = [rates["detector", part] / rates["torchvision", part] for part in ("decode", "sample")]
    print(f"{'ratio':22}{ratios[0]:9.2f}{ratios[1]:9.2f}")
    print(f"\n{GPU / rates['detector', 'sample']:.1f} such cores feed a GPU that trains with {GPU} images a second")


def main(argv: list[str] | None = None) -> int:
    """Measure; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        run(args)
    return end.status


if __name__ == "__main__":
    raise SystemExit(main())
