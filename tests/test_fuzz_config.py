"""Random configurations and overrides over real ones: a model or one line, nothing run, nothing blown up."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.fuzz import fuzz, grown, json_values, outcome, tries, watchdog  # noqa: F401
from helpers.tiny import built
from helpers.training import MODEL, ROOT
from hypothesis import strategies as st

from detector.config.config import load_config
from detector.errors import ConfigError

CONFIGS = [ROOT / "configs" / name for name in (
    "faster_rcnn_r50_fpn_1x_coco.yaml", "detectors_r50_1x_coco.yaml", "libra_r50_1x_coco.yaml", "shapes_r18_fpn.yaml",
)]  # fmt: skip
WORDS = [
    "fpn", "resnet", "bifpn", "os.system", "detector.modeling.rcnn.GeneralizedRCNN", "..", "", "null", "-1", "0", "1e9",
    "true",
]  # fmt: skip


def paths_of(section: Any, above: str = "") -> list[str]:
    """Dotted paths of everything in a configuration."""
    if not isinstance(section, dict):
        return []
    here = [(f"{above}.{key}" if above else str(key), value) for key, value in section.items()]
    return [name for path, value in here for name in (path, *paths_of(value, path))]


FULL = {"model": MODEL | {"num_classes": 2, "preprocess": {"mean": [0, 0, 0]}}, "train": {"lr": 0.1, "epochs": 1}}
REAL = sorted({path for config in CONFIGS for path in paths_of(load_config(config).raw)} | set(paths_of(FULL)))
MORE = ["model.neck.type", "model.rpn.type", "model.roi_head.type", "model.roi_head.pool.type", "data.skip_bad",
        "data.workers", "data.tta", "data.transforms", "train.precision", "train.optimizer", "model", "nonsense.key"]  # fmt: skip
values = json_values | st.integers(-3, 300) | st.sampled_from(WORDS) | st.lists(st.integers(-2, 99), max_size=5)


def as_text(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


@tries(1500)
def test_random_overrides_of_real_configurations(tries: int):
    def override(config: Path, changes: list[tuple[str, Any]]) -> None:
        outcome(lambda: load_config(config, [f"{key}={as_text(value)}" for key, value in changes]))

    changes = st.lists(st.tuples(st.sampled_from(REAL + MORE) | st.text(max_size=6), values), min_size=1, max_size=3)
    fuzz(tries, override, config=st.sampled_from(CONFIGS), changes=changes)


@tries(2000)
def test_what_is_accepted_builds_or_is_refused(tries: int):
    """On the meta device: no layer is too wide for it."""
    paths = [path for path in paths_of({"model": FULL["model"]}) if "." in path]

    def build(changes: list[tuple[str, Any]]) -> None:
        config = copy.deepcopy(FULL)
        for path, value in changes:
            *above, key = path.split(".")
            section: Any = config
            for name in above:
                section = section.get(name) if isinstance(section, dict) else None
            if isinstance(section, dict):
                section[key] = value
        with torch.device("meta"):
            outcome(lambda: built(config))

    fuzz(tries, build, changes=st.lists(st.tuples(st.sampled_from(paths), values), min_size=1, max_size=2))


@tries(3000)
def test_random_files(tmp_path: Path, tries: int):
    path, mark = tmp_path / "a.yaml", tmp_path / "was_here"
    tags = [
        "!!python/object/apply:os.system ", "!!python/name:os.system ", "!!binary ", "!!set ", "!!timestamp ", "!x ",
        "&a ", "*a",
    ]  # fmt: skip
    piece = st.sampled_from([*tags, "_base_: ", "model:\n", "  neck: ", "- ", "? ", ": ", "{", "}", "[", "]", "\n", "<<: *a\n",
                             "\t", "\0", "\x85", ".inf", "1:30", "=", "---\n", "%YAML 9.9\n", "'", '"', "|\n",
                             f"['touch {mark}']"])  # fmt: skip

    def write(pieces: list[str], tail: bytes) -> None:
        path.write_bytes("".join(pieces).encode("utf-8", "surrogatepass") + tail)
        outcome(lambda: load_config(path))
        assert not mark.exists()

    pieces = st.lists(piece | st.text(max_size=5), max_size=12)
    fuzz(tries, write, pieces=pieces, tail=st.just(b"") | st.binary(max_size=9))


BOMBS = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "thick aliases": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [" + f"*a{i - 1}, " * 11 + "]\n" for i in range(1, 10)),
    "wide aliases": "a: &a [1]\nb: [" + "*a, " * 5 * 10**4 + "1]",
    "merges": "a: &a {x: 1}\n" + "b:\n" + "  <<: *a\n" * 10**4, "lists": "[" * 10**5, "maps": "a: " + "{a: " * 10**5,
    "indents": "\n".join(" " * i + "a:" for i in range(700)), "number": "a: " + "9" * 2 * 10**5,
    "base of 60": "a: 1" + ":1" * 10**5, "keys": "\n".join(f"k{i}: 1" for i in range(2 * 10**4)),
    "long key": "a" * 2 * 10**5 + ": 1", "large": "a: " + "x" * 2**20,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_neither_time_nor_memory(tmp_path: Path, name: str):
    (tmp_path / "a.yaml").write_text(BOMBS[name])
    assert grown(lambda: outcome(lambda: load_config(tmp_path / "a.yaml"))) < 256
    assert outcome(lambda: load_config(tmp_path / "a.yaml")) is None


def test_bases_cannot_lead_in_circles_or_for_ever(tmp_path: Path):
    for i in range(60):
        (tmp_path / f"{i}.yaml").write_text(yaml.safe_dump({"_base_": [f"{i + 1}.yaml"] * 2}))
    (tmp_path / "60.yaml").write_text("model: {}")
    assert outcome(lambda: load_config(tmp_path / "0.yaml")) is None


def test_messages_keep_to_one_line_that_can_be_printed():
    assert str(ConfigError("a.\n\ud800\x1b[2Jé: no\u2028")) == r"a.\n\ud800\x1b[2Jé: no\u2028"
