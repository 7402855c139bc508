"""What anchors can reach and which boxes are all but equal: by hand, by plain loops, and what k-means proposes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.health import CATEGORIES, box, entry, run
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.config.config import build_detector, load_config, parse_config
from detector.config.inherit import merge
from detector.dataset_check.anchors import anchor_fit, kmeans, propose_anchors
from detector.dataset_check.boxes import SAME, check_annotations
from detector.dataset_check.checked_split import CheckedSplit, read_split
from detector.dataset_check.findings import Findings
from detector.dataset_check.scale import Geometry, Scaled, best_iou, geometry, level_counts
from detector.modeling.anchors import inside_border
from detector.modeling.boxes import box_iou

SPLIT = {"images": ".", "annotations": "a.json"}
CONFIG: dict[str, Any] = {
    "model": {
        "backbone": {"type": "helpers.training.TinyBackbone"}, "neck": {"type": "fpn", "width": 8},
        "rpn": {"anchors": {"sizes": [[16], [32], [64], [128], [256]], "ratios": [1.0]}},
        "roi_head": {"box_head": {"width": 8}},
    },
    "data": {"root": ".", "train": SPLIT, "val": SPLIT, "resize": {"short": [100, 200], "long": 500}},
}  # fmt: skip


def shape_of(**model: Any) -> Geometry:
    config = merge(CONFIG, {"model": model})
    settings = parse_config(config, trust=True).with_num_classes(2)
    return geometry(build_detector(settings, pretrained=False), settings.data.resize)


def split_of(folder: Path, boxes: list[list[float]], size: tuple[int, int] = (100, 100)) -> CheckedSplit:
    """A split of one image, of (width, height), and these xywh boxes."""
    annotations = [box(number, 1, bbox) for number, bbox in enumerate(boxes)]
    document = {"images": [entry(1, "1.png", size)], "annotations": annotations, "categories": CATEGORIES[:1]}
    (folder / "a.json").write_text(json.dumps(document))
    return read_split("train", folder / "a.json", None, None, Findings())


def scaled(
    boxes: list[list[float]], size: tuple[int, int] = (200, 200), padded: tuple[int, int] = (224, 224)
) -> Scaled:
    count = len(boxes)
    corners, labels = np.array(boxes, dtype=np.float64).reshape(-1, 4), np.zeros(count, dtype=np.int64)
    return Scaled(corners, labels, np.tile(size, (count, 1)), np.tile(padded, (count, 1)))


def test_recall_mean_and_levels_by_hand(tmp_path: Path) -> None:
    # Twice as large on the network's side: [80, 80, 112, 112] lies on the P3 grid of stride 8, where an anchor of 32 is
    # centred on 96; [1, 1, 9, 9] in one of 16 centred on 4 (P2): 64 / 256; [60, 96, 140, 128] of 80 x 32: with the 64 of
    # P4 centred on (96 or 112, 112) it shares 64 x 32 = 2048 of 80 * 32 + 64 * 64 - 2048 = 4608.
    split = split_of(tmp_path, [[40, 40, 16, 16], [0.5, 0.5, 4, 4], [30, 48, 40, 16]])
    shape = shape_of()
    objects = shape.scaled(*split.objects())
    assert objects.boxes.tolist() == [[80, 80, 112, 112], [1, 1, 9, 9], [60, 96, 140, 128]]
    assert objects.padded.tolist() == [[224, 224]] * 3
    best = best_iou(shape, shape.anchors, objects)
    assert best == pytest.approx([1, 64 / 256, 2048 / 4608])
    now = anchor_fit(shape, objects, [[16], [32], [64], [128], [256]], [1.0])
    assert now.recall == pytest.approx(1 / 3) and now.mean_iou == pytest.approx((1 + 0.25 + 4 / 9) / 3)
    # Sides after doubling: 100 -> 4 + log2(100 / 224) = 2.8; 112 -> 3; 111.9 -> 2; 180 -> 3; 20 -> 0.5, held at P2.
    boxes = [[0, 0, 50, 50], [0, 0, 56, 56], [0, 0, 55.95, 55.95], [0, 0, 90, 90], [0, 0, 10, 10]]
    shape = shape_of()
    assert level_counts(shape, shape.scaled(*split_of(tmp_path, boxes).objects())) == {2: 3, 3: 2, 4: 0, 5: 0}
    small = shape_of(roi_head={"pool": {"canonical_size": 56}})  # all two levels higher
    assert level_counts(small, small.scaled(*split_of(tmp_path, boxes).objects())) == {2: 1, 3: 0, 4: 2, 5: 2}
    # 7e-5 pixels below 112 torchvision rounds up
    below = scaled([[0, 0, 112 - 7e-5, 112 - 7e-5]])
    for rounding, level in (("detectron2", 2), ("torchvision", 3)):
        counts = level_counts(shape_of(roi_head={"pool": {"level_rounding": rounding}}), below)
        assert [k for k, count in counts.items() if count] == [level]


@pytest.mark.parametrize(
    "rpn",
    [
        {"anchors": {"ratios": [0.5, 1.0, 2.0]}},
        {"anchors": {"sizes": [[15, 20], [33, 40], [64, 90], [128, 200], [256, 300]], "rounded": True}, "border": 0.0},
        {"anchors": {"strides_from_image": True}, "border": 20.0},
    ],
)
@given(data=st.data())
@settings(max_examples=20)
def test_the_best_anchor_is_that_of_the_whole_grid(rpn: dict[str, Any], data: st.DataObject) -> None:
    shape = shape_of(rpn=rpn)
    edge = st.floats(0, 200, allow_subnormal=False)
    x1, y1, x2, y2 = (data.draw(edge) for _ in range(4))
    low, high = (min(x1, x2), min(y1, y2)), (max(x1, x2) + 1, max(y1, y2) + 1)
    objects = scaled([[*low, *high]], size=(201, 190), padded=(224, 192))
    anchors = shape.anchors
    maps = [torch.empty(1, 0, -(-224 // stride), -(-192 // stride)) for stride in anchors.strides]
    grid = torch.cat(anchors(maps, (224, 192)))
    if shape.border is not None:
        grid = grid[inside_border(grid, (201, 190), shape.border)]
    expected = box_iou(torch.from_numpy(objects.boxes).float(), grid).max()
    assert best_iou(shape, anchors, objects)[0] == pytest.approx(expected.item(), abs=1e-4)


def test_kmeans_finds_the_clusters_of_shapes() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[10.0, 30.0], [40.0, 40.0], [100.0, 30.0]])
    shapes = (centres[:, None] * rng.uniform(0.95, 1.05, (3, 200, 2))).reshape(-1, 2)
    for order in (np.arange(600), rng.permutation(600)):
        found = kmeans(shapes[order], 3)
        assert found[np.argsort(found[:, 0])] == pytest.approx(centres, rel=0.02)
    assert kmeans(shapes[:5], 9).shape == (9, 2)  # more centres than shapes


def crowd_of(side: float, ratio: float, count: int = 100) -> Scaled:
    """Objects about one size and shape, all over the image."""
    rng = np.random.default_rng(1)
    h, w = side * ratio**0.5 * rng.uniform(0.9, 1.1, count), side / ratio**0.5 * rng.uniform(0.9, 1.1, count)
    x, y = rng.uniform(0, 200 - w), rng.uniform(0, 200 - h)
    return scaled(np.stack([x, y, x + w, y + h], axis=1).tolist())


def test_a_proposal_raises_the_recall_leaves_no_class_behind_and_is_made_only_where_it_helps(tmp_path: Path) -> None:
    shape, objects = shape_of(), crowd_of(46, 2.0)
    now = anchor_fit(shape, objects, shape.anchors.sizes, shape.anchors.ratios)
    better = propose_anchors(shape, objects, now)
    assert now.recall == 0 and better.recall > 0.9 and better.mean_iou > now.mean_iou
    assert [len(level) for level in better.sizes] == [1] * 5 and len(better.ratios) == 1
    pasted = tmp_path / "pasted.yaml"
    pasted.write_text(better.config_line())
    given = load_config(pasted).model.calls["rpn.anchors"]
    assert given.arguments == {"sizes": better.sizes, "ratios": better.ratios}
    assert load_config("configs/bccd_r18_fpn.yaml", [better.override().strip("'")]).model.calls["rpn.anchors"] == given
    assert propose_anchors(shape_of(rpn={"anchors": given.arguments}), objects, better) is None
    shape = shape_of()
    many = {
        "alike": crowd_of(44, 1.0, count=1000),
        "spread": together(*(crowd_of(side, 1.0, count=250) for side in np.geomspace(28, 120, 8))),
    }
    for crowd, side, found in (("alike", 128, True), ("spread", 16, False)):  # k-means forsakes the few of 16
        objects = together(many[crowd], crowd_of(side, 1.0, count=60))
        objects.labels[-60:] = 1
        now = anchor_fit(shape, objects, shape.anchors.sizes, shape.anchors.ratios)
        better = propose_anchors(shape, objects, now)
        assert (better is not None) == found
        if found:
            assert better.recall > now.recall + 0.3 and (better.classes >= now.classes - 0.02).all()
    shape = shape_of()
    for objects in (crowd_of(46, 2.0, count=49), crowd_of(16, 1.0)):
        assert propose_anchors(shape, objects, anchor_fit(shape, objects, shape.anchors.sizes, [1.0])) is None


def together(*crowds: Scaled) -> Scaled:
    return Scaled(*(np.concatenate(columns) for columns in zip(*(vars(crowd).values() for crowd in crowds))))


def test_a_detector_without_anchors_of_ours_has_no_recall(tmp_path: Path) -> None:
    split_of(tmp_path, [[40, 40, 16, 16]])
    proposals = "{images: ., annotations: a.json, proposals: none.pth}"
    arguments = ["model.rpn=precomputed", f"data.train={proposals}", f"data.val={proposals}"]
    arguments += ["model.backbone.depth=18", "model.roi_head.box_head.width=8"]
    status, out, _ = run(tmp_path / "a.json", *arguments, f"data.train.annotations={tmp_path / 'a.json'}")
    assert status == 0 and "anchors: none of ours" in out and "recall" not in out


ROW = st.tuples(
    st.integers(1, 2), st.sampled_from([3, 7]), st.integers(0, 2), st.integers(0, 2), st.integers(19, 22), st.integers(19, 22)
)  # fmt: skip


@given(rows=st.lists(ROW, max_size=12))
def test_the_pairs_are_those_of_a_plain_loop(tmp_path_factory, rows: list[tuple[int, ...]]) -> None:
    path = tmp_path_factory.getbasetemp() / "pairs.json"
    annotations = [box(number, image, bbox, category) for number, (image, category, *bbox) in enumerate(rows)]
    images = [entry(1, "1.png"), entry(2, "2.png")]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    expected: dict[str, set[int]] = {"duplicate box": set(), "box of two classes": set()}
    for later, (image, category, x, y, w, h) in enumerate(rows):
        for other, kind, x2, y2, w2, h2 in rows[:later]:
            pair = torch.tensor([[x, y, x + w, y + h], [x2, y2, x2 + w2, y2 + h2]], dtype=torch.float64)
            if other == image and box_iou(pair[:1], pair[1:]) >= SAME:
                expected["duplicate box" if kind == category else "box of two classes"].add(later)
    assert pairs(path) == expected


def pairs(path: Path) -> dict[str, set[int]]:
    findings = Findings()
    check_annotations(read_split("train", path, None, None, findings), findings, keep_empty=True)
    found = {f.kind: {place.annotation_id for place in f.places} for f in findings.all()}
    return {kind: found.get(kind, set()) for kind in ("duplicate box", "box of two classes")}
