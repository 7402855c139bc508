"""Boxes that are all but equal, found without comparing every pair."""

import json
from pathlib import Path

import torch
from helpers.health import CATEGORIES, box, entry
from hypothesis import given
from hypothesis import strategies as st

from detector.dataset_check.boxes import SAME, check_annotations
from detector.dataset_check.checked_split import read_split
from detector.dataset_check.findings import Findings
from detector.modeling.boxes import box_iou

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
