"""Every system that is compared (configs/shapes) trains, with objects and without, and takes images of any size."""

import functools

import pytest
import torch
from helpers.golden_rules import PROJECT
from helpers.tiny import OBJECTS, drawn, picture, target, unmoved

from detector.config.config import build_detector, load_config
from detector.modeling.rcnn import GeneralizedRCNN

SYSTEMS = sorted(path.stem for path in (PROJECT / "configs/shapes").glob("*.yaml"))
# all tests of a system follow one another, and it is built once
each_system = pytest.mark.parametrize("name", SYSTEMS, scope="module")
# sizes, and the divisor that takes the place of the system's
SMALL = [((1, 1), None), ((1, 1), 1), ((20, 500), 1), ((500, 20), None)]
# behind a weight that begins as zero nothing learns until it has moved; the bias before a batch norm has the gradient 0, and
# first masks have no cell that counts as mask, so that their IoU teaches nothing
WAITING = (
    "neck.refine.theta",
    "neck.refine.phi",
    "neck.refine.g.",
    ".weight_diff",
    "pyramid.aspp.",
    ".conv.bias",
    "mask.iou_head.",
)


@functools.lru_cache(maxsize=1)
def system(name: str) -> GeneralizedRCNN:
    torch.manual_seed(0)
    return build_detector(load_config(PROJECT / f"configs/shapes/{name}.yaml", ["model.num_classes=3"]))


@each_system
@pytest.mark.parametrize("objects", [True, False])
@pytest.mark.parametrize("mixed", [False, pytest.param(True, marks=pytest.mark.slow)])  # a CPU without it is slow
def test_every_trainable_parameter_has_a_gradient(name, objects, mixed):
    """Also with mixed precision: None would stop distributed training. With objects every parameter learns."""
    model = system(name).train()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        images = [picture(64, 96), picture(90, 60, seed=1)]
        losses = model(images, drawn([OBJECTS if objects else target(), target()], images, points=3))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    found = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert [key for key, grad in found.items() if grad is None or not grad.isfinite().all()] == []
    if objects:
        assert [key for key in unmoved(found) if not any(part in key for part in WAITING)] == []


@each_system
@pytest.mark.parametrize(("size", "divisor"), SMALL)
@torch.no_grad()
def test_an_image_too_small_for_the_coarsest_level_is_padded(name, size, divisor, monkeypatch):
    """To the system's divisor; without padding (divisor 1), too, no level becomes empty."""
    model = system(name).eval()
    monkeypatch.setattr(model.preprocess, "divisor", divisor or model.preprocess.divisor)
    batch = model.preprocess.batch([picture(*size)], torch.device("cpu"), torch.float32)
    levels = model.pyramid(batch.images)
    assert all(min(p.shape[-2:]) >= 1 and p.isfinite().all() for p in levels)
    (found,) = model([picture(*size)])
    limit = torch.tensor([size[1], size[0]] * 2)
    assert ((found.boxes >= 0) & (found.boxes <= limit)).all()


@each_system
@torch.no_grad()
def test_an_image_of_one_pixel_trains(name):
    losses = system(name).eval()([picture(1, 1)], drawn([target()], [picture(1, 1)], points=3))
    assert all(loss.isfinite() for loss in losses.values())
