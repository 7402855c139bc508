"""A file of each framework, converted and loaded, gives the boxes that the framework itself gave.

The weights follow by formula from the framework's names of them, so that a wrong name gives other boxes. The rules, and many
more recorded numbers (tests/test_golden.py), are those of golden_rules.py; these few are here for every clone.
"""

import json
from pathlib import Path

import pytest
from helpers.golden_models import config_of, convert, match_detections, overrides_of, reference
from helpers.golden_rules import Fill, formula_image

import detector
from detector.config.config import load_config
from detector.interop.recognise import FRAMEWORKS, blank_state

RECORDED = json.loads(Path(__file__).with_name("recorded_detections.json").read_text())


QUICK = "d2_faster_rcnn_R_50_FPN"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != QUICK)) for n in RECORDED])
def test_a_converted_file_gives_the_frameworks_boxes(name, tmp_path):
    record, framework = RECORDED[name], FRAMEWORKS[reference(name).name]
    names = framework.export_state(blank_state(load_config(config_of(name))))
    state = Fill(record["seed_text"], **record["fill"]).state({key: t.shape for key, t in names.items()})
    image = formula_image(*record["image"])
    as_it_is = [f"data.resize.short={min(image.shape[1:])}", f"data.resize.long={max(image.shape[1:])}"]
    convert(name, state, tmp_path / "ours.pth", [*overrides_of(record["profile"]), *as_it_is])
    found = detector.load(tmp_path / "ours.pth", device="cpu")(image)
    match = match_detections(name, found, record["detections"])
    assert match.unmatched == 0 and len(found) == match.number > 30
