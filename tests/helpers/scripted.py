"""A detector whose first and second stage say what a test writes down, so that what becomes of an object is known."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from detector.config.config import build_detector, parse_config
from detector.config.inherit import merge
from detector.inference.predictor import Predictor
from detector.modeling.boxes import box_iou
from helpers.tiny import CONFIG, DATA, IDS, NAMES

LOW = -10.0  # logit of what is not mentioned
SIDE = 128  # of the image as it is read

Box = Sequence[float]
Scores = Sequence[float]  # of cat, dog, eel and the background


def scripted(
    anchors: Sequence[tuple[Box, float, Box]], regions: Sequence[tuple[Box, Scores, Box]] = (), changes: Sequence[str] = (),
    **sections: Any,
) -> Predictor:  # fmt: skip
    """A predictor that reads images at 128 x 128 pixels, in which all boxes are given.

    Args:
        anchors: each is the anchor nearest to a box, its objectness logit, and where its deltas move it.
        regions: what the second stage makes of the proposal nearest to a box (IoU of at least 0.9): scores, final box.
        changes: `key.path=value` of the command line.
        sections: of the configuration.
    """
    config = merge(CONFIG, {"model": sections, "data": DATA | {"resize": {"short": SIDE, "long": SIDE}}})
    made = parse_config(config, changes, trust=True)
    model: Any = build_detector(made)
    model.rpn.head = head_of(model, anchors)
    model.roi_head.run = run_of(model, regions)
    return Predictor(model, made, NAMES, IDS, device="cpu", in_place=True)


def head_of(model: Any, written: Sequence[tuple[Box, float, Box]]) -> Callable:
    """In the place of `RPN.head`."""

    def head(p: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        size = p[0].shape[-2] * 4, p[0].shape[-1] * 4
        levels = model.rpn.anchors(p, size)
        every = torch.cat(levels)
        logits, deltas = torch.full((len(every),), LOW), torch.zeros(len(every), 4)
        for box, logit, moved in written:
            row = int(box_iou(torch.tensor([box]), every)[0].argmax())
            logits[row] = logit
            deltas[row] = model.rpn.coder.encode(every[row][None], torch.tensor([moved]))[0]
        counts = [len(level) for level in levels]
        zero = sum(x.sum() for x in p) * 0  # for gradients
        return [x[None] + zero for x in logits.split(counts)], [x[None] for x in deltas.split(counts)]

    return head


def run_of(model: Any, written: Sequence[tuple[Box, Scores, Box]]) -> Callable:
    """In the place of `RoIHead.run`."""

    def run(p: list[Tensor], boxes: list[Tensor], sizes: Any) -> list[tuple[list[Tensor], Tensor, Tensor]]:
        [given] = boxes
        logits = torch.tensor([[LOW, LOW, LOW, 0.0]]).repeat(len(given), 1)
        deltas = torch.zeros(len(given), 3, 4)
        for box, scores, final in written:
            near = box_iou(torch.tensor([box]), given)[0] >= 0.9
            logits[near] = torch.tensor(scores).log()
            deltas[near] = model.roi_head.stage.coder.encode(given, torch.tensor([final]).expand_as(given))[near][
                :, None
            ]
        zero = sum(x.sum() for x in p) * 0
        return [(boxes, logits + zero, deltas)]

    return run
