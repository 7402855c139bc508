"""Our models give the recorded numbers of torchvision's, layer by layer, down to detections, losses and gradients."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import pytest
import torch
from golden_rules import (
    PROJECT,
    filled,
    formula_image,
    golden,
    ground_truth,
    match_sets,
    record_errors,
    relative_error,
)
from torch import Tensor

from detector.build import build_detector, load_config
from detector.heads.roi_head import to_rois
from detector.interop.names import rename
from detector.interop.torchvision import NAMES, from_torchvision
from detector.rcnn import GeneralizedRCNN
from detector.structures import Batch, Detections, Proposals

V1, V2 = "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"
CASES = [
    pytest.param(V1, "batch"),
    pytest.param(V1, "single", marks=pytest.mark.slow),
    pytest.param(V2, "batch", marks=pytest.mark.slow),
    pytest.param(V2, "single", marks=pytest.mark.slow),
]
each_case = pytest.mark.parametrize(("name", "case"), CASES)


@functools.cache
def build(name: str) -> GeneralizedRCNN:
    """Our model with the recorded profile and the weights of the fill rule."""
    record = golden(f"tv_{name}")
    profile = record["profile"]
    counts = {when: [profile[f"rpn_{when}_nms_topk_{mode}"] for mode in ("train", "test")] for when in ("pre", "post")}
    overrides = [
        f"model.rpn.pre_nms={counts['pre']}",
        f"model.rpn.post_nms={counts['post']}",
        f"model.rpn.batch_per_image={profile['rpn_batch_size_per_image']}",
        f"model.roi_head.batch_per_image={profile['roi_batch_size_per_image']}",
    ]
    model = build_detector(load_config(PROJECT / f"configs/compat/torchvision_{name}.yaml", overrides))
    model.load_state_dict(from_torchvision(filled(record, record["seed_text"]), model.state_dict()))
    return model.eval()


@dataclass
class Outputs:
    """What the reference recorded of one case, as our model computes it."""

    batch: Batch
    maps: list[Tensor]
    objectness: list[Tensor]  # per level (N, A, H, W)
    deltas: list[Tensor]  # per level (N, 4A, H, W)
    proposals: list[Proposals]
    first4: tuple[Tensor, Tensor]  # class logits (4, K+1), deltas (4, K, 4)
    detections: list[Detections]


@functools.cache
@torch.no_grad()
def outputs(name: str, case: str) -> Outputs:
    """The images of a case share one padded batch here, as they do in the reference."""
    model = build(name)
    images = [formula_image(*i) for i in golden(f"tv_{name}")["cases"][case]["images"]]
    batch = model.pixels.batch(images, torch.device("cpu"), torch.float32)
    p = model.pyramid(batch.images)
    objectness, deltas = model.rpn.head(p)
    proposals = model.rpn.propose(p, batch)
    return Outputs(
        batch=batch,
        maps=p,
        objectness=[as_map(x[..., None], level) for x, level in zip(objectness, p)],
        deltas=[as_map(x, level) for x, level in zip(deltas, p)],
        proposals=proposals,
        first4=model.roi_head.head(p, to_rois([proposals[0].boxes[:4]])),
        detections=model.roi_head.detect(p, proposals, batch),
    )


def as_map(rows: Tensor, level: Tensor) -> Tensor:
    """(N, H*W*A, K) -> (N, A*K, H, W): undo `flatten_level`."""
    n, _, h, w = level.shape
    return rows.reshape(n, h, w, -1).permute(0, 3, 1, 2)


def recorded(name: str, case: str) -> dict:
    return golden(f"tv_{name}")["cases"][case]


@each_case
def test_maps(name, case):
    record, found = recorded(name, case), outputs(name, case)
    assert list(found.batch.images.shape) == record["input_shape"]
    for level, expected in zip(found.maps, record["maps"].values(), strict=True):
        values, moments = record_errors(level, expected)
        assert values < 1e-4 and moments < 1e-5


@each_case
@pytest.mark.parametrize("output", ["objectness", "deltas"])
def test_rpn_outputs(name, case, output):
    found = getattr(outputs(name, case), output)
    for level, expected in zip(found, recorded(name, case)[f"rpn_{output}"], strict=True):
        values, moments = record_errors(level, expected)
        assert values < 1e-4 and moments < 1e-5


@each_case
def test_proposals(name, case):
    for found, expected in zip(outputs(name, case).proposals, recorded(name, case)["proposals"], strict=True):
        assert len(found.boxes) == expected["count"]
        best = torch.tensor(expected["boxes"]), torch.tensor(expected["scores"]), torch.zeros(len(expected["boxes"]))
        every = found.boxes, found.scores.sigmoid(), torch.zeros(len(found.boxes))
        assert match_sets(every, best, px=0.03, score=2e-5).unmatched == 0


@each_case
def test_logits_and_deltas_of_the_first_regions(name, case):
    expected = recorded(name, case)["roi_first4"][0]
    logits, deltas = outputs(name, case).first4
    background_last = torch.tensor(expected["cls"]).roll(-1, dims=1)
    assert torch.allclose(logits, background_last, rtol=0, atol=7e-3)
    assert torch.allclose(deltas.flatten(1), torch.tensor(expected["deltas"])[:, 4:], rtol=0, atol=3e-3)


@each_case
def test_detections(name, case):
    for found, expected in zip(outputs(name, case).detections, recorded(name, case)["detections"], strict=True):
        assert len(found) == expected["count"]
        boxes, scores, labels = (torch.tensor(expected[key]) for key in ("boxes", "scores", "labels"))
        ours = found.boxes, found.scores, found.labels + 1  # torchvision counts the background as 0
        assert match_sets(ours, (boxes, scores, labels), px=0.1, score=3e-3).unmatched == 0


LOSSES = {"roi_class": "loss_classifier", "roi_box": "loss_box_reg",
          "rpn_objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "case"), [(V1, "batch"), (V1, "empty"), (V2, "batch"), (V2, "empty"), (V2, "batch_bn_eval")]
)
def test_losses_and_gradients(name, case):
    """Sampling is exhaustive. The reference's batch norms use batch statistics even in frozen stages; ours do not."""
    expected = golden(f"tv_{name}")["losses"][case]
    model = copy.deepcopy(build(name))
    if case != "batch_bn_eval":
        train_as_torchvision(model)
    images = [formula_image(*i) for i in recorded(name, "batch")["images"]]
    losses = model(images, ground_truth(empty_second=case == "empty"))
    for ours, theirs in LOSSES.items():
        assert_loss(float(losses[ours].detach()), expected["terms"][theirs])
    total = sum(losses.values())
    assert_loss(float(total.detach()), expected["total"])
    total.backward()
    check_gradients(model, expected)


def train_as_torchvision(model: GeneralizedRCNN) -> None:
    """Batch statistics everywhere, in the memory layout in which PyTorch's CPU kernel computes them well.

    Of channels-last maps it sums them in plain float32: after the stem the maps are off by 1e-3 of their spread, and
    so are the losses. In float64 the channels-last model gives the recorded losses.
    """
    for module in model.modules():
        module.training = True
    model.to(memory_format=torch.contiguous_format)
    for part in (model.pyramid, model.roi_head.box_head):
        part.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))


def assert_loss(found: float, expected: float) -> None:
    assert abs(found - expected) < 1e-6 if expected < 0.01 else relative_error(found, expected) < 5e-5


def check_gradients(model: GeneralizedRCNN, expected: dict) -> None:
    norms = {key: p.grad.double().norm() for key, p in model.named_parameters() if p.requires_grad}
    assert len(norms) == expected["parameters_with_grad"]
    every = float(torch.stack(list(norms.values())).norm())
    assert relative_error(every, expected["grad_norm_all"]) < 4e-3
    for theirs, norm in expected["grad_norms"].items():
        [ours] = [key for key in rename(theirs, NAMES) if key in norms]
        assert relative_error(float(norms[ours]), norm, below=0) < 4e-3
