"""Our necks give the recorded maps and gradients of those of torchvision, Detectron2, MMDetection and effdet."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers.golden_rules import check_neck, filled, formula_image, golden, neck_inputs
from helpers.necks import CHANNELS, STRIDES
from torch import Tensor, nn

from detector.interop.mmdetection import BFP as BFP_ROWS
from detector.interop.mmdetection import FPN as FPN_ROWS
from detector.interop.mmdetection import MMDETECTION
from detector.interop.mmdetection import NAS_FPN as NAS_FPN_ROWS
from detector.interop.names import Row, rename
from detector.modeling.backbones.resnet import ResNet
from detector.modeling.necks.bfp import BFP
from detector.modeling.necks.bifpn import BiFPN
from detector.modeling.necks.fpn import FPN
from detector.modeling.necks.nas_fpn import NASFPN
from detector.modeling.necks.panet import PANet
from detector.modeling.preprocess import ImagePreprocessor
from detector.modeling.recursive_pyramid import RecursivePyramid

# framework and entry -> our options
FPNS: dict[tuple[str, str], dict[str, Any]] = {
    ("torchvision", "fpn_maxpool_even"): {},
    ("torchvision", "fpn_maxpool_odd"): {},
    ("torchvision", "fpn_p6p7_from_p5_even"): {"extra": "p5"},
    ("torchvision", "fpn_p6p7_from_p5_odd"): {"extra": "p5"},
    ("torchvision", "fpn_p6p7_from_c5_even"): {"extra": "c5"},
    ("torchvision", "fpn_p6p7_from_c5_odd"): {"extra": "c5"},
    ("detectron2", "fpn_sum"): {},
    ("detectron2", "fpn_avg"): {"fuse": "average"},
    ("detectron2", "fpn_gn"): {"norm": "group"},
    ("detectron2", "fpn_p6p7"): {"extra": "c5"},
    ("mmdet", "fpn_even"): {},
    ("mmdet", "fpn_odd"): {},
    ("mmdet", "pafpn_even"): {},
    ("mmdet", "pafpn_odd"): {},
    ("mmdet", "fpn_extra_on_input"): {"extra": "c5", "extra_relu": False},
    ("mmdet", "fpn_extra_on_lateral"): {"extra": "m5", "extra_relu": False},
    ("mmdet", "fpn_extra_on_output_relu"): {"extra": "p5"},
}
BIFPNS = {
    ("effdet", "bifpn_fa_same_p3p7"): {},
    ("effdet", "bifpn_fa_own_p3p7"): {"pool_padding": "symmetric", "bias": False},
    ("effdet", "bifpn_attn_same_p3p7"): {"fuse": "softmax"},
    ("effdet", "bifpn_sum_same_p3p7"): {"fuse": "sum"},
    ("effdet", "bifpn_fa_same_p2p6"): {"first_level": 2},
    ("effdet", "bifpn_fa_full_conv_p3p7"): {"separable": False},
}
NAS_FPNS = {
    ("mmdet", "nasfpn_7"): {},
    ("mmdet", "nasfpn_3_odd"): {"stacks": 3},
    ("mmdet", "nasfpn_1_nonorm"): {"stacks": 1, "norm": None},
}
BFPS = {("mmdet", "bfp_conv"): {"refine": "conv"}, ("mmdet", "bfp_non_local"): {"refine": "non_local"}}
RECURSIVE = {("mmdet", "rfp_2steps"): {}}


def compare(neck: nn.Module, framework: str, entry: str, ours: Callable[[str], str], first: int = 0) -> None:
    """A neck with the weights that the entry prescribes; it reads the entry's maps from the one numbered `first` on."""
    file = golden(f"necks_{framework}")
    record = file["entries"][entry]
    state = {ours(key): tensor for key, tensor in filled(record, file["seed_text"]).items()}
    missing, unexpected = neck.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    finest = "p2" if entry.startswith("bfp") else f"c{max(6 - len(record['inputs']), 2)}"
    check_neck(neck, neck_inputs(record, file["seed_text"], finest)[first:], record, ours)


def by_rows(rows: Sequence[Row], neck: nn.Module, theirs: str, ours: str = "") -> Callable[[str], str]:
    """Our name of a tensor of a neck, by rows of names that begin with these prefixes."""
    known = set(neck.state_dict())

    def name(key: str) -> str:
        [found] = {name.removeprefix(ours) for name in rename(theirs + key, rows)} & known
        return found

    return name


FPN_NAMES = [  # theirs, ours
    (r"(?:inner_blocks|lateral_convs)\.(\d)\.(?:0|conv)", r"lateral.\1.conv"),
    (r"(?:layer_blocks|fpn_convs)\.(\d)\.(?:0|conv)", r"output.\1.conv"),
    (r"(?:extra_blocks|top_block)\.", r"extra."),
    (r"downsample_convs\.", r"down."),
    (r"pafpn_convs\.", r"output."),
]


def fpn_name(theirs: str, entry: str) -> str:
    """Our name of a tensor of an FPN or a PANet."""
    detectron2 = re.fullmatch(r"fpn_(lateral|output)(\d)\.(norm\.)?(\w+)", theirs)
    if detectron2:
        part, level, norm, last = detectron2.groups()
        return f"{part}.{int(level) - 2}.{norm or 'conv.'}{last}"
    extra = re.fullmatch(r"fpn_convs\.([34])\.conv\.(\w+)", theirs)
    if extra and "extra" in entry:  # after the outputs of three levels
        return f"extra.p{int(extra[1]) + 3}.{extra[2]}"
    name = theirs
    for pattern, new in FPN_NAMES:
        name = re.sub("^" + pattern, new, name)
    return f"fpn.{name}" if entry.startswith("pafpn") and not theirs.startswith(("down", "pafpn")) else name


@pytest.mark.parametrize(
    ("framework", "entry"),
    [
        pytest.param(*key, marks=[pytest.mark.slow] * key[1].endswith("even")) for key in FPNS
    ],  # odd sizes are the harder
)
def test_fpn_and_panet(framework, entry):
    record = golden(f"necks_{framework}")["entries"][entry]
    first = 1 if "start_level" in record["note"] else 0  # MMDetection's way of leaving C2 out
    channels = [shape[1] for shape in record["inputs"][first:]]
    kind = PANet if entry.startswith("pafpn") else FPN
    neck = kind(channels, STRIDES[first:], **FPNS[framework, entry])
    compare(neck, framework, entry, lambda theirs: fpn_name(theirs, entry), first)


# effdet's nodes 0..3 go down, the coarsest first, and 4..7 up; `i` counts the levels from the finest
NODES = [(3 - i, f"down.{i}", i) for i in range(4)] + [(3 + i, f"up.{i - 1}", i) for i in range(1, 5)]
EFFDET: list[Row] = [
    row
    for node, ours, i in NODES
    for theirs in [f"cell.#.fnode.{node}.after_combine.conv"]
    for row in [
        (f"cell.#.fnode.{node}.combine.edge_weights", f"layers.#.{ours}.weight"),
        (f"cell.0.fnode.{node}.combine.resample.{i}.conv.conv.{{}}", f"lateral_{ours}.conv.{{}}"),
        (f"cell.0.fnode.{node}.combine.resample.{i}.conv.bn.{{}}", f"lateral_{ours}.norm.{{}}"),
        (f"{theirs}.conv_dw.{{}}", f"layers.#.{ours}.conv.0.{{}}"),
        (f"{theirs}.conv_pw.{{}}", f"layers.#.{ours}.conv.1.conv.{{}}"),
        (f"{theirs}.conv.{{}}", f"layers.#.{ours}.conv.conv.{{}}"),
        (f"{theirs}.bn.{{}}", f"layers.#.{ours}.conv.1.norm.{{}}"),
        (f"{theirs}.bn.{{}}", f"layers.#.{ours}.conv.norm.{{}}"),
    ]
] + [
    (f"resample.{i}.conv.{bn}.{{}}", f"top.{norm}.{{}}") for i in (3, 4) for bn, norm in (("conv",) * 2, ("bn", "norm"))
]


@pytest.mark.parametrize(("framework", "entry"), BIFPNS)
def test_bifpn(framework, entry):
    options = {"width": 64, "repeats": 3, "first_level": 3, "pool_padding": "same"} | BIFPNS[framework, entry]
    neck = BiFPN(CHANNELS, STRIDES, **options)
    compare(neck, framework, entry, by_rows(EFFDET, neck, ""))


LONG = pytest.param("mmdet", "nasfpn_7", marks=pytest.mark.slow)


@pytest.mark.parametrize(("framework", "entry"), [LONG, *list(NAS_FPNS)[1:]])
def test_nas_fpn(framework, entry):
    neck = NASFPN(CHANNELS, STRIDES, form="mmdetection", **NAS_FPNS[framework, entry])
    compare(neck, framework, entry, by_rows(NAS_FPN_ROWS + FPN_ROWS, neck, "neck.", "pyramid.neck."))


@pytest.mark.parametrize(("framework", "entry"), BFPS)
def test_bfp(framework, entry):
    """The entry has the levels of an FPN, and no FPN; in a whole detector it is the second neck."""
    neck = BFP([256], [4], **BFPS[framework, entry])
    neck.fpn = nn.Identity()
    compare(neck, framework, entry, by_rows(BFP_ROWS, neck, "neck.1.", "pyramid.neck."))


class Given(nn.Module):
    """A first backbone whose maps `c` are given."""

    channels, strides = CHANNELS, STRIDES

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.c

    def add_feedback(self, channels: int) -> None:
        raise AssertionError("the first step takes no feedback")


class SecondStep(nn.Module):
    """Maps of the first step -> levels of a recursive pyramid whose second backbone, a ResNet-50, reads an image."""

    def __init__(self):
        super().__init__()
        again = ResNet(50, conv="aws", norm="affine", frozen_stages=2)
        self.pyramid = RecursivePyramid(Given(), FPN(CHANNELS, STRIDES), lambda: again)
        image = formula_image(*golden("rules")["rfp_image"])
        self.images = ImagePreprocessor().batch([image], torch.device("cpu"), torch.float64).images

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        self.pyramid.backbone.c = c
        return self.pyramid(self.images)


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "entry"), RECURSIVE)
def test_recursive_pyramid(framework, entry):
    neck = SecondStep()
    compare(neck, framework, entry, by_rows(MMDETECTION.rows_of(neck.state_dict()), neck, "neck."))


def test_every_entry_is_compared():
    compared = {*FPNS, *BIFPNS, *NAS_FPNS, *BFPS, *RECURSIVE}
    for framework in ("torchvision", "detectron2", "mmdet", "effdet"):
        entries = set(golden(f"necks_{framework}")["entries"])
        assert entries == {entry for other, entry in compared if other == framework}
