"""Mask R-CNN learns 16 images by heart, from scratch, beside torchvision's of the same depth, widths, resolution and recipe.

`python scripts/overfit_masks.py IMAGES ANNOTATIONS --output DIR`: the folder of images and the COCO file; 40 CPU minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

import detector
from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.config.config import Config, parse_config
from detector.data.coco import CocoDataset
from detector.errors import DataError
from detector.evaluation.coco import evaluate_results
from detector.files import make_folder, write_text
from detector.recipe import Recipe
from detector.rng import seed
from detector.training.optim import learning_rate, make_optimizer

IMAGES, SMALLEST = 16, 32**2  # images without crowds whose objects have at least so many pixels
WIDTH, VECTOR, SHORT, LONG = 64, 512, 192, 288
SIDES = (16, 32, 64, 128, 256)  # of anchors
PROPOSALS, SAMPLES = 500, 128  # of an image; how many of them are learnt from
RECIPE = {
    "batch_size": 2, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "schedule": "cosine",
    "warmup_steps": 20, "clip_norm": 10.0, "save_seconds": 1000.0,
}  # fmt: skip
MODEL = {
    "backbone": {"depth": 18, "norm": "batch", "frozen_stages": 0},
    "neck": {"type": "fpn", "width": WIDTH},
    "rpn": {
        "anchors": {"sizes": [[side] for side in SIDES]},
        "selection": {"pre_nms": [PROPOSALS] * 2, "post_nms": [PROPOSALS] * 2},
    },
    "roi_head": {
        "sampling": {"batch_per_image": SAMPLES},
        "box_head": {"type": "two_fc", "width": VECTOR},
        "mask_head": {"type": "conv_upsample", "width": WIDTH, "init": "torchvision"},
    },
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = CommandParser(prog="overfit_masks.py", description=__doc__)
    add = parser.add_argument
    add("images", type=Path, help="the folder of the images")
    add("annotations", type=Path, help="their COCO file, with outlines")
    add("--output", type=Path, required=True, metavar="DIR", help="new, for the training and what it is made from")
    add("--epochs", type=int, default=120, help="passes over the images (default: %(default)s)")
    return parser.parse_args(argv)


def choose(annotations: Path, output: Path) -> Path:
    """Write a COCO file of the first images that suit. Raises DataError if there are too few."""
    document = json.loads(annotations.read_text(encoding="utf-8"))
    objects: dict[int, list[dict]] = {image["id"]: [] for image in document["images"]}
    for entry in document["annotations"]:
        objects[entry["image_id"]].append(entry)
    suitable = [i for i, a in objects.items() if a and all(x["area"] >= SMALLEST and not x["iscrowd"] for x in a)]
    if len(suitable) < IMAGES:
        raise DataError(f"{annotations}: {len(suitable)} images have only objects of {SMALLEST} pixels; needs {IMAGES}")
    chosen = suitable[:IMAGES]
    document["images"] = [image for image in document["images"] if image["id"] in chosen]
    document["annotations"] = [entry for i in chosen for entry in objects[i]]
    write_text(output / "chosen.json", json.dumps(document))
    return output / "chosen.json"


def configure(images: Path, annotations: Path, epochs: int) -> Config:
    """That of this project's model, on the same images for training and scoring."""
    split = {"images": str(images.resolve()), "annotations": annotations.name}
    data = {"root": str(annotations.parent), "train": split, "val": split, "resize": {"short": SHORT, "long": LONG}}
    recipe = RECIPE | {"epochs": epochs, "evaluate_every": epochs}
    content = {"model": MODEL, "data": data | {"transforms": [], "workers": 0}, "train": recipe}
    return parse_config(content, trust=False)


def run_ours(config: Config, output: Path) -> dict[str, Any]:
    """Train and score this project's model; its metrics."""
    return detector.evaluate(detector.train(config, output).best)


def run_torchvision(images: Path, annotations: Path, recipe: Recipe) -> dict[str, Any]:
    """Train and score torchvision's model; its metrics."""
    dataset = CocoDataset(images, annotations, fields=["masks"])
    seed(recipe.seed)
    model = torchvision_model(len(dataset.class_names))
    train_torchvision(model, dataset, recipe)
    rows = [row for i in range(len(dataset)) for row in detect(model.eval(), dataset, i)]
    return evaluate_results(annotations, rows, dataset.image_ids.tolist(), dataset.category_ids, fields={"masks"})


def torchvision_model(num_classes: int) -> MaskRCNN:
    """Its Mask R-CNN with the depth and the widths of MODEL."""
    levels = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    backbone = BackboneWithFPN(resnet18(norm_layer=nn.BatchNorm2d), levels, [64, 128, 256, 512], WIDTH)
    return MaskRCNN(
        backbone, min_size=SHORT, max_size=LONG, box_batch_size_per_image=SAMPLES, rpn_pre_nms_top_n_train=PROPOSALS,
        rpn_pre_nms_top_n_test=PROPOSALS, rpn_post_nms_top_n_train=PROPOSALS, rpn_post_nms_top_n_test=PROPOSALS,
        rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in SIDES), ((0.5, 1.0, 2.0),) * len(SIDES)),
        box_head=TwoMLPHead(WIDTH * 7 * 7, VECTOR), box_predictor=FastRCNNPredictor(VECTOR, num_classes + 1),
        mask_head=MaskRCNNHeads(WIDTH, [WIDTH] * 4, 1), mask_predictor=MaskRCNNPredictor(WIDTH, WIDTH, num_classes + 1),
    )  # fmt: skip


def train_torchvision(model: MaskRCNN, dataset: CocoDataset, recipe: Recipe) -> None:
    """The same steps with the same optimiser and learning rates as in `detector train`."""
    samples = [dataset[i][:2] for i in range(len(dataset))]
    optimizer, steps = make_optimizer(model, recipe), -(-len(samples) // recipe.batch_size)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(samples)).split(recipe.batch_size)
        for step, chosen in enumerate(order, start=epoch * steps):
            batch = [samples[i] for i in chosen.tolist()]
            targets = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks} for _, t in batch]
            losses = model([image / 255 for image, _ in batch], targets)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, step, steps)
            optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()


@torch.inference_mode()
def detect(model: MaskRCNN, dataset: CocoDataset, i: int) -> list[dict[str, Any]]:
    """The COCO results of an image, with torchvision's own masks."""
    [found] = model([dataset.image(i) / 255])
    boxes = torch.cat([found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], dim=1)  # xywh
    rows = zip(boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), found["masks"])
    return [
        {"image_id": int(dataset.image_ids[i]), "category_id": dataset.category_ids[label - 1], "score": score,
         "bbox": box, "segmentation": run_lengths(mask[0] > 0.5)}
        for box, score, label, mask in rows
    ]  # fmt: skip


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """COCO's, of a mask (H, W) bool."""
    encoded = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return encoded | {"counts": encoded["counts"].decode()}


def main(argv: list[str] | None = None) -> int:
    """Train both, one after the other, and print a row for each; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        chosen = choose(args.annotations, make_folder(args.output))
        config = configure(args.images, chosen, args.epochs)
        runs = {
            "this project": lambda: run_ours(config, args.output / "ours"),
            "torchvision": lambda: run_torchvision(args.images, chosen, config.train),
        }
        rows = []
        for name, run in runs.items():
            began = time.process_time()
            metrics = run()
            scores = [f"{metrics[kind][key]:.3f}" for kind in ("bbox", "segm") for key in ("AP", "AP50")]
            rows.append(f"| {name} | {' | '.join(scores)} | {time.process_time() - began:.0f} |")
        print("| | AP | AP50 | mask AP | mask AP50 | CPU s |\n| --- | ---: | ---: | ---: | ---: | ---: |")
        print("\n".join(rows))
    return end.status


if __name__ == "__main__":
    sys.exit(main())
