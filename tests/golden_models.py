"""The recorded reference models: which configuration, names and tolerances each has, and ours with the same weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from golden_rules import PROJECT, filled, fixed_proposals, formula_image, golden
from torch import Tensor

from detector.build import build_detector, load_config
from detector.heads.cascade import Cascade
from detector.heads.roi_head import to_rois
from detector.interop import detectron2, mmdetection, torchvision
from detector.interop.names import Row
from detector.rcnn import GeneralizedRCNN
from detector.structures import Batch, Detections, Proposals


@dataclass(frozen=True)
class Framework:
    """How a reference names its tensors and losses."""

    name: str
    convert: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
    rows: Sequence[Row]
    losses: Mapping[str, str]  # ours: theirs
    stage_losses: Mapping[str, str]  # of a cascade's stage, whose number follows ours and stands for # in theirs


FRAMEWORKS = {
    "tv": Framework(
        "torchvision", torchvision.from_torchvision, torchvision.NAMES,
        {"rpn_objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg",
         "roi_class": "loss_classifier", "roi_box": "loss_box_reg"}, {},
    ),
    "d2": Framework(
        "detectron2", detectron2.from_detectron2, detectron2.NAMES,
        {"rpn_objectness": "loss_rpn_cls", "rpn_box": "loss_rpn_loc",
         "roi_class": "loss_cls", "roi_box": "loss_box_reg"},
        {"roi_class_": "loss_cls_stage#", "roi_box_": "loss_box_reg_stage#"},
    ),
    "mm": Framework(
        "mmdetection", mmdetection.from_mmdetection, mmdetection.NAMES,
        {"rpn_objectness": "loss_rpn_cls", "rpn_box": "loss_rpn_bbox", "roi_class": "loss_cls", "roi_box": "loss_bbox"},
        {"roi_class_": "s#.loss_cls", "roi_box_": "s#.loss_bbox"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Tolerance:
    """Section 5 of the README of the golden files; maps and RPN outputs over the std of their level."""

    maps: float = 1e-4
    moments: float = 1e-5
    proposal_px: float = 0.03
    proposal_logit: float = 3e-4
    proposal_sigmoid: float = 2e-5
    first4: tuple[float, float] = (7e-3, 3e-3)  # class logits, deltas
    later_first4: tuple[float, float] = (3e-2, 1.2e-2)  # of a cascade's second stage and on
    px: float = 0.1
    score: float = 3e-3
    loss: float = 5e-5
    gradient: float = 4e-3


PLAIN, CASCADE = Tolerance(), Tolerance(px=0.4, loss=2e-4)
LIBRA = Tolerance(maps=3e-4, moments=3e-5)
NAS_FPN = Tolerance(maps=2e-4, moments=3e-5, proposal_px=0.1, proposal_sigmoid=4e-5, first4=(1.5e-2, 6e-3), px=0.5)
MODELS = {  # file: tolerance; its configuration has the file's name in configs/compat
    "tv_fasterrcnn_resnet50_fpn": PLAIN,
    "tv_fasterrcnn_resnet50_fpn_v2": PLAIN,
    "d2_faster_rcnn_R_50_FPN": PLAIN,
    "d2_faster_rcnn_R_50_FPN_gn": PLAIN,
    "d2_faster_rcnn_R_50_C4": PLAIN,
    "d2_faster_rcnn_R_50_DC5": PLAIN,
    "d2_fast_rcnn_R_50_FPN": PLAIN,
    "d2_cascade_rcnn_R_50_FPN": CASCADE,
    "mm_faster_rcnn_r50_fpn": PLAIN,
    "mm_faster_rcnn_r50_fpn_softnms": PLAIN,
    "mm_faster_rcnn_r50_pafpn": PLAIN,
    "mm_faster_rcnn_r50_nasfpn": NAS_FPN,
    "mm_libra_faster_rcnn_r50_fpn": LIBRA,
    "mm_cascade_rcnn_r50_fpn": CASCADE,
    "mm_detectors_cascade_rcnn_r50": CASCADE,
    "mm_detectors_cascade_rcnn_r50_rfp": CASCADE,
    "mm_detectors_cascade_rcnn_r50_sac": CASCADE,
}
GIVEN_PROPOSALS = ("d2_fast_rcnn_R_50_FPN",)  # no RPN
# norms that take means and variances of the maps
LIVE_NORMS = ("tv_fasterrcnn_resnet50_fpn_v2", "d2_faster_rcnn_R_50_FPN_gn", "mm_faster_rcnn_r50_nasfpn")


def framework(name: str) -> Framework:
    return FRAMEWORKS[name.split("_")[0]]


@functools.lru_cache(maxsize=1)  # a model has 170 MB
def build(name: str) -> GeneralizedRCNN:
    """Our model with the recorded profile and the weights of the fill rule."""
    record, reference = golden(name), framework(name)
    path = PROJECT / f"configs/compat/{reference.name}_{name.partition('_')[2]}.yaml"
    model = build_detector(load_config(path, _overrides(record["profile"])))
    model.load_state_dict(reference.convert(filled(record, record["seed_text"]), model.state_dict()))
    return (as_contiguous(model) if name in LIVE_NORMS else model).eval()


def _overrides(profile: Mapping) -> list[str]:
    """What was recorded with other numbers than published: fewer proposals, samples that take everything."""
    settings = {"model.roi_head.batch_per_image": 2048}
    if "rpn_pre_nms_topk_train" in profile:
        settings["model.rpn.batch_per_image"] = 40000
        for when in ("pre", "post"):
            counts = [profile[f"rpn_{when}_nms_topk_{mode}"] for mode in ("train", "test")]
            settings[f"model.rpn.{when}_nms"] = counts
    if "nms.min_score" in profile:
        settings["model.roi_head.soft_min_score"] = profile["nms.min_score"]
    return [f"{key}={value}" for key, value in settings.items()]


@dataclass
class Outputs:
    """What the reference recorded of one case, as our model computes it."""

    batch: Batch
    maps: list[Tensor]
    objectness: list[Tensor]  # per level (N, A, H, W)
    deltas: list[Tensor]  # per level (N, 4A, H, W)
    proposals: list[Proposals]
    first4: list[tuple[Tensor, Tensor]]  # per stage class logits (4, K+1), deltas (4, K or 1, 4)
    detections: list[Detections]


def images_of(name: str, case: str) -> list[Tensor]:
    return [formula_image(*i) for i in golden(name)["cases"][case]["images"]]


def proposals_of(name: str, images: list[Tensor]) -> list[Proposals] | None:
    """What a model without an RPN is given with its images."""
    given = [Proposals(*fixed_proposals(*image.shape[-2:])) for image in images]
    return given if name in GIVEN_PROPOSALS else None


@functools.lru_cache(maxsize=1)
@torch.no_grad()
def outputs(name: str, case: str) -> Outputs:
    """The images of a case share one padded batch here, as they do in the reference."""
    model, images = build(name), images_of(name, case)
    batch = model.pixels.batch(images, torch.device("cpu"), torch.float32)
    batch.proposals = proposals_of(name, images) or ()
    p = model.pyramid(batch.images)
    objectness, deltas = ([], []) if name in GIVEN_PROPOSALS else model.rpn.head(p)
    proposals = model.rpn.propose(p, batch)
    return Outputs(
        batch=batch,
        maps=p,
        objectness=[as_map(x[..., None], level) for x, level in zip(objectness, p)],
        deltas=[as_map(x, level) for x, level in zip(deltas, p)],
        proposals=proposals,
        first4=first4(model, p, (batch.proposals or proposals)[0].boxes[:4], batch),
        detections=model.roi_head.detect(p, proposals, batch),
    )


def first4(model: GeneralizedRCNN, p: list[Tensor], boxes: Tensor, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """What the head of every stage says about the first regions of the first image."""
    if isinstance(model.roi_head, Cascade):
        return [stage[1:] for stage in model.roi_head.run(p, [boxes], batch.sizes[:1])]
    return [model.roi_head.head(p, to_rois([boxes]))]


def as_map(rows: Tensor, level: Tensor) -> Tensor:
    """(N, H*W*A, K) -> (N, A*K, H, W): undo `flatten_level`."""
    n, _, h, w = level.shape
    return rows.reshape(n, h, w, -1).permute(0, 3, 1, 2)


def train_as_torchvision(model: GeneralizedRCNN) -> None:
    """Batch statistics everywhere."""
    for module in model.modules():
        module.training = True


def as_contiguous(model: GeneralizedRCNN) -> GeneralizedRCNN:
    """The memory layout in which PyTorch's CPU kernels compute means and variances well.

    Of channels-last maps they sum them in plain float32: the maps of a group norm are then off by 1e-4 of their spread, those
    of a batch norm by 1e-3. In float64 the channels-last models give the recorded numbers.
    """
    model.to(memory_format=torch.contiguous_format)
    for part in (model.pyramid, model.roi_head.box_head):
        part.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
    return model
