"""Beside torchvision itself, with the same random weights, on real and made images: its detections and its losses.

The limits are 0.1 px, 1e-3 of score and 1e-4 of a loss, or four times what torchvision differs from itself when it runs
channels-last, measured here. Nothing keeps random weights from near-ties: a decision of suppression that a CPU's rounding
turns costs a box or two.
"""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.golden_rules import PROJECT, Fill, Match, formula_image, match_sets, shared
from helpers.tiny import with_bitmaps
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN, MaskRCNN, fasterrcnn_resnet50_fpn_v2, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from detector.config.config import build_detector, load_config
from detector.data.image import read_image
from detector.data.transforms import Resize
from detector.interop.torchvision import TORCHVISION
from detector.modeling.layers import fold_norms
from detector.modeling.rcnn import GeneralizedRCNN

pytestmark = pytest.mark.slow

V1, V2 = "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"
MASK_V1, MASK_V2 = "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"
PHOTOS = ["000000000009.jpg", "000000000030.jpg"]
Boxes = tuple[Tensor, Tensor, Tensor]  # (D, 4), scores (D,), labels (D,)
EVERY_ANCHOR, EVERY_REGION = 10**6, 10**5  # more than there are: sampling takes all

GAINS = [
    ("mask_fcn_logits", 6.0),
    ("body.conv1.weight", 1.7), ("fpn.inner_blocks", 1.0), ("rpn.head.cls_logits", 2.0), ("rpn.head.bbox_pred", 0.4),
    ("bbox_pred", 0.5), ("fpn.layer_blocks.0.", 0.2), ("fpn.layer_blocks.1.", 0.3), ("fpn.layer_blocks.2.", 0.55),
]  # fmt: skip


@functools.lru_cache(maxsize=2)
def pair(version: str, full: bool, keep: int) -> tuple[nn.Module, GeneralizedRCNN]:
    """torchvision's model, which takes images as they are, and ours with its weights.

    For images of full size or small ones; with `keep` proposals of an image.
    """
    settings = dict(
        rpn_post_nms_top_n_train=keep, rpn_post_nms_top_n_test=keep, rpn_batch_size_per_image=EVERY_ANCHOR,
        box_batch_size_per_image=EVERY_REGION,
    )  # fmt: skip
    if version in (V1, MASK_V1):
        backbone = _resnet_fpn_extractor(resnet50(norm_layer=FrozenBatchNorm2d), trainable_layers=3)
        theirs = (FasterRCNN if version == V1 else MaskRCNN)(backbone, 91, **settings)
    else:
        make = fasterrcnn_resnet50_fpn_v2 if version == V2 else maskrcnn_resnet50_fpn_v2
        theirs = make(weights=None, weights_backbone=None, num_classes=91, **settings)
    theirs.transform.resize = lambda image, target=None: (image, target)
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(Fill("live", gains=GAINS, norm_gains=GAINS[-3:]).state(shapes), strict=False)
    spread_scores(theirs.eval(), images(full)[0])
    overrides = [
        f"model.rpn.post_nms=[{keep}, {keep}]",
        f"model.rpn.batch_per_image={EVERY_ANCHOR}",
        f"model.roi_head.batch_per_image={EVERY_REGION}",
    ]
    ours = build_detector(load_config(PROJECT / f"configs/compat/torchvision_{version}.yaml", overrides)).eval()
    ours.load_state_dict(TORCHVISION.import_state(theirs.state_dict(), ours.state_dict()))
    return theirs, ours


@torch.no_grad()
def spread_scores(theirs: nn.Module, image: Tensor) -> None:
    """Random features share a large common part, which would make one class win everywhere: take it off.

    Each class's logits get mean 0 and spread 1.5 over the proposals of the image, and the background a lead. A larger
    spread would blow up the rounding of the random features, and scores near 1 would tie.
    """
    seen = []
    scores = theirs.roi_heads.box_predictor.cls_score
    hook = scores.register_forward_hook(lambda _, __, logits: seen.append(logits))
    theirs([as_float(image)])
    hook.remove()
    gain = 1.5 / seen[0].std(dim=0)
    scores.bias.copy_((scores.bias - seen[0].mean(dim=0)) * gain)
    scores.weight.mul_(gain[:, None])
    scores.bias[0] += 6


def as_float(image: Tensor) -> Tensor:
    return image.float() / 255


def in_channels_last(theirs: nn.Module) -> nn.Module:
    """torchvision's model again, in the other memory layout."""
    other = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    other.backbone.register_forward_pre_hook(lambda _, args: (args[0].to(memory_format=torch.channels_last),))
    return other


@torch.no_grad()
def rescaled(theirs: nn.Module, factor: float) -> nn.Module:
    """torchvision's model with other last digits in the weights of its backbone."""
    other = copy.deepcopy(theirs)
    for parameter in other.backbone.parameters():
        parameter.mul_(factor)
    return other


def images(full: bool) -> list[Tensor]:
    """Real pictures and a made one; the small ones have sizes that need padding."""
    photos = [read_image(shared("data/coco128/images") / name) for name in PHOTOS]
    if full:
        return photos + [formula_image(6, 500, 660)]
    return [Resize(160, 224).resize_image(photo) for photo in photos] + [formula_image(5, 200, 150)]


@torch.no_grad()
def detect(model: nn.Module, image: Tensor) -> Boxes:
    """Boxes, scores and our labels; alone, because a neighbour in the batch would change torchvision's answer."""
    if isinstance(model, GeneralizedRCNN):
        [found] = model([image])
        return found.boxes, found.scores, found.labels
    [found] = model([as_float(image)])
    return found["boxes"], found["scores"], found["labels"] - 1


def cases(*others: Any) -> pytest.MarkDecorator:
    """Version, size, number of proposals."""
    return pytest.mark.parametrize(("version", "full", "keep"), [(V1, False, 200), *others])


@cases((V2, False, 200), pytest.param(V2, True, 1000, marks=pytest.mark.longest))  # full size: half a minute a model
def test_detections(version, full, keep):
    theirs, ours = pair(version, full, keep)
    expected = [detect(theirs, image) for image in images(full)]
    scores = torch.cat([scores for _, scores, _ in expected])
    assert len(scores) > 100 and scores.min() < 0.5  # neither empty nor saturated
    noise = differences(in_channels_last(theirs), full, expected, px=5, score=0.1)
    limits = dict(px=max(0.1, 4 * noise.px), score=max(1e-3, 4 * noise.score))
    for model in (ours, fold_norms(copy.deepcopy(ours))):
        assert differences(model, full, expected, **limits).unmatched <= 2 + 4 * noise.unmatched


@torch.no_grad()
@pytest.mark.parametrize("version", [MASK_V1, MASK_V2])
def test_masks(version):
    """Pasted in torchvision's way, of the detections that agree: in all but a thousandth of the pixels of their union."""
    theirs, ours = pair(version, False, 200)
    wrong = union = 0
    for image in images(False):
        [expected], [found] = theirs([as_float(image)]), ours([image])
        apart = (expected["boxes"][:, None] - found.boxes).abs().amax(dim=-1)
        apart[expected["labels"][:, None] - 1 != found.labels] = torch.inf
        least, nearest = apart.min(dim=1)
        near = least < 0.1
        pasted, wanted = found[nearest[near]].masks.paste("torchvision"), expected["masks"][near, 0] >= 0.5
        wrong, union = wrong + int((pasted ^ wanted).sum()), union + int((pasted | wanted).sum())
    assert union > 10**5 and wrong < 2e-3 * union


@pytest.mark.parametrize("version", [V1, V2])
def test_detections_where_objectness_saturates(version):
    """Many sigmoids are 1, and the order of these ties decides which proposals are kept. Ranks by logit lose boxes."""
    photos = sorted(shared("data/coco128/images").glob("*.jpg"))[:4]
    small = [Resize(160, 224).resize_image(read_image(photo)) for photo in photos]
    theirs, ours = (copy.deepcopy(model) for model in pair(version, False, 200))
    with torch.no_grad():
        for layer in (theirs.rpn.head.cls_logits, ours.rpn.objectness):
            layer.weight.mul_(60)
    by_logit = copy.deepcopy(ours)
    by_logit.rpn.selection = dataclasses.replace(ours.rpn.selection, rank="logit")
    expected = [detect(theirs, image) for image in small]
    models = (in_channels_last(theirs), ours, by_logit)
    of_itself, of_ours, of_logits = (missing(model, small, expected) for model in models)
    assert of_ours <= of_itself + 1 < of_logits


def missing(model: nn.Module, pictures: Sequence[Tensor], expected: Sequence[Boxes]) -> int:
    """The expected boxes without a partner."""
    sets = zip((detect(model, picture) for picture in pictures), expected, strict=True)
    return sum(match_sets(found, boxes, px=0.1, score=1e-3).unmatched for found, boxes in sets)


def differences(model: nn.Module, full: bool, expected: Sequence[Boxes], *, px: float, score: float) -> Match:
    """Over all images; unmatched are the boxes that the model has alone and those that it lacks."""
    found = [detect(model, image) for image in images(full)]
    matches = [match_sets(*sets, px=px, score=score) for sets in zip(found, expected, strict=True)]
    number, lacks = sum(m.number for m in matches), sum(m.unmatched for m in matches)
    alone = sum(len(boxes) for boxes, _, _ in found) - (number - lacks)
    return Match(number, lacks + alone, max(m.px for m in matches), max(m.score for m in matches))


LOSSES = {"roi_class": "loss_classifier", "roi_box": "loss_box_reg",
          "rpn_objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "roi_mask": "loss_mask"}  # fmt: skip


def objects(image: Tensor) -> dict[str, Tensor]:
    """Three objects, overlapping, in fractions of the image, that fill their boxes."""
    h, w = image.shape[1:]
    parts = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.95], [0.55, 0.5, 0.7, 0.62]])
    return with_bitmaps({"boxes": parts * torch.tensor([w, h, w, h]), "labels": torch.tensor([0, 89, 41])}, image)


@torch.no_grad()
def losses(model: nn.Module, batch: Sequence[Tensor]) -> dict[str, float]:
    """The losses under our names; the last image has no objects."""
    targets = [objects(image) for image in batch[:-1]]
    targets.append(with_bitmaps({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}, batch[-1]))
    if isinstance(model, GeneralizedRCNN):
        return {name: float(loss) for name, loss in model(batch, targets).items()}
    shifted = [t | {"labels": t["labels"] + 1} for t in targets]
    found = model([as_float(image) for image in batch], shifted)
    return {ours: float(found[theirs]) for ours, theirs in LOSSES.items() if theirs in found}


@cases(
    (V2, False, 200),
    (MASK_V1, False, 200),
    (MASK_V2, False, 200),
    (V1, True, 300),
    pytest.param(V2, True, 300, marks=pytest.mark.longest),
)
def test_losses(version, full, keep):
    check_losses(version, full, keep, batch_statistics=False)


def test_losses_on_batch_statistics():
    check_losses(V2, full=False, keep=200, batch_statistics=True)


def check_losses(version: str, full: bool, keep: int, *, batch_statistics: bool) -> None:
    """Norms on running statistics, or all of them on the batch's (torchvision does not spare frozen stages)."""
    theirs, ours = (copy.deepcopy(model) for model in pair(version, full, keep))
    for model in (theirs, ours):
        for module in model.modules():
            module.training = batch_statistics or not isinstance(module, nn.BatchNorm2d)
    batch = images(full)
    expected, found = losses(theirs, batch), losses(ours, batch)
    # rounding may move a proposal over a threshold, which changes a loss by far more than rounding does
    others = [in_channels_last(theirs), rescaled(theirs, 1 + 1e-6), rescaled(theirs, 1 - 1e-6)]
    noises = [losses(other, batch) for other in others]
    for name, value in expected.items():
        noise = max(abs(other[name] - value) for other in noises)
        assert abs(found[name] - value) <= max(1e-4 * value, 4 * noise)
