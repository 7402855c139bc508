"""The names of a detector's parts, and a configuration's `model` section as calls of their constructors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from detector import protocols
from detector.errors import ConfigError
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
from detector.modeling.preprocess import ImagePreprocessor
from detector.modeling.pyramid import PlainPyramid
from detector.modeling.recursive_pyramid import RecursivePyramid
from detector.modeling.roi_heads.adaptive_head import AdaptiveConvFC, AdaptiveTwoFC
from detector.modeling.roi_heads.adaptive_mask_head import AdaptiveFusedMaskHead
from detector.modeling.roi_heads.auxiliary import AuxiliaryRoIHead
from detector.modeling.roi_heads.box_head import ConvFC, TwoFC
from detector.modeling.roi_heads.cascade import Cascade
from detector.modeling.roi_heads.coarse_mask_head import CoarseMaskHead
from detector.modeling.roi_heads.htc import HTC
from detector.modeling.roi_heads.keypoint_head import KeypointConvUpsample
from detector.modeling.roi_heads.mask_head import ConvUpsample
from detector.modeling.roi_heads.mask_iou_head import MaskIoUConvFC
from detector.modeling.roi_heads.point_rend import PointMLP
from detector.modeling.roi_heads.pool import AllLevelPool, PointPool, RoIPool
from detector.modeling.roi_heads.proposals_only import ProposalsOnly
from detector.modeling.roi_heads.res5 import Res5
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.modeling.roi_heads.semantic_head import SemanticConvs
from detector.modeling.roi_heads.soft_pool import SoftRoIPool
from detector.modeling.rpn import RPN
from detector.schema.resolve import as_section, resolve
from detector.schema.signatures import Call, check_keys, parameters_of

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
PYRAMIDS = {"plain": PlainPyramid, "recursive": RecursivePyramid}
RPNS = {"rpn": RPN, "precomputed": Precomputed}
POOLS = {"by_level": RoIPool, "all_levels": AllLevelPool, "soft": SoftRoIPool}
MASK_POOLS = {"by_level": RoIPool, "all_levels": AllLevelPool, "points": PointPool}
KEYPOINT_POOLS = {"by_level": RoIPool}
ROI_HEADS = {"standard": RoIHead, "cascade": Cascade, "htc": HTC, "auxiliary": AuxiliaryRoIHead, "none": ProposalsOnly}
BOX_HEADS = {
    "two_fc": TwoFC,
    "conv_fc": ConvFC,
    "adaptive_two_fc": AdaptiveTwoFC,
    "adaptive_conv_fc": AdaptiveConvFC,
    "res5": Res5,
}
MASK_HEADS = {"conv_upsample": ConvUpsample, "adaptive_fused": AdaptiveFusedMaskHead, "coarse": CoarseMaskHead}


class Slot(NamedTuple):
    """A place for a part: the types that fit, the default first; what the program supplies; what the others read of it."""

    types: Mapping[str, type]
    supplied: tuple[str, ...]
    protocol: type
    is_module: bool = True  # holds weights
    argument: str | None = (
        None  # of its owner, by which it is given; None: its own name. A part that has one is optional
    )


# key within `model` -> slot; a slot comes before those whose sections lie within its own
PARTS = {
    "preprocess": Slot({"preprocess": ImagePreprocessor}, (), protocols.Preprocessor, is_module=False),
    "backbone": Slot(BACKBONES, (), protocols.Backbone),
    "neck": Slot(NECKS, ("channels", "strides"), protocols.Neck),
    "pyramid": Slot(PYRAMIDS, ("backbone", "neck", "new_backbone"), protocols.Pyramid),
    "rpn": Slot(RPNS, ("channels", "anchors"), protocols.ProposalGenerator),
    "rpn.anchors": Slot({"anchors": AnchorGenerator}, ("strides",), protocols.Anchors, is_module=False),
    "roi_head": Slot(
        ROI_HEADS,
        (
            "pool",
            "box_head",
            "new_box_head",
            "num_classes",
            "lateral_strides",
            "mask",
            "new_mask",
            "keypoint",
            "semantic_head",
        ),
        protocols.SecondStage,
    ),
    "roi_head.pool": Slot(POOLS, ("channels", "strides"), protocols.Pool),
    "roi_head.box_head": Slot(BOX_HEADS, ("channels", "size", "branches", "backbone"), protocols.BoxHead),
    "roi_head.mask_head": Slot(
        MASK_HEADS, ("channels", "size", "branches", "num_classes"), protocols.MaskHead, argument="mask"
    ),
    "roi_head.mask_pool": Slot(MASK_POOLS, ("channels", "strides"), protocols.Pool, argument="mask"),
    "roi_head.mask_iou_head": Slot(
        {"mask_iou": MaskIoUConvFC}, ("channels", "size", "num_classes"), protocols.MaskIoUHead, argument="mask"
    ),
    "roi_head.point_head": Slot(
        {"points": PointMLP}, ("channels", "num_classes"), protocols.PointHead, argument="mask"
    ),
    "roi_head.semantic_head": Slot(
        {"semantic": SemanticConvs}, ("channels", "strides"), protocols.SemanticHead, argument="semantic_head"
    ),
    "roi_head.keypoint_head": Slot(
        {"keypoints": KeypointConvUpsample}, ("channels",), protocols.KeypointHead, argument="keypoint"
    ),
    "roi_head.keypoint_pool": Slot(KEYPOINT_POOLS, ("channels", "strides"), protocols.Pool, argument="keypoint"),
}
MASK_POOL = {"size": 14}  # what a pool of masks or keypoints has in place of the box pool's option
DEFAULT_TYPES = {f"model.{key}": next(iter(slot.types)) for key, slot in PARTS.items()}


def options_of(path: str, name: str) -> Mapping[str, Any] | None:
    """The keys of a section of the model if it has this type, with their annotations; None for a custom type.

    Sections of other parts within it count as keys.
    """
    slot = PARTS.get(path.removeprefix("model."))
    if slot is None or name not in slot.types:
        return None
    parameters = parameters_of(slot.types[name])
    within = [key for key in PARTS if f"model.{key}".startswith(f"{path}.")]
    sections = {key.rpartition(".")[2]: Slot for key in within if _is_read(key, parameters)}
    return {key: p.annotation for key, p in parameters.items() if key not in slot.supplied} | sections


def _is_read(key: str, parameters: Mapping[str, Any]) -> bool:
    """Whether a constructor with these parameters takes the part."""
    name = PARTS[key].argument or key.rpartition(".")[2]
    return name in parameters or f"new_{name}" in parameters


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section: for every key of PARTS, a constructor with its checked arguments; without optional parts."""

    calls: Mapping[str, Call]
    num_classes: int | None
    """None: counted in the training annotations."""

    @property
    def needs_proposals(self) -> bool:
        """Whether proposals must come with the images."""
        return getattr(self.calls["rpn"].constructor, "needs_proposals", False)

    @property
    def target_fields(self) -> frozenset[str]:
        """The fields of Target beyond boxes and labels that training reads.

        Constructors and groups of options name them in `target_fields`.
        """
        named = [call.constructor for call in self.calls.values()]
        for call in self.calls.values():
            defaults = {name: p.default for name, p in parameters_of(call.constructor).items()}
            named += (defaults | call.arguments).values()
        return frozenset().union(*(getattr(part, "target_fields", ()) for part in named))

    @property
    def keypoint_offset(self) -> float:
        """What training adds to the coordinates of annotated keypoints."""
        head = self.calls.get("roi_head.keypoint_head")
        return 0.0 if head is None else head.arguments.get("offset", 0.0)

    def without_pretrained(self) -> ModelConfig:
        """The same without the backbone's ImageNet weights, for a model that other weights will fill."""
        constructor, arguments = self.calls["backbone"]
        kept = {name: value for name, value in arguments.items() if name != "weights"}
        return replace(self, calls={**self.calls, "backbone": Call(constructor, kept)})


def parse_model(section: Any, *, trust: bool) -> ModelConfig:
    """The checked `model` section; nothing is constructed yet but groups of options. `trust` follows dotted paths.

    Raises ConfigError with the dotted path for whatever does not fit the constructors' signatures.
    """
    check_keys(section, [*(key for key in PARTS if "." not in key), "num_classes"], "model")
    classes = section.get("num_classes")
    if classes is not None and (not isinstance(classes, int) or isinstance(classes, bool) or not 1 <= classes <= 10**6):
        raise ConfigError(f"model.num_classes: expected a whole number in 1..1000000, got {classes!r}")
    sections = _sections(section)
    calls: dict[str, Call] = {}
    for key, slot in PARTS.items():
        if key in ("roi_head.mask_pool", "roi_head.keypoint_pool"):
            _complete_pool(key, sections, calls)
        if key in sections:
            calls[key] = resolve(sections[key], slot.types, f"model.{key}", supplied=slot.supplied, trust=trust)
    _check_read(calls, sections)
    return ModelConfig(calls, classes)


def _sections(model: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The section of every part without those of others that lie in it; {} where left out, none for an optional part."""
    sections: dict[str, dict[str, Any]] = {"": dict(model)}
    for key, slot in PARTS.items():
        owner, _, name = key.rpartition(".")
        section = sections[owner].pop(name, None if slot.argument else {})
        if section is not None or not slot.argument:
            sections[key] = as_section(section, f"model.{key}")
    return sections


def _complete_pool(key: str, sections: dict[str, dict[str, Any]], calls: Mapping[str, Call]) -> None:
    """A pool of masks or keypoints is the box head's with larger regions. Unless one is given, C4's masks take its maps."""
    own, box = sections.get(key), sections["roi_head.pool"]
    head = key.replace("_pool", "_head")
    if head not in sections:
        if own is not None:
            raise ConfigError(f"model.{key}: nothing reads it; add model.{head}")
    elif own is not None or key != "roi_head.mask_pool" or not shares_maps(calls):
        default = next(iter(POOLS))
        same = own is None or own.get("type", box.get("type", default)) == box.get("type", default)
        sections[key] = (box if same else {}) | MASK_POOL | (own or {})


def shares_maps(calls: Mapping[str, Call]) -> bool:
    """Whether a mask head can take the maps that the box head makes (C4)."""
    takes_one = "mask" in parameters_of(calls["roi_head"].constructor)
    return takes_one and getattr(calls["roi_head.box_head"].constructor, "shares_maps", False)


def _check_read(calls: Mapping[str, Call], sections: Mapping[str, Any]) -> None:
    """A section that nothing would read, and a detector with nothing to train, are errors."""
    for key in PARTS:
        owner = key.rpartition(".")[0]
        given = sections.get(key) or (PARTS[key].argument and key in sections)
        if owner and given and not _is_read(key, parameters_of(calls[owner].constructor)):
            raise ConfigError(f"model.{key}: this type of {owner} has none; remove the section")
    if "roi_head.mask_iou_head" in calls:
        _check_mask_iou(calls)
    if "roi_head.point_head" in calls:
        _check_point_head(calls)
    given = getattr(calls["rpn"].constructor, "needs_proposals", False)
    if given and getattr(calls["roi_head"].constructor, "reports_proposals", False):
        raise ConfigError(
            "model: given proposals (rpn precomputed) and no second stage (roi_head none) leave nothing to train"
        )


def _check_mask_iou(calls: Mapping[str, Call]) -> None:
    """It scores the masks of one head, by the pooled regions that this head reads."""
    if "roi_head.mask_pool" not in calls or "mask" not in parameters_of(calls["roi_head"].constructor):
        raise ConfigError(
            "model.roi_head.mask_iou_head: scores the masks of a mask_head with its own pool in roi_head {type: standard}; "
            "add them, or remove the section"
        )


def _check_point_head(calls: Mapping[str, Call]) -> None:
    """It refines the masks of a coarse head, and nothing judges them."""
    head = calls["roi_head.mask_head"].constructor if "roi_head.mask_head" in calls else None
    if head is not CoarseMaskHead or "roi_head.mask_iou_head" in calls:
        raise ConfigError(
            "model.roi_head.point_head: refines the masks of mask_head {type: coarse}, without a mask_iou_head; change them, "
            "or remove the section"
        )
