"""The candidates of the benchmark: this project's detector and torchvision's of the same weights, on one input."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from detector.config.config import Config, build_detector, load_config
from detector.data.image import read_image
from detector.data.transforms import Resize
from detector.device import pick_device
from detector.errors import CheckpointError, ConfigError
from detector.inference.predictor import Predictor
from detector.interop.torchvision import TORCHVISION
from detector.modeling.layers import is_foldable
from detector.modeling.rcnn import GeneralizedRCNN
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.modeling.roi_heads.stage import to_rois
from detector.recipe import Recipe
from detector.structures import Proposals
from detector.training.optim import make_optimizer

T = TypeVar("T")
TIMED = ("decode", "pre", "model", "post")  # the parts of an inference that are timed
SPREADS = {"objectness": 1, "deltas": 0.3, "class_score": 0.7, "box_delta": 0.1}  # std of trained predictors' weights


@dataclass(frozen=True)
class Setup:
    """A configuration and the conditions that it is measured under."""

    config: str
    """A YAML file."""
    overrides: Sequence[str]
    """`key.path=value` changes to it."""
    device: str
    """A name as for `detector.load`."""
    size: tuple[int, int]
    """(h, w) of the image."""

    def build(self) -> tuple[Config, GeneralizedRCNN]:
        """The model with random weights of the spread of trained ones, so that there is something to detect."""
        config = load_config(self.config, self.overrides)
        config = config.with_num_classes(80) if config.model.num_classes is None else config
        torch.manual_seed(0)
        model = build_detector(config, pretrained=False)
        for name, module in model.named_modules():
            if is_foldable(module) and name.endswith(("bn3", "bn2")):
                nn.init.constant_(
                    module.weight, 0.25
                )  # residual branches of trained nets are small beside the shortcut
            if name.rpartition(".")[2] in SPREADS:
                nn.init.normal_(module.weight, std=SPREADS[name.rpartition(".")[2]])
        return config, model


@dataclass(frozen=True)
class BenchmarkInput:
    """The input of every candidate; only a detector without an RPN reads the proposals."""

    path: Path
    image: Tensor  # uint8 (3, H, W), the content of the file but for the losses of JPEG
    boxes: Tensor  # (16, 4) of objects
    labels: Tensor  # (16,)
    proposals: Proposals


class Stopwatch:
    """Seconds of each part of TIMED; waits for the device at both ends of a call."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, dict.fromkeys(TIMED, 0.0)

    def __call__(self, part: str, work: Callable[..., T], *args: Any) -> T:
        began = self.now()
        result = work(*args)
        self.seconds[part] += self.now() - began
        return result

    def now(self) -> float:
        """Seconds since some moment, the device's work done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class OwnCandidate:
    """This project's detector, in float32 or bfloat16."""

    def __init__(self, setup: Setup, precision: str, *, training: bool = False):
        config, model = setup.build()
        self.precision, self.device = precision, pick_device(setup.device)
        if training:
            self.model = model.to(self.device).train()
            self.optimizer = make_optimizer(model, Recipe(lr=1e-5))
        else:
            names = [str(i) for i in range(model.roi_head.num_classes)]
            ids = list(range(len(names)))
            self.predictor = Predictor(
                model, config, names, ids, device=self.device, precision=precision, in_place=True
            )
            self.resize = Resize(min(setup.size), max(setup.size))
            self.model = self.predictor.model

    @torch.inference_mode()
    def infer(self, sample: BenchmarkInput, watch: Stopwatch) -> tuple[Tensor, Tensor]:
        """One image from the file to boxes and scores."""
        image = watch("decode", self.predictor.read, sample.path)
        model, head, dtype = self.model, self.model.roi_head, next(self.model.parameters()).dtype
        batch = watch("pre", lambda: model.preprocess.batch([self.resize.resize_image(image)], self.device, dtype))
        batch.proposals = [sample.proposals.to(self.device)]
        p = watch("model", model.pyramid, batch.images)
        proposals = watch("model", model.rpn.propose, p, batch)
        if isinstance(head, RoIHead):
            boxes = [r.boxes for r in proposals]
            logits, deltas = watch("model", lambda: head.stage(head.pool(p, to_rois(boxes))))
            found = watch("post", lambda: head.postprocess(logits, deltas, boxes, batch.sizes)[0].cpu())
        else:  # where network and suppression cannot be told apart
            found = watch("model", lambda: head.detect(p, proposals, batch)[0].cpu())
        return found.boxes, found.scores

    def train_step(self, sample: BenchmarkInput) -> None:
        """Forward, backward, update."""
        target = {"boxes": sample.boxes, "labels": sample.labels, "proposals": sample.proposals}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            losses = self.model([sample.image], [target])
        sgd_step(self.optimizer, losses)


class TorchvisionCandidate:
    """torchvision's detector with the same weights."""

    def __init__(self, setup: Setup, *, training: bool = False):
        model = torchvision_twin(setup.build()[1], setup.size)
        if model is None:
            raise ConfigError(f"{setup.config}: torchvision has no such model")
        self.device, self.model = pick_device(setup.device), model
        self.model.to(self.device).train(training)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    @torch.inference_mode()
    def infer(self, sample: BenchmarkInput, watch: Stopwatch) -> tuple[Tensor, Tensor]:
        """One image from the file to boxes and scores."""
        model, heads = self.model, self.model.roi_heads
        image = watch("decode", read_image, sample.path)
        images = watch("pre", lambda: model.transform([image.to(self.device).float() / 255])[0])

        def network():
            maps = model.backbone(images.tensors)
            proposals, _ = model.rpn(images, maps)
            vectors = heads.box_head(heads.box_roi_pool(maps, proposals, images.image_sizes))
            return *heads.box_predictor(vectors), proposals

        out = watch("model", network)
        boxes, scores, _ = watch("post", lambda: heads.postprocess_detections(*out, images.image_sizes))
        return boxes[0].cpu(), scores[0].cpu()

    def train_step(self, sample: BenchmarkInput) -> None:
        """Forward, backward, update."""
        targets = [{"boxes": sample.boxes.to(self.device), "labels": (sample.labels + 1).to(self.device)}]
        sgd_step(self.optimizer, self.model([sample.image.to(self.device).float() / 255], targets))


def torchvision_twin(model: GeneralizedRCNN, size: tuple[int, int]) -> FasterRCNN | None:
    """fasterrcnn_resnet50_fpn with the weights of `model`; None if that is another architecture.

    As pretrained: frozen norms, layer2..4 trainable (without weights torchvision would train batch norms).
    """
    backbone = resnet50(norm_layer=FrozenBatchNorm2d)
    for part in (backbone.conv1, backbone.layer1):
        part.requires_grad_(False)
    levels = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    pyramid = BackboneWithFPN(backbone, levels, [256, 512, 1024, 2048], 256)
    twin = FasterRCNN(pyramid, model.roi_head.num_classes + 1, min_size=min(size), max_size=max(size))
    try:
        twin.load_state_dict(TORCHVISION.export_state(model.state_dict()))
    except (CheckpointError, RuntimeError):  # a name, or a shape, that it does not have
        return None
    return twin


def sgd_step(optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
    """Backward and update; the forward pass is done."""
    optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    optimizer.step()


def make_candidate(setup: Setup, name: str, *, training: bool = False) -> OwnCandidate | TorchvisionCandidate:
    """The candidate "torchvision", or this project's detector in the precision `name`."""
    if name == "torchvision":
        return TorchvisionCandidate(setup, training=training)
    return OwnCandidate(setup, name, training=training)


@contextlib.contextmanager
def make_input(size: tuple[int, int]) -> Iterator[BenchmarkInput]:
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
        yield BenchmarkInput(path, image, boxes(16), torch.zeros(16).long(), Proposals(boxes(1000), torch.zeros(1000)))
