"""Two-stage object detectors in plain PyTorch.

The legend. N images, L levels, A anchors per cell, G objects, R regions, K classes, C channels.

Boxes are float32 (x1, y1, x2, y2) in continuous pixels (width = x2 - x1); sizes are (h, w). Classes are 0..K-1; class
scores have K+1 columns, background last. COCO's xywh boxes are for files alone (`coco_format.py`).
    c       = [C2..C5], the backbone's maps        anchors -> proposals -> detections: boxes by age
    p       = [P2..P6], the pyramid's maps         deltas  = (dx, dy, dw, dh), one box relative to another
    label   = POSITIVE 1, NEGATIVE 0 or IGNORE -1  logits  = scores before sigmoid or softmax

The three interfaces of the pyramid; `protocols.py` has all others:
    backbone  (N, 3, H, W) -> [C2..C5]; has .channels and .strides, a number for each level
    neck      [C2..C5] -> [P2..P6]; made with and has .channels and .strides
    pyramid   (N, 3, H, W) -> [P2..P6]; ordinarily PlainPyramid(backbone, neck), for DetectoRS RecursivePyramid
`GeneralizedRCNN(preprocess, pyramid, rpn, roi_head)` takes uint8 RGB images (3, H, W) of any sizes:
    model(images, targets) -> {"rpn_objectness", "rpn_box", "roi_class", "roi_box"}, whose sum is the objective; of a
                              cascade "roi_class_1", "roi_box_1", "roi_class_2" and so on
    model(images)          -> list[Detections], in the pixels of the given images

Where to look:
    the two stages               modeling/rcnn.py, then rpn.py and roi_heads/
    a neck, and how to add one   modeling/necks/, a file each; modeling/parts.py lists them; docs/extending.md has the steps
    matching, its memory limit   modeling/matching.py, MATRIX_LIMIT
    crowd regions                Target.crowd (data/coco.py); background candidates in them are ignored (in_crowd, matching.py)
    the level rule (FPN eq. 1)   modeling/levels.py, fpn_level
    exact resume                 training/loop.py (resume), step.py (load_state); rng.py, data/sampler.py, data/loader.py: samples
                                 depend on (seed, epoch, index) alone; bit for bit on a CPU with as many processes as before
    files confined to a folder   coco_format.py, join_within
    keys of a configuration      modeling/parts.py, data/settings.py, recipe.py; renamed ones in renames.py
"""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"

_HOME = {
    "load_config": "detector.config.config",
    "build_detector": "detector.config.config",
    "load": "detector.export.exported",
    "train": "detector.workflows",
    "evaluate": "detector.workflows",
    "TrainingResult": "detector.workflows",
    "Predictor": "detector.inference.predictor",
    "Config": "detector.config.config",
    "Detections": "detector.structures",
    "Tiles": "detector.data.tiles",
    "DetectorError": "detector.errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: reading this legend costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'detector' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
