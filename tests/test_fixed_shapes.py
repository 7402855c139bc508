"""Between the batch and the detections of an image no shape depends on what is in it, and the host reads no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny import picture
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detector.config.config import build_detector, load_config
from detector.modeling.padded import Padded
from detector.modeling.rcnn import GeneralizedRCNN
from detector.modeling.shapes import fixed_shapes
from detector.structures import Batch, Detections, Proposals

SHAPES = Path(__file__).parents[1] / "configs" / "shapes"
REFUSED = {
    "nonzero",
    "is_nonzero",
    "_local_scalar_dense",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
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
