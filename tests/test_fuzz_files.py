"""Hostile, damaged and random files of configurations and weights: nothing in them is run, and one line says no."""

import builtins
import copy
import functools
import io
import json
import os
import pickle
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.fuzz import damaged, fuzz, grown, json_values, outcome, tries
from helpers.tiny import built
from helpers.training import MODEL, ROOT, draw_set, script, write_config
from hypothesis import strategies as st
from test_checkpoint import equal, save
from torch import nn

from detector.checkpoint import read_checkpoint
from detector.config.config import load_config
from detector.data.proposal_file import ProposalFile, pack
from detector.errors import ConfigError
from detector.interop.files import read_weights, write_weights
from detector.modeling.backbones.imagenet import load_imagenet
from detector.structures import Proposals

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


def test_bases_cannot_lead_in_circles_or_for_ever_and_messages_keep_to_one_line(tmp_path: Path):
    for i in range(60):
        (tmp_path / f"{i}.yaml").write_text(yaml.safe_dump({"_base_": [f"{i + 1}.yaml"] * 2}))
    (tmp_path / "60.yaml").write_text("model: {}")
    assert outcome(lambda: load_config(tmp_path / "0.yaml")) is None
    assert str(ConfigError("a.\n\ud800\x1b[2Jé: no\u2028")) == r"a.\n\ud800\x1b[2Jé: no\u2028"


class Call:
    """Unpickled without care, it calls a function."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


class State(dict):
    """A dictionary that is filled by a call."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def __reduce__(self) -> tuple:
        return dict, (), None, None, iter([("a", self.call)])


def hostile(mark: Path) -> dict[str, Any]:
    """Contents that would make the file `mark`."""
    calls = {
        "system": Call(os.system, f"touch {mark}"), "exec": Call(builtins.exec, f"open({str(mark)!r}, 'w')"),
        "eval": Call(builtins.eval, f"open({str(mark)!r}, 'w')"), "open": Call(builtins.open, str(mark), "w"),
        "popen": Call(subprocess.Popen, ["touch", str(mark)]), "write": Call(torch.save, 1, str(mark)),
        "import": Call(builtins.__import__, "antigravity"), "path": Call(Path.touch, mark),
    }  # fmt: skip
    return {**calls, "within a state": State(calls["open"]), "within a list": [[calls["open"]]]}


def files(content: Any) -> dict[str, bytes]:
    """The content in every form that a file of weights may have."""
    whole = {"format": "detector checkpoint 1", "model": content, "config": {}, "class_names": [], "training": content}
    forms = {}
    for name, value in (("bare", content), ("model", {"model": content}), ("ours", whole)):
        for protocol in (0, 2, 4):
            forms[f"{name}, pickle {protocol}"] = pickle.dumps(value, protocol)
        for new in (True, False):
            memory = io.BytesIO()
            torch.save(value, memory, _use_new_zipfile_serialization=new)
            forms[f"{name}, torch {'zip' if new else 'of before 2020'}"] = memory.getvalue()
    return forms


READERS = {
    "checkpoint": (read_checkpoint, ".pth"), "proposals": (ProposalFile, ".pth"),
    "backbone": (lambda path: load_imagenet(nn.Linear(1, 1), str(path), "resnet18"), ".pt"),
    "weights": (read_weights, ".pth"), "weights, pickled": (read_weights, ".pkl"),
    "weights, safetensors": (read_weights, ".safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
def test_no_reader_runs_what_a_file_holds(tmp_path: Path, name: str):
    (reader, suffix), mark = READERS[name], tmp_path / "was_here"
    for attack in hostile(mark).values():
        for content in files(attack).values():
            path = tmp_path / f"a{suffix}"
            path.write_bytes(content)
            assert outcome(functools.partial(reader, path)) is None and not mark.exists()
    pickle.loads(pickle.dumps(hostile(mark)["open"])).close()  # it would have
    assert mark.exists()


DOORS = {  # arguments of a script, FILE being the hostile one, RUN a folder with it as last.pth
    "--resume": ("train", "CONFIG", "--output", "RUN", "--resume"),
    "--init-from": ("train", "CONFIG", "--output", "OUT", "--init-from", "FILE"),
    "backbone": ("train", "CONFIG", "--output", "OUT", "model.backbone={type: resnet, depth: 18, weights: FILE}"),
    "proposals": ("train", "CONFIG", "--output", "OUT", "model.rpn={type: precomputed}",
                  "data.train.proposals=FILE", "data.val.proposals=FILE"),
    "annotations": ("train", "CONFIG", "--output", "OUT", "data.train.annotations=FILE"),
    "configuration": ("train", "FILE", "--output", "OUT"),
    "evaluate": ("evaluate", "FILE", "--output", "OUT"),
    "evaluate --trust": ("evaluate", "FILE", "--output", "OUT", "--trust"),
    "detections": ("evaluate", "--detections", "FILE", "--annotations", "TRUTH"),
    "infer": ("infer", "FILE", "IMAGES", "--output", "OUT"),
    "convert in": ("convert_weights", "FILE", "--from", "auto", "--output", "OUT"),
    "convert out": ("convert_weights", "FILE", "--to", "torchvision", "--output", "OUT"),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_no_door_lets_a_hostile_file_in(tmp_path: Path, capsys: pytest.CaptureFixture, door: str):
    mark, file, run, out = (tmp_path / name for name in ("was_here", "hostile.pth", "run", "out"))
    config = write_config(tmp_path / "tiny.yaml", draw_set(tmp_path / "data"))
    run.mkdir()
    words = {"CONFIG": config, "RUN": run, "OUT": out, "FILE": file, "TRUTH": tmp_path / "data/val.json",
             "IMAGES": tmp_path / "data/images"}  # fmt: skip
    name, *arguments = DOORS[door]
    for word, value in words.items():
        arguments = [argument.replace(word, str(value)) for argument in arguments]
    main, contents = script(name).main, files(hostile(mark)["open"])
    for form in ("ours, torch zip", "ours, torch of before 2020", "bare, pickle 2"):
        file.write_bytes(contents[form])
        shutil.copy(file, run / "last.pth")
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert not mark.exists() and sorted(tmp_path.rglob("*")) == before


STATE = {"a.weight": torch.arange(60.0).view(20, 3), "b": torch.tensor(3)}
BOXES = Proposals(torch.tensor([[1.0, 2, 3, 4], [0, 0, 9, 9]]), torch.tensor([2.0, 1]))


def make(path: Path, kind: str) -> None:
    if kind == "checkpoint":
        save(path)
    elif kind == "proposals":
        torch.save(pack([7, 5], ["x/a", "x/b"], [(10, 10), (12, 12)], [BOXES, BOXES]), path)
    else:
        write_weights(path, STATE, {}, None)


@pytest.mark.parametrize("kind", [name for name in READERS if name != "backbone"])
@tries(3000)
def test_a_damaged_file_is_refused_or_whole(tmp_path: Path, kind: str, tries: int):
    """The damage to what is read is in what says nothing: a date, a padding. A pickle has no checksum."""
    reader, suffix = READERS[kind]
    make(tmp_path / f"good{suffix}", kind)
    path, whole = tmp_path / f"bad{suffix}", reader(tmp_path / f"good{suffix}")

    def read(content: bytes) -> None:
        path.write_bytes(content)
        found = outcome(lambda: reader(path))
        if found is not None and kind == "checkpoint":
            assert equal(found["model"], whole["model"])
        elif found is not None and kind == "proposals":
            assert found[5].boxes.tolist() == BOXES.boxes.tolist()
        elif found is not None:
            assert sum(float(x.double().abs().sum()) for x in found.state.values()) is not None
        path.unlink()  # proposals are mapped into memory

    fuzz(tries, read, content=damaged((tmp_path / f"good{suffix}").read_bytes()))


@pytest.mark.parametrize("reader", [read_checkpoint, ProposalFile, read_weights])
def test_an_archive_that_unpacks_to_a_giant_is_refused_by_its_list(tmp_path: Path, reader: Callable):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data/0", "w") as entry:
            for _ in range(400):
                entry.write(b"\0" * 2**20)
    assert grown(lambda: outcome(lambda: reader(tmp_path / "a.pth"))) < 64
    assert outcome(lambda: reader(tmp_path / "a.pth")) is None
