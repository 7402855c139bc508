"""The recorded reference models: which configuration, names and tolerances each has, and ours with the same weights."""

from __future__ import annotations

import functools
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask
from torch import Tensor

from detector.checkpoint import read_checkpoint
from detector.interop.names import Row
from detector.interop.recognise import FRAMEWORKS
from detector.modeling.rcnn import GeneralizedRCNN
from detector.modeling.roi_heads.cascade import Cascade
from detector.modeling.roi_heads.htc import HTC
from detector.modeling.roi_heads.mask_branch import MaskBranch
from detector.modeling.roi_heads.stage import to_rois
from detector.records.outlines import Outlines
from detector.structures import Batch, Detections, Proposals, Target
from helpers.golden_rules import (
    PROJECT,
    Match,
    bitmaps_of,
    filled,
    fixed_proposals,
    formula_image,
    golden,
    ground_truth,
    keypoints_of,
    match_sets,
    outlines_of,
    semantic_map,
)
from helpers.tiny import built
from helpers.training import script


@dataclass(frozen=True)
class Reference:
    """How a framework names its losses, and the form of its files."""

    name: str
    losses: Mapping[str, str]  # ours: theirs
    stage_losses: Mapping[str, str]  # of a cascade's stage, whose number follows ours and stands for # in theirs
    save: Callable[[Path, dict[str, Tensor]], None]
    suffix: str = ".pth"

    @property
    def rows(self) -> list[Row]:
        """The names of its tensors and ours."""
        return FRAMEWORKS[self.name].all_rows


def save_pkl(path: Path, state: dict[str, Tensor]) -> None:
    """As Detectron2's model zoo."""
    content = {"model": {key: tensor.numpy() for key, tensor in state.items()}, "__author__": "the golden files"}
    path.write_bytes(pickle.dumps(content, protocol=2))


REFERENCES = {
    "tv": Reference(
        "torchvision",
        {"rpn_objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg",
         "roi_class": "loss_classifier", "roi_box": "loss_box_reg", "roi_mask": "loss_mask",
         "roi_keypoint": "loss_keypoint"}, {},
        lambda path, state: torch.save(state, path),
    ),
    "d2": Reference(
        "detectron2",
        {"rpn_objectness": "loss_rpn_cls", "rpn_box": "loss_rpn_loc",
         "roi_class": "loss_cls", "roi_box": "loss_box_reg", "roi_mask": "loss_mask", "roi_keypoint": "loss_keypoint"},
        {"roi_class_": "loss_cls_stage#", "roi_box_": "loss_box_reg_stage#"},
        save_pkl, ".pkl",
    ),
    "mm": Reference(
        "mmdetection",
        {"rpn_objectness": "loss_rpn_cls", "rpn_box": "loss_rpn_bbox",
         "roi_class": "loss_cls", "roi_box": "loss_bbox", "roi_mask": "loss_mask", "roi_mask_iou": "loss_mask_iou",
         "roi_semantic": "loss_semantic_seg"},
        {"roi_class_": "s#.loss_cls", "roi_box_": "s#.loss_bbox", "roi_mask_": "s#.loss_mask"},
        lambda path, state: torch.save({"state_dict": state, "meta": {"epoch": 12}}, path),
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
    mask: float = 4e-2  # logits or probabilities at the recorded cells
    mask_moments: float = 1e-2
    pixels: tuple[float, float] = (0.01, 0.0015)  # pasted ones that differ: of a mask, of all masks


MASK_CASCADE = Tolerance(px=0.4, loss=4e-4, pixels=(0.026, 0.004))
NOISY_MASKS = Tolerance(pixels=(0.022, 0.0015))
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
MASK_MODELS = {  # in the folder masks
    "tv_maskrcnn_resnet50_fpn": PLAIN,
    "tv_maskrcnn_resnet50_fpn_v2": PLAIN,
    "d2_mask_rcnn_R_50_FPN": PLAIN,
    "d2_mask_rcnn_R_50_C4": NOISY_MASKS,
    "d2_cascade_mask_rcnn_R_50_FPN": MASK_CASCADE,
    "mm_mask_rcnn_r50_fpn": PLAIN,
    "mm_cascade_mask_rcnn_r50_fpn": MASK_CASCADE,
    "mm_ms_rcnn_r50_fpn": PLAIN,
    "mm_htc_without_semantic_r50_fpn": MASK_CASCADE,
    "mm_htc_r50_fpn": MASK_CASCADE,
}
KEYPOINT_MODELS = {  # there, too: relative error of keypoint scores
    "tv_keypointrcnn_resnet50_fpn": 5e-3,
    "d2_keypoint_rcnn_R_50_FPN": 0.15,
}
MODELS |= MASK_MODELS | dict.fromkeys(KEYPOINT_MODELS, PLAIN)
NOISE_ALONE = ("kps_score_lowres.bias", "score_lowres.bias")  # a softmax over the map does not see a constant
# losses that were also recorded with masks in another form: the source that they are read from
OTHER_MASKS = {
    ("d2_mask_rcnn_R_50_FPN", "batch_bitmap"): "masks",
    ("d2_mask_rcnn_R_50_C4", "batch_bitmap"): "masks",
    ("d2_cascade_mask_rcnn_R_50_FPN", "batch_bitmap"): "masks",
    ("mm_mask_rcnn_r50_fpn", "batch_polygon"): "outlines",
}
GIVEN_PROPOSALS = ("d2_fast_rcnn_R_50_FPN",)  # no RPN
# norms that take means and variances of the maps
LIVE_NORMS = (
    "tv_fasterrcnn_resnet50_fpn_v2",
    "tv_maskrcnn_resnet50_fpn_v2",
    "d2_faster_rcnn_R_50_FPN_gn",
    "mm_faster_rcnn_r50_nasfpn",
)


def reference(name: str) -> Reference:
    return REFERENCES[name.split("_")[0]]


def config_of(name: str) -> Path:
    return PROJECT / f"configs/compat/{reference(name).name}_{name.partition('_')[2]}.yaml"


@functools.lru_cache(maxsize=1)  # a file has 170 MB and more
def folder_of(name: str) -> tempfile.TemporaryDirectory:
    """A folder with a checkpoint, ours.pth, which the command made of a file of the reference's form."""
    folder, record = tempfile.TemporaryDirectory(), golden(name)
    convert(name, filled(record, record["seed_text"]), Path(folder.name, "ours.pth"), overrides_of(record["profile"]))
    return folder


def convert(name: str, state: dict[str, Tensor], output: Path, overrides: Sequence[str]) -> None:
    """Their tensors into a file of their form, and that by the command into a checkpoint."""
    theirs = output.with_name(f"theirs{reference(name).suffix}")
    reference(name).save(theirs, state)
    command = [theirs, "--from", "auto", "--config", config_of(name), "--output", output, *overrides]
    assert script("convert_weights").main([str(part) for part in command]) == 0
    theirs.unlink()


def checkpoint_of(name: str) -> Path:
    return Path(folder_of(name).name, "ours.pth")


@functools.lru_cache(maxsize=1)
def build(name: str) -> GeneralizedRCNN:
    """Our model with the recorded profile and the weights of the fill rule, from a file."""
    checkpoint = read_checkpoint(checkpoint_of(name))
    model = built(checkpoint["config"], pretrained=False)
    model.load_state_dict(checkpoint["model"])
    return (as_contiguous(model) if name in LIVE_NORMS else model).eval()


def overrides_of(profile: Mapping) -> list[str]:
    """What was recorded with other numbers than published: fewer proposals, samples that take everything."""
    settings = {"model.roi_head.sampling.batch_per_image": _samples(profile, "roi")}
    if "rpn_pre_nms_topk_train" in profile:
        settings["model.rpn.sampling.batch_per_image"] = _samples(profile, "rpn")
        for when in ("pre", "post"):
            counts = [profile[f"rpn_{when}_nms_topk_{mode}"] for mode in ("train", "test")]
            settings[f"model.rpn.selection.{when}_nms"] = counts
    for key in {"max_detections", "score_threshold"} & profile.keys():
        settings[f"model.roi_head.selection.{key}"] = profile[key]
    if "nms.min_score" in profile:
        settings["model.roi_head.selection.soft_min_score"] = profile["nms.min_score"]
    return [f"{key}={value}" for key, value in settings.items()]


def _samples(profile: Mapping, stage: str) -> int:
    """Sampled per image; all stages of a cascade have one number. MMDetection's key is the sampler's."""
    keys = re.compile(rf"{stage}(_batch_size_per_image|.*sampler\.num)")
    [count] = {number for key, number in profile.items() if keys.fullmatch(key)}
    return count


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


def recorded(name: str, case: str) -> dict[str, Any]:
    return golden(name)["cases"][case]


def images_of(name: str, case: str) -> list[Tensor]:
    return [formula_image(*i) for i in recorded(name, case)["images"]]


def proposals_of(name: str, images: list[Tensor]) -> list[Proposals] | None:
    """What a model without an RPN is given with its images."""
    given = [Proposals(*fixed_proposals(*image.shape[-2:])) for image in images]
    return given if name in GIVEN_PROPOSALS else None


@functools.lru_cache(maxsize=1)
@torch.no_grad()
def outputs(name: str, case: str) -> Outputs:
    """The images of a case share one padded batch here, as they do in the reference."""
    model, images = build(name), images_of(name, case)
    batch = model.preprocess.batch(images, torch.device("cpu"), torch.float32)
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
        p = model.roi_head.fused(p) if isinstance(model.roi_head, HTC) else p
        return [stage[1:] for stage in model.roi_head.run(p, [boxes], batch.sizes[:1])]
    return [model.roi_head.stage(model.roi_head.pool(p, to_rois([boxes])))]


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
    mask = getattr(model.roi_head, "mask", None)
    for part in (model.pyramid, model.roi_head.stage.box_head, *([mask.head] if mask else [])):
        part.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
    return model


def match_detections(name: str, found: Detections, expected: Mapping[str, list]) -> Match:
    """Ours beside the recorded ones. mmdetection reports boxes without an area, which ours does not."""
    keys = "boxes", "class_scores" if "class_scores" in expected else "scores", "labels"
    boxes, scores, labels = (torch.tensor(expected[key]) for key in keys)
    real = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    ours = found.boxes, found.scores, found.labels + int(name.startswith("tv_"))  # which counts the background as 0
    limit = MODELS[name]
    return match_sets(ours, (boxes[real], scores[real], labels[real]), px=limit.px, score=limit.score)


def targets_of(name: str, *, empty_second: bool = False) -> list[Target]:
    """The objects of the case "batch", with what the model learns: bitmaps and outlines, keypoints, semantic maps."""
    plain = [Target.of(target) for target in ground_truth(empty_second=empty_second)]
    if name in KEYPOINT_MODELS:
        return [replace(t, labels=0 * t.labels, keypoints=keypoints_of(t.boxes)) for t in plain]
    if name not in MASK_MODELS:
        return plain
    drawn = []
    for target, image in zip(plain, images_of(name, "batch")):
        size = (image.shape[1], image.shape[2])
        polygons = outlines_of(target.boxes)
        outlines = Outlines.of(polygons, size)
        semantic = semantic_map(len(drawn), size)
        drawn.append(replace(target, masks=bitmaps_of(polygons, size), outlines=outlines, semantic=semantic))
    return drawn


def masks_of(model: GeneralizedRCNN) -> list[MaskBranch]:
    """The mask branches, one or several."""
    return [module for module in model.modules() if isinstance(module, MaskBranch)]


def partners(name: str, found: Detections, expected: Mapping[str, list]) -> list[int]:
    """For each recorded detection ours: the nearest of its label."""
    labels = torch.tensor(expected["labels"]) - int(name.startswith("tv_"))
    apart = (torch.tensor(expected["boxes"])[:, None] - found.boxes).abs().amax(dim=-1)
    apart[labels[:, None] != found.labels] = torch.inf
    return apart.argmin(dim=1).tolist()


def mask_errors(name: str, found: Detections, expected: Mapping[str, Any]) -> tuple[float, float]:
    """Largest difference at the recorded cells, and of mean and std."""
    ours = found.masks.probabilities[partners(name, found, expected)].double()
    if expected["mask_kind"] == "logits":
        ours = ours.clamp(max=1 - 2**-25).logit()  # a probability that float32 rounds to 1 is of a logit from 17.3
    cells = ours.flatten(1)
    values = cells[:, torch.tensor(expected["mask_idx"])] - torch.tensor(expected["mask_values"], dtype=torch.float64)
    mean = cells.mean(dim=1) - torch.tensor(expected["mask_mean"])
    std = cells.std(dim=1, correction=0) - torch.tensor(expected["mask_std"])
    return float(values.abs().max()), float(torch.maximum(mean.abs(), std.abs()).max())


def pixel_errors(name: str, found: Detections, expected: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Of each recorded mask, the pixels that differ from ours and those of the union of both."""
    pasted = found.masks[partners(name, found, expected)].paste("torchvision" if name.startswith("tv_") else "sampled")
    recorded_masks = [mask.decode({"size": found.masks.size, "counts": counts}) for counts in expected["mask_rle"]]
    theirs = torch.from_numpy(np.stack(recorded_masks)).bool()
    assert theirs.sum(dim=(1, 2)).tolist() == expected["mask_area"]
    counts = ((x.flatten(1).sum(dim=1)).tolist() for x in (pasted ^ theirs, pasted | theirs))
    return list(zip(*counts))


def loss_pairs(name: str, losses: Mapping[str, Tensor], expected: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Every term and the total, ours and recorded."""
    found = {_their_loss(name, ours): float(loss.detach()) for ours, loss in losses.items()}
    assert found.keys() == expected["terms"].keys()
    pairs = [(found[key], want) for key, want in expected["terms"].items()]
    return [*pairs, (float(sum(losses.values()).detach()), expected["total"])]


def _their_loss(name: str, ours: str) -> str:
    names = reference(name)
    if ours in names.losses:
        return names.losses[ours]
    return names.stage_losses[ours.rstrip("0123456789")].replace("#", str(int(ours.rpartition("_")[2]) - 1))


def keypoint_errors(name: str, found: Detections, expected: Mapping[str, Any]) -> tuple[int, float]:
    """How many keypoints lie elsewhere, near-ties left out; and the largest relative error of the scores of the others.

    Left out, too, is a box whose side has another number of whole pixels than ours: its maps are enlarged to another size.
    """
    ours, boxes = found[partners(name, found, expected)], torch.tensor(expected["boxes"])
    scores, gaps = torch.tensor(expected["keypoint_scores"]), torch.tensor(expected["keypoint_gap"])
    points = torch.tensor(expected["keypoints"]).view(*scores.shape, 2)
    pixels = [(b[:, 2:] - b[:, :2]).ceil() for b in (ours.boxes, boxes)]
    same = (pixels[0] == pixels[1]).all(dim=1)
    assert (~same).sum() <= 1
    moved = (ours.keypoints.points - points).abs().amax(dim=-1) > MODELS[name].px + 0.1
    error = (ours.keypoints.scores - scores).abs() / scores.abs()
    kept = same & (gaps >= 1e-3)
    return int(moved[kept].sum()), float(error[same][~moved[same]].max())
