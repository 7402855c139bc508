"""Speed and memory of a detector beside torchvision's fasterrcnn_resnet50_fpn, in one run, by turns, on the same input."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

import detector
from detector.errors import CheckpointError
from detector.inference.predictor import Predictor, pick_device, without_weights
from detector.interop.torchvision import TORCHVISION
from detector.layers import is_foldable
from detector.rcnn import GeneralizedRCNN
from detector.training.recipe import Recipe
from detector.training.schedule import make_optimizer

STAGES = ("decode", "pre", "model", "post")
CANDIDATES = ("float32", "bfloat16", "torchvision")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("config", metavar="CONFIG", help="configs/compat/torchvision_fasterrcnn_resnet50_fpn.yaml gives equal boxes")
    add("overrides", metavar="key=value", nargs="*")
    add("--device", default="auto")
    add("--size", type=int, nargs=2, default=(800, 1216), metavar=("H", "W"), help="of the image (default 800 1216)")
    add("--pairs", type=int, default=7, help="how often everything is measured (default 7)")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("--peak-of", nargs=2, metavar=("CANDIDATE", "WORK"), help=argparse.SUPPRESS)  # a child process: see peak_memory
    args = parser.parse_intermixed_args(argv)
    if args.pairs < 1 or min(args.size) < 32:
        parser.error("--pairs must be at least 1 and --size at least 32 32")
    return args


def build(args: argparse.Namespace) -> tuple[dict, GeneralizedRCNN]:
    """The configured model with random weights of the spread of trained ones, so that there is something to find."""
    config = without_weights(detector.load_config(args.config, args.overrides))
    config["model"].setdefault("num_classes", 80)
    torch.manual_seed(0)
    model = detector.build_detector(config, source=args.config)
    for name, module in model.named_modules():
        if is_foldable(module) and name.endswith(("bn3", "bn2")):
            nn.init.constant_(module.weight, 0.25)  # residual branches of trained nets are small beside the shortcut
    rpn, roi_head = model.rpn, model.roi_head
    for layer, std in ((rpn.objectness, 1), (rpn.deltas, 0.3), (roi_head.class_score, 0.7), (roi_head.box_delta, 0.1)):
        nn.init.normal_(layer.weight, std=std)
    return config, model


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
    def infer(self, path: Path, clock: Clock) -> tuple[Tensor, Tensor]:
        """One image from the file to boxes and scores."""
        image = clock("decode", lambda: self.predictor.read(path))
        model, dtype = self.model, next(self.model.parameters()).dtype
        batch = clock("pre", lambda: model.pixels.batch([self.predictor.prepare(image)], self.device, dtype))

        def network():
            p = model.pyramid(batch.images)
            proposals = [r.boxes for r in model.rpn.propose(p, batch)]
            rois = torch.nn.functional.pad(proposals[0], (1, 0))
            return *model.roi_head.head(p, rois), proposals

        out = clock("model", network)
        found = clock("post", lambda: model.roi_head.select(*out, batch)[0].cpu())
        return found.boxes, found.scores

    def train_step(self, image: Tensor, boxes: Tensor, labels: Tensor) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            losses = self.model([image], [{"boxes": boxes, "labels": labels}])
        step(self.optimizer, losses)


class Torchvision:
    """torchvision's detector with frozen norms, and with our weights where the architecture is the same."""

    def __init__(self, args: argparse.Namespace, *, training: bool = False):
        _, model = build(args)
        self.device = pick_device(args.device)
        self.model = torchvision_model(model.roi_head.num_classes + 1, args.size)
        try:
            self.model.load_state_dict(TORCHVISION.give(model.state_dict()))
            self.same_weights = True
        except (CheckpointError, RuntimeError):
            self.same_weights = False
        del model
        self.model.to(self.device).train(training)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    @torch.inference_mode()
    def infer(self, path: Path, clock: Clock) -> tuple[Tensor, Tensor]:
        model, heads = self.model, self.model.roi_heads
        image = clock("decode", lambda: detector.data.image.read_image(path))
        images = clock("pre", lambda: model.transform([image.to(self.device).float() / 255])[0])

        def network():
            maps = model.backbone(images.tensors)
            proposals, _ = model.rpn(images, maps)
            vectors = heads.box_head(heads.box_roi_pool(maps, proposals, images.image_sizes))
            return *heads.box_predictor(vectors), proposals

        out = clock("model", network)
        boxes, scores, _ = clock("post", lambda: heads.postprocess_detections(*out, images.image_sizes))
        return boxes[0].cpu(), scores[0].cpu()

    def train_step(self, image: Tensor, boxes: Tensor, labels: Tensor) -> None:
        targets = [{"boxes": boxes.to(self.device), "labels": (labels + 1).to(self.device)}]
        step(self.optimizer, self.model([image.to(self.device).float() / 255], targets))


def torchvision_model(columns: int, size: tuple[int, int]) -> FasterRCNN:
    """fasterrcnn_resnet50_fpn as pretrained: frozen norms, layer2..4 trainable (without weights it trains batch norms)."""
    backbone = resnet50(norm_layer=FrozenBatchNorm2d)
    for part in (backbone.conv1, backbone.layer1):
        part.requires_grad_(False)
    levels = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    pyramid = BackboneWithFPN(backbone, levels, [256, 512, 1024, 2048], 256)
    return FasterRCNN(pyramid, columns, min_size=min(size), max_size=max(size))


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


def make_input(args: argparse.Namespace) -> tuple[Path, Tensor, Tensor, Tensor]:
    """A JPEG file of a smooth random picture, its pixels, and 16 random objects."""
    h, w = args.size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, h // 16, w // 16, generator=generator)
    image = (nn.functional.interpolate(coarse, (h, w), mode="bicubic").clamp(0, 1) * 255).byte()[0]
    path = Path(tempfile.mkdtemp()) / "picture.jpg"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=95)
    corner = torch.rand(16, 2, generator=generator) * torch.tensor([w * 0.6, h * 0.6])
    side = 16 + torch.rand(16, 2, generator=generator) * torch.tensor([w * 0.35, h * 0.35])
    return path, image, torch.cat([corner, corner + side], dim=1), torch.randint(0, 3, (16,), generator=generator)


def measure(args: argparse.Namespace, *, training: bool) -> dict[str, list]:
    """Seconds of every candidate, `pairs` times by turns after one warm-up round: {candidate: [stage -> s, ...]}."""
    candidates = {name: make(args, name, training=training) for name in CANDIDATES}
    path, image, boxes, labels = make_input(args)
    rounds: dict[str, list] = {name: [] for name in candidates}
    found = {}
    for turn in range(args.pairs + 1):
        for name, candidate in candidates.items():
            clock = Clock(candidate.device)
            if training:
                clock("model", lambda c=candidate: c.train_step(image, boxes, labels))
            else:
                found[name] = candidate.infer(path, clock)
            if turn:  # the first round warms up
                rounds[name].append(clock.seconds)
    if not training and candidates["torchvision"].same_weights:
        print(f"boxes of float32 and torchvision: {difference(found['float32'], found['torchvision'])}")
    return rounds


def difference(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> str:
    """Every box of ours beside the nearest of torchvision's."""
    if len(ours[0]) != len(theirs[0]) or not len(ours[0]):
        return f"{len(ours[0])} against {len(theirs[0])} found"
    gap = (ours[0][:, None] - theirs[0][None]).abs().amax(dim=-1) + (ours[1][:, None] - theirs[1][None]).abs() * 1e3
    nearest = gap.argmin(dim=1)
    pixels = (ours[0] - theirs[0][nearest]).abs().max().item()
    score = (ours[1] - theirs[1][nearest]).abs().max().item()
    return f"{len(ours[0])} found by both, largest difference {pixels:.4f} px and {score:.1e} in score"


def peak_memory(args: argparse.Namespace, candidate: str, work: str) -> float:
    """MiB at the peak of a process of its own that does this work once."""
    command = [sys.executable, __file__, args.config, *args.overrides, "--device", args.device, "--size",
               *map(str, args.size), "--peak-of", candidate, work]  # fmt: skip
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(args: argparse.Namespace) -> None:
    """The child of `peak_memory`."""
    candidate, work = args.peak_of
    worker = make(args, candidate, training=work == "train")
    path, image, boxes, labels = make_input(args)
    for _ in range(2):
        if work == "train":
            worker.train_step(image, boxes, labels)
        else:
            worker.infer(path, Clock(worker.device))
    if worker.device.type == "cuda":
        print(torch.cuda.max_memory_allocated(worker.device) / 2**20)
    else:
        print(resident_peak())


def resident_peak() -> float:
    """MiB. getrusage would count the parent, whose memory a child has until it becomes another program."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes


def summary(rounds: dict[str, list]) -> dict[str, dict[str, float]]:
    """Medians by candidate; `ratio` is torchvision's total over ours, pair by pair."""
    totals = {name: [sum(r.values()) for r in runs] for name, runs in rounds.items()}
    out = {}
    for name, runs in rounds.items():
        out[name] = {stage: statistics.median(r[stage] for r in runs) for stage in STAGES}
        out[name]["total"] = statistics.median(totals[name])
        out[name]["ratio"] = statistics.median(t / o for t, o in zip(totals["torchvision"], totals[name]))
    return out


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}")
    print(
        f"{'':14}"
        + "".join(f"{s:>9}" for s in STAGES)
        + f"{'total s':>9}{'img/s':>8}{'x torchvision':>15}{'peak MiB':>10}"
    )
    for name, row in rows.items():
        stages = "".join(f"{row[s]:9.3f}" if row[s] else f"{'':9}" for s in STAGES)
        print(f"{name:14}{stages}{row['total']:9.3f}{1 / row['total']:8.2f}{row['ratio']:15.2f}{row['peak_mib']:10.0f}")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.peak_of:
            print_peak(args)
            return 0
        device = pick_device(args.device)
        name = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        )
        print(f"{args.config} at {args.size[0]} x {args.size[1]}, batch 1, {name}, torch {torch.__version__}")
        figures = {}
        for work, title in (("infer", "inference"), ("train", "training step (forward, backward, SGD)")):
            figures[work] = summary(measure(args, training=work == "train"))
            for candidate, row in figures[work].items():
                row["peak_mib"] = peak_memory(args, candidate, work)
            show(f"{title}, medians of {args.pairs}, seconds", figures[work])
    except detector.DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
