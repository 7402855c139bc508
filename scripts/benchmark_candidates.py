"""What scripts/benchmark.py measures: this project's detector, torchvision's twin of it, and what both work on."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

import detector
from detector.data.image import read_image
from detector.device import pick_device
from detector.errors import CheckpointError
from detector.inference.predictor import Predictor, without_weights
from detector.interop.torchvision import TORCHVISION
from detector.modeling.layers import is_foldable
from detector.modeling.rcnn import GeneralizedRCNN
from detector.modeling.roi_heads.roi_head import RoIHead, to_rois
from detector.recipe import Recipe
from detector.structures import Proposals
from detector.training.optim import make_optimizer

STAGES = ("decode", "pre", "model", "post")
SPREADS = {"objectness": 1, "deltas": 0.3, "class_score": 0.7, "box_delta": 0.1}  # of trained predictors' weights


def build(args: argparse.Namespace) -> tuple[dict, GeneralizedRCNN]:
    """The configured model with random weights of the spread of trained ones, so that there is something to find."""
    config = without_weights(detector.load_config(args.config, args.overrides))
    config["model"].setdefault("num_classes", 80)
    torch.manual_seed(0)
    model = detector.build_detector(config, source=args.config)
    for name, module in model.named_modules():
        if is_foldable(module) and name.endswith(("bn3", "bn2")):
            nn.init.constant_(module.weight, 0.25)  # residual branches of trained nets are small beside the shortcut
        if name.rpartition(".")[2] in SPREADS:
            nn.init.normal_(module.weight, std=SPREADS[name.rpartition(".")[2]])
    return config, model


class Sample(NamedTuple):
    """What every candidate works on; the proposals are read by a detector without an RPN alone."""

    path: Path
    image: Tensor  # uint8 (3, H, W), what the file holds but for the losses of JPEG
    boxes: Tensor  # (16, 4) of objects
    labels: Tensor  # (16,)
    proposals: Proposals


class Ours:
    """This project's detector, in float32 or bfloat16."""

    def __init__(self, args: argparse.Namespace, precision: str, *, training: bool = False):
        self.config, model = build(args)
        self.precision, self.device = precision, pick_device(args.device)
        if training:
            self.model = model.to(self.device).train()
            self.optimizer = make_optimizer(model, Recipe(lr=1e-5))
        else:
            self.predictor = Predictor(model, self.config, ["?"] * model.roi_head.num_classes, [], device=self.device,
                                       precision=precision)  # fmt: skip
            self.predictor.resize.short, self.predictor.resize.long = [min(args.size)], max(args.size)
            self.model = self.predictor.model

    @torch.inference_mode()
    def infer(self, sample: Sample, clock: Clock) -> tuple[Tensor, Tensor]:
        """One image from the file to boxes and scores."""
        image = clock("decode", lambda: self.predictor.read(sample.path))
        model, head, dtype = self.model, self.model.roi_head, next(self.model.parameters()).dtype
        batch = clock("pre", lambda: model.pixels.batch([self.predictor.prepare(image)], self.device, dtype))
        batch.proposals = [sample.proposals.to(self.device)]

        def first_stage():
            p = model.pyramid(batch.images)
            return p, model.rpn.propose(p, batch)

        p, proposals = clock("model", first_stage)
        if isinstance(head, RoIHead):
            boxes = [r.boxes for r in proposals]
            out = clock("model", lambda: head.head(p, to_rois(boxes)))
            found = clock("post", lambda: head.select(*out, boxes, batch)[0].cpu())
        else:  # where network and suppression cannot be told apart
            found = clock("model", lambda: head.detect(p, proposals, batch)[0].cpu())
        return found.boxes, found.scores

    def train_step(self, sample: Sample) -> None:
        target = {"boxes": sample.boxes, "labels": sample.labels, "proposals": sample.proposals}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            losses = self.model([sample.image], [target])
        step(self.optimizer, losses)


class Torchvision:
    """torchvision's detector with our weights."""

    def __init__(self, args: argparse.Namespace, *, training: bool = False):
        self.device, self.model = pick_device(args.device), torchvision_twin(build(args)[1], args.size)
        self.model.to(self.device).train(training)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    @torch.inference_mode()
    def infer(self, sample: Sample, clock: Clock) -> tuple[Tensor, Tensor]:
        model, heads = self.model, self.model.roi_heads
        image = clock("decode", lambda: read_image(sample.path))
        images = clock("pre", lambda: model.transform([image.to(self.device).float() / 255])[0])

        def network():
            maps = model.backbone(images.tensors)
            proposals, _ = model.rpn(images, maps)
            vectors = heads.box_head(heads.box_roi_pool(maps, proposals, images.image_sizes))
            return *heads.box_predictor(vectors), proposals

        out = clock("model", network)
        boxes, scores, _ = clock("post", lambda: heads.postprocess_detections(*out, images.image_sizes))
        return boxes[0].cpu(), scores[0].cpu()

    def train_step(self, sample: Sample) -> None:
        targets = [{"boxes": sample.boxes.to(self.device), "labels": (sample.labels + 1).to(self.device)}]
        step(self.optimizer, self.model([sample.image.to(self.device).float() / 255], targets))


def torchvision_twin(model: GeneralizedRCNN, size: tuple[int, int]) -> FasterRCNN | None:
    """fasterrcnn_resnet50_fpn with the weights of ours, None if ours is something else.

    As pretrained: frozen norms, layer2..4 trainable (without weights torchvision would train batch norms).
    """
    backbone = resnet50(norm_layer=FrozenBatchNorm2d)
    for part in (backbone.conv1, backbone.layer1):
        part.requires_grad_(False)
    levels = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    pyramid = BackboneWithFPN(backbone, levels, [256, 512, 1024, 2048], 256)
    twin = FasterRCNN(pyramid, model.roi_head.num_classes + 1, min_size=min(size), max_size=max(size))
    try:
        twin.load_state_dict(TORCHVISION.give(model.state_dict()))
    except (CheckpointError, RuntimeError):  # a name, or a shape, that it does not have
        return None
    return twin


def step(optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    optimizer.step()


class Clock:
    """Seconds by stage, waiting for the device at both ends."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, dict.fromkeys(STAGES, 0.0)

    def __call__(self, stage: str, work: Callable):
        began = self.now()
        result = work()
        self.seconds[stage] += self.now() - began
        return result

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def make(args: argparse.Namespace, candidate: str, *, training: bool = False) -> Ours | Torchvision:
    if candidate == "torchvision":
        return Torchvision(args, training=training)
    return Ours(args, candidate, training=training)


@contextlib.contextmanager
def make_input(size: tuple[int, int]) -> Iterator[Sample]:
    """A JPEG file of a smooth random picture, 16 random objects of class 0, and 1000 random proposals."""
    h, w = size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, h // 16, w // 16, generator=generator)
    image = (nn.functional.interpolate(coarse, (h, w), mode="bicubic").clamp(0, 1) * 255).byte()[0]

    def boxes(count: int) -> Tensor:
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([w * 0.6, h * 0.6])
        side = 16 + torch.rand(count, 2, generator=generator) * torch.tensor([w * 0.35, h * 0.35])
        return torch.cat([corner, corner + side], dim=1)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=95)
        yield Sample(path, image, boxes(16), torch.zeros(16).long(), Proposals(boxes(1000), torch.zeros(1000)))
