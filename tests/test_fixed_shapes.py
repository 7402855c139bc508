"""Between the batch and its losses or detections no shape depends on what is in it, and the host reads no number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny import picture
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detector.config.config import build_detector, load_config
from detector.modeling.padded import Padded
from detector.modeling.rcnn import GeneralizedRCNN
from detector.modeling.roi_heads.points import PointSampling, grid_points
from detector.modeling.shapes import fixed_shapes
from detector.records.keypoints import Keypoints
from detector.structures import Batch, Detections, Proposals, Target

SHAPES = Path(__file__).parents[1] / "configs" / "shapes"
REFUSED = {
    "nonzero",
    "is_nonzero",
    "_local_scalar_dense",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "lift_fresh",  # a tensor of numbers that the host writes: on a GPU it waits for the copy
}
FEW = [
    "model.rpn.selection.nms_iou=0.1",
    "model.rpn.selection.post_nms=[200,200]",
    "model.roi_head.selection.max_detections=10",
]


class FixedShapes(TorchDispatchMode):
    """Refuses operators whose result has a shape that depends on data; that of NMS may become a mask and nothing else."""

    def __init__(self):
        super().__init__()
        self.lists: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, indices = (
            func.overloadpacket.__name__,
            args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else (),
        )
        by_mask = name.startswith("index") and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)
        assert name not in REFUSED and not by_mask, f"{func}: its shape depends on data"
        if name != "index_fill":
            assert not any(a is kept for a in args for kept in self.lists), f"{func} of what NMS left"
        result = func(*args, **(kwargs or {}))
        if name == "nms":
            self.lists.append(result)
        return result


def detector_of(name: str) -> GeneralizedRCNN:
    """A detector of the comparison, with spread scores and proposals."""
    torch.manual_seed(0)
    model = build_detector(load_config(SHAPES / f"{name}.yaml", ["model.num_classes=3", *FEW])).eval()
    with torch.no_grad():
        model.rpn.deltas.weight.normal_(std=0.05)
        for stage in getattr(model.roi_head, "stages", [getattr(model.roi_head, "stage", None)]):
            if stage is not None:
                stage.class_score.weight.normal_(std=0.3)
    return model


def find(model: GeneralizedRCNN, batch: Batch) -> tuple[Padded[Proposals], list[Detections], Tensor]:
    """Proposals, the detections of every image with all their rows, and which of these are valid."""
    p = model.pyramid(batch.images)
    proposals = model.rpn.propose(p, batch)
    found = model.roi_head.find(p, proposals, batch)
    rows = found.whole()
    if hasattr(model.roi_head, "complete") and getattr(model.roi_head, "keypoint", None) is None:
        rows = model.roi_head.complete(p, rows, batch)
    return proposals, rows, found.valid


QUICK = ["fpn", "cascade", "mask_rcnn", "rpn", "soft_nms"]
OTHERS = sorted({path.stem for path in SHAPES.glob("*.yaml")} - set(QUICK))


@pytest.mark.parametrize("name", QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS])
@torch.inference_mode()
def test_shapes_do_not_depend_on_what_is_found(name: str):
    model = detector_of(name)
    images = [picture(100, 120), picture(128, 128, seed=1)]
    batch = model.preprocess.batch(images, torch.device("cpu"), torch.float32)
    with FixedShapes() as mode, fixed_shapes():
        proposals, rows, valid = find(model, batch)
    assert len(mode.lists) > 1
    expected = model.detect_batch(batch)
    assert torch.equal(valid, valid.sort(dim=1, descending=True).values) and not proposals.valid.all()
    for found, keep, given, image in zip(rows, valid, proposals, expected, strict=True):
        assert len(found) == len(keep) and len(given) == len(image.proposals)
        found = found[keep]
        assert len(found) == len(image) > 0
        torch.testing.assert_close(found.boxes, image.boxes)
        torch.testing.assert_close(found.scores, image.scores)
        if found.masks is not None:
            torch.testing.assert_close(found.masks.probabilities, image.masks.probabilities)


LEARNT_ALONE = {
    "panet_mask": "the batch norm of its mask head must see the positive regions alone",
    "c4": "the batch norm of its box head, layer4, must see the sampled regions alone",
}
EVERYTHING = ["model.rpn.sampling={batch_per_image: 20000, positive_fraction: 0.5}"]
REGIONS = "model.roi_head.sampling={batch_per_image: 1000, positive_fraction: 0.5}"


def learner(name: str) -> GeneralizedRCNN:
    """A detector in training that learns from every candidate: any sampler draws the same ones."""
    torch.manual_seed(0)
    changes = ["model.num_classes=3", *FEW, *EVERYTHING, *([] if name == "rpn" else [REGIONS])]
    model = build_detector(load_config(SHAPES / f"{name}.yaml", changes)).train()
    if name == "mask_scoring":
        torch.nn.init.normal_(model.roi_head.mask.head.predictor.weight)  # some of its masks cover something
    return model


def lesson() -> tuple[list[Tensor], list[Target]]:
    """Two images, with everything that a detector may learn: of the second one nothing but a crowd region."""
    boxes = torch.tensor([[10.0, 12, 60, 70], [30, 40, 90, 95], [70, 5, 110, 40]])
    masks = torch.zeros(3, 100, 120, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1 + 5 : y2, x1 : x2 - 5] = 1
    points = torch.cat([boxes[:, None, :2] + 10, boxes[:, None, 2:] - 10, boxes[:, None, :2] - 50], dim=1)
    keypoints = Keypoints(points, torch.tensor([[2, 1, 2], [1, 0, 2], [0, 0, 1]]))
    semantic = [torch.randint(0, 183, size, dtype=torch.uint8) for size in ((100, 120), (128, 128))]
    full = Target(boxes, torch.tensor([0, 2, 1]), masks=masks, keypoints=keypoints, semantic=semantic[0])
    crowd = torch.tensor([[20.0, 20, 100, 100]])
    none = replace(full[:0], crowd=crowd, masks=masks.new_zeros(0, 128, 128), semantic=semantic[1])
    return [picture(100, 120), picture(128, 128, seed=1)], [full, none]


def learn(model: GeneralizedRCNN, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
    """The losses, as of a batch that is on its device; norms of the batch count it once more."""
    batch = model.preprocess.batch(images, torch.device("cpu"), torch.float32)
    p = model.pyramid(batch.images)
    proposals, losses = model.rpn.losses(p, batch, targets)
    return losses | model.roi_head.losses(p, proposals, batch, targets)


def same_points(sampling: PointSampling, logits: Tensor) -> Tensor:
    return grid_points(7, logits.device).expand(len(logits), -1, -1)


TRAINED = [name for name in OTHERS if name not in LEARNT_ALONE]


@pytest.mark.parametrize("name", QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in TRAINED])
def test_shapes_do_not_depend_on_what_is_learnt(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PointSampling, "__call__", same_points)
    model, (images, targets) = learner(name), lesson()
    expected = model(images, targets)
    sum(expected.values()).backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with FixedShapes(), fixed_shapes():
        found = learn(model, images, targets)
        sum(found.values()).backward()
    assert found.keys() == expected.keys()
    for key, loss in expected.items():
        assert loss.isfinite() and loss > 0, key
        torch.testing.assert_close(found[key], loss, rtol=1e-4, atol=1e-7)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for key, p in model.named_parameters():
        if key in gradients:  # of a bias before a norm of the batch there is noise alone
            atol = float(2e-4 * gradients[key].abs().max() + 1e-6 * largest)
            torch.testing.assert_close(p.grad, gradients[key], rtol=1e-2, atol=atol, msg=key)
