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
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.roi_heads import keypointrcnn_inference, maskrcnn_inference, paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d

from detector.config.config import Config, build_detector, load_config
from detector.data.image import read_image
from detector.data.transforms import Resize
from detector.device import pick_device
from detector.errors import CheckpointError, ConfigError
from detector.inference.predictor import Predictor, to_original
from detector.interop.torchvision import TORCHVISION
from detector.modeling.layers import is_foldable
from detector.modeling.padded import Padded
from detector.modeling.rcnn import GeneralizedRCNN
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.modeling.roi_heads.stage import to_rois
from detector.recipe import Recipe
from detector.records.region_masks import RegionMasks
from detector.structures import Detections, Proposals, image_size
from detector.training.optim import make_optimizer

T = TypeVar("T")
TIMED = ("decode", "pre", "model", "post")  # the parts of an inference that are timed
SPREADS = {"objectness": 1, "deltas": 0.3, "class_score": 0.7, "box_delta": 0.1}  # std of trained predictors' weights
TWINS = {"mask": MaskRCNN, "keypoint": KeypointRCNN}  # by the branch of the second stage


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
    proposals: Proposals

    def target(self, keypoints: int = 17) -> dict[str, Tensor]:
        """The objects, of class 0: discs with keypoints on a diagonal, and a semantic map of class 0 alone."""
        size = self.image.shape[1:]
        low, high = self.boxes[:, None].split(2, dim=-1)  # (16, 1, 2) each
        points = low + (high - low) * torch.linspace(0.2, 0.8, keypoints)[:, None]
        visible = torch.full((len(points), keypoints, 1), 2.0)
        return {
            "boxes": self.boxes,
            "labels": torch.zeros(len(self.boxes)).long(),
            "masks": torch.stack([disc(box, *size) for box in self.boxes]),
            "keypoints": torch.cat([points, visible], dim=-1),
            "semantic": torch.zeros(size, dtype=torch.uint8),
        }


def disc(box: Tensor, h: int, w: int) -> Tensor:
    """(h, w) uint8, 1 inside the ellipse that fills a box (4,)."""
    x, y = torch.arange(w) + 0.5, torch.arange(h)[:, None] + 0.5
    (x1, y1, x2, y2) = box
    inside = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 < 1
    return inside.to(torch.uint8)


class Stopwatch:
    """Seconds of each part of TIMED, and of all processors in all of them; waits for the device at both ends of a call."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.cpu = device, dict.fromkeys(TIMED, 0.0), 0.0

    def __call__(self, part: str, work: Callable[..., T], *args: Any) -> T:
        began, worked = self.now(), time.process_time()
        result = work(*args)
        self.seconds[part] += self.now() - began
        self.cpu += time.process_time() - worked
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
    def infer(self, sample: BenchmarkInput, watch: Stopwatch) -> Detections:
        """One image from the file to detections, whose masks are pasted."""
        image = watch("decode", self.predictor.read, sample.path)
        model, head, dtype = self.model, self.model.roi_head, next(self.model.parameters()).dtype
        prepared = watch("pre", self.resize.resize_image, image)
        batch = watch("pre", model.preprocess.batch, [prepared], self.device, dtype)
        batch.proposals = [sample.proposals.to(self.device)]
        p = watch("model", model.pyramid, batch.images)
        proposals = watch("model", lambda: list(model.rpn.propose(p, batch)))
        if isinstance(head, RoIHead):
            regions = Padded.of(proposals)
            logits, deltas = watch("model", lambda: head.stage(head.pool(p, to_rois(regions.rows.boxes))))
            found = watch("post", lambda: list(head.postprocess(logits, deltas, regions, batch.sizes)))
            found = watch("model", head.complete, p, found, batch)
        else:  # where network and suppression cannot be told apart
            found = watch("model", head.detect, p, proposals, batch)
        result = watch("post", to_original, found[0], prepared, image_size(image))
        if result.masks is not None:
            watch("post", result.masks.paste)
        return result

    def train_step(self, sample: BenchmarkInput) -> None:
        """Forward, backward, update."""
        branch = getattr(self.model.roi_head, "keypoint", None)
        target = sample.target() if branch is None else sample.target(branch.head.keypoints)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            losses = self.model([sample.image], [target | {"proposals": sample.proposals}])
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
    def infer(self, sample: BenchmarkInput, watch: Stopwatch) -> Detections:
        """One image from the file to detections, whose masks are pasted."""
        model, heads = self.model, self.model.roi_heads
        image = watch("decode", read_image, sample.path)
        images = watch("pre", lambda: model.transform([image.to(self.device).float() / 255])[0])
        sizes = images.image_sizes

        def network():
            maps = model.backbone(images.tensors)
            proposals, _ = model.rpn(images, maps)
            vectors = heads.box_head(heads.box_roi_pool(maps, proposals, sizes))
            return maps, (*heads.box_predictor(vectors), proposals)

        def masks():
            return maskrcnn_inference(
                heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, boxes, sizes))), labels
            )

        def keypoints():
            logits = heads.keypoint_predictor(heads.keypoint_head(heads.keypoint_roi_pool(maps, boxes, sizes)))
            return keypointrcnn_inference(logits, boxes)

        maps, out = watch("model", network)
        boxes, scores, labels = watch("post", heads.postprocess_detections, *out, sizes)
        found = Detections(boxes[0].cpu(), scores[0].cpu(), labels[0].cpu() - 1)
        if heads.has_mask():
            (soft,) = watch("model", masks)
            watch("post", lambda: paste_masks_in_image(soft, boxes[0], sizes[0]).cpu())
            found.masks = RegionMasks(soft[:, 0].cpu(), found.boxes, sizes[0])
        if heads.has_keypoint():
            watch("model", keypoints)
        return found

    def train_step(self, sample: BenchmarkInput) -> None:
        """Forward, backward, update."""
        target = {name: value.to(self.device) for name, value in sample.target().items()}
        image = sample.image.to(self.device).float() / 255
        sgd_step(self.optimizer, self.model([image], [target | {"labels": target["labels"] + 1}]))


def torchvision_twin(model: GeneralizedRCNN, size: tuple[int, int]) -> FasterRCNN | None:
    """fasterrcnn_, maskrcnn_ or keypointrcnn_resnet50_fpn with the weights of `model`; None if that is another architecture.

    As pretrained: frozen norms, layer2..4 trainable (without weights torchvision would train batch norms).
    """
    backbone = resnet50(norm_layer=FrozenBatchNorm2d)
    for part in (backbone.conv1, backbone.layer1):
        part.requires_grad_(False)
    levels = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    pyramid = BackboneWithFPN(backbone, levels, [256, 512, 1024, 2048], 256)
    kind = next((kind for name, kind in TWINS.items() if getattr(model.roi_head, name, None) is not None), FasterRCNN)
    twin = kind(pyramid, model.roi_head.num_classes + 1, min_size=min(size), max_size=max(size))
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
        yield BenchmarkInput(path, image, boxes(16), Proposals(boxes(1000), torch.zeros(1000)))
