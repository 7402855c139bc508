"""What a detector is made of: the names of its parts, and a configuration's `model` section as calls of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from detector.config import Call, as_section, check_keys, parameters_of, resolve
from detector.errors import ConfigError, check_attributes
from detector.modeling.anchors import AnchorGenerator
from detector.modeling.backbones.resnet import ResNet
from detector.modeling.necks.ablations import BottomUp, Finest, Hierarchy, TopDown
from detector.modeling.necks.augfpn import AugFPN
from detector.modeling.necks.bfp import BFP
from detector.modeling.necks.bifpn import BiFPN
from detector.modeling.necks.fpn import FPN
from detector.modeling.necks.nas_fpn import NASFPN
from detector.modeling.necks.panet import PANet
from detector.modeling.necks.single import Single
from detector.modeling.precomputed import Precomputed
from detector.modeling.preprocess import Pixels
from detector.modeling.pyramid import Pyramid
from detector.modeling.recursive_pyramid import RecursivePyramid
from detector.modeling.roi_heads.adaptive_head import AdaptiveConvFC, AdaptiveTwoFC
from detector.modeling.roi_heads.auxiliary import AuxiliaryRoIHead
from detector.modeling.roi_heads.box_head import ConvFC, TwoFC
from detector.modeling.roi_heads.cascade import Cascade
from detector.modeling.roi_heads.pool import AllLevelPool, RoIPool
from detector.modeling.roi_heads.proposals_only import ProposalsOnly
from detector.modeling.roi_heads.res5 import Res5
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.modeling.roi_heads.soft_pool import SoftRoIPool
from detector.modeling.rpn import RPN

BACKBONES = {"resnet": ResNet}
NECKS = {
    "fpn": FPN,
    "panet": PANet,
    "bifpn": BiFPN,
    "nas_fpn": NASFPN,
    "augfpn": AugFPN,
    "bfp": BFP,
    "single": Single,
    "bottom_up": BottomUp,
    "top_down": TopDown,
    "finest": Finest,
    "hierarchy": Hierarchy,
}
PYRAMIDS = {"plain": Pyramid, "recursive": RecursivePyramid}
RPNS = {"rpn": RPN, "precomputed": Precomputed}
POOLS = {"by_level": RoIPool, "all_levels": AllLevelPool, "soft": SoftRoIPool}
ROI_HEADS = {"standard": RoIHead, "cascade": Cascade, "auxiliary": AuxiliaryRoIHead, "none": ProposalsOnly}
BOX_HEADS = {
    "two_fc": TwoFC,
    "conv_fc": ConvFC,
    "adaptive_two_fc": AdaptiveTwoFC,
    "adaptive_conv_fc": AdaptiveConvFC,
    "res5": Res5,
}
# key within `model` -> the types of that part, the default first, and the arguments that the program supplies; a part
# comes before those whose sections lie within its own
PARTS: dict[str, tuple[Mapping[str, type], tuple[str, ...]]] = {
    "pixels": ({"pixels": Pixels}, ()),
    "backbone": (BACKBONES, ()),
    "neck": (NECKS, ("channels", "strides")),
    "pyramid": (PYRAMIDS, ("backbone", "neck", "new_backbone")),
    "rpn": (RPNS, ("channels", "anchors")),
    "rpn.anchors": ({"anchors": AnchorGenerator}, ("strides",)),
    "roi_head": (ROI_HEADS, ("pool", "box_head", "new_box_head", "num_classes", "raw_strides")),
    "roi_head.pool": (POOLS, ("channels", "strides")),
    "roi_head.box_head": (BOX_HEADS, ("channels", "size", "branches", "backbone")),
}
DEFAULT_TYPES = {f"model.{key}": next(iter(table)) for key, (table, _) in PARTS.items()}

MAPS = {
    "channels": "a list, how many channels each of its maps has",
    "strides": "a list, how many pixels of the image lie between two cells of each of its maps",
}
# what the rest of a detector reads of a part, for whom writes one of her own
ATTRIBUTES: dict[str, dict[str, str]] = {
    "pixels": {
        "check": "check(images) raises ValueError for what is no image",
        "padded_size": "padded_size(image) is the (h, w) of an image in a batch",
        "batch": "batch(images, device, dtype) is the Batch of these images",
        "order": "the colour order of the batch, rgb or bgr",
        "mean": "a tensor of three, what is subtracted from the colours",
        "std": "a tensor of three, by which they are divided",
    },
    "backbone": MAPS,
    "neck": MAPS,
    "pyramid": MAPS,
    "rpn": {
        "losses": "losses(p, batch, targets) gives the proposals of every image and the losses by name",
        "propose": "propose(p, batch) gives the proposals of every image",
    },
    "rpn.anchors": {"per_cell": "how many anchors it makes for a cell"},
    "roi_head": {
        "num_classes": "how many classes there are, the background left out",
        "losses": "losses(p, proposals, batch, targets) gives the losses by name",
        "detect": "detect(p, proposals, batch) gives the Detections of every image",
    },
    "roi_head.pool": {
        "channels": "how many channels a pooled region has",
        "size": "how many cells a pooled region is wide and high",
        "branches": "how many maps it gives of a region, ordinarily 1",
    },
    "roi_head.box_head": {"width": "how long the vector is that it makes of a region"},
}
NO_MODULES = ("pixels", "rpn.anchors")  # the only parts that hold no weights


def model_calls(model: Any, *, trust: bool) -> dict[str, Call]:
    """Every part of a model, by its key in PARTS, with its checked arguments; nothing is built yet."""
    check_keys(model, [*(key for key in PARTS if "." not in key), "num_classes"], "model")
    classes = model.get("num_classes")
    if classes is not None and (not isinstance(classes, int) or isinstance(classes, bool) or classes < 1):
        raise ConfigError(f"model.num_classes: expected a whole number above 0, got {classes!r}")
    sections = _sections(model)
    calls = {
        key: resolve(sections[key], table, f"model.{key}", supplied=supplied, trust=trust)
        for key, (table, supplied) in PARTS.items()
    }
    _check_read(calls, sections)
    return calls


def _sections(model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The section of every part without those of others that lie in it; {} where left out."""
    sections: dict[str, dict[str, Any]] = {"": dict(model)}
    for key in PARTS:
        owner, _, name = key.rpartition(".")
        sections[key] = as_section(sections[owner].pop(name, {}), f"model.{key}")
    return sections


def _check_read(calls: Mapping[str, Call], sections: Mapping[str, Any]) -> None:
    """A section that nothing would read, and a detector that would learn nothing, are errors."""
    for key in PARTS:
        owner, _, name = key.rpartition(".")
        if owner and sections[key] and not {name, f"new_{name}"} & parameters_of(calls[owner][0])[0].keys():
            raise ConfigError(f"model.{key}: this type of {owner} has none; remove the section")
    if calls["rpn"][0] is Precomputed and calls["roi_head"][0] is ProposalsOnly:
        raise ConfigError(
            "model: given proposals (rpn precomputed) and no second stage (roi_head none) leave nothing to learn"
        )


def check_part(part: Any, key: str) -> None:
    """Raise ConfigError unless a built part has what the others read of it; those of one's own may lack something."""
    if key not in NO_MODULES and not isinstance(part, nn.Module):
        name = type(part).__name__
        raise ConfigError(f"model.{key}: {name} must be a torch.nn.Module, so that its weights are found")
    check_attributes(f"model.{key}", part, ATTRIBUTES[key])
