"""Files of other frameworks are read in every form they come in, and nothing in them is run."""

import argparse
import importlib.util
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.errors import CheckpointError
from detector.interop.classes import COCO_80, COCO_NAMES, classes_of
from detector.interop.files import read_weights, write_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.num_batches_tracked": torch.tensor(3)}


def arrays(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in state.items()}


def save(path: Path, content: object, protocol: int = 2) -> Path:
    """A .pkl by pickle, anything else by torch."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, path)
    return path


def test_every_wrapping_is_taken_off_and_files_of_older_versions_are_read(tmp_path):
    for name, content in [
        ("bare.pth", STATE),
        ("detectron2.pth", {"model": STATE, "iteration": 90_000, "optimizer": {"state": {}}}),
        ("mmdetection.pth", {"state_dict": STATE, "meta": {"epoch": 12, "best": np.float64(0.4)}}),
        ("parallel.pth", {f"module.{key}": tensor for key, tensor in STATE.items()}),
        ("compiled.pth", {"model": {f"module._orig_mod.{key}": tensor for key, tensor in STATE.items()}}),
        ("average.pth", {"n_averaged": torch.tensor(9)} | {f"module.{key}": tensor for key, tensor in STATE.items()}),
        ("torchvision.pth", {"model": STATE, "args": argparse.Namespace(lr=0.02, output=None)}),
        ("zoo.pkl", {"model": arrays(STATE), "__author__": "somebody"}),
        ("caffe2.pkl", {"blobs": arrays(STATE)}),
        ("scalars.pkl", {"a.weight": STATE["a.weight"].numpy(), "a.num_batches_tracked": np.int64(3)}),
    ]:
        state = read_weights(save(tmp_path / name, content)).state
        assert state.keys() == STATE.keys() and all(state[key].equal(STATE[key]) for key in STATE)
    # Every protocol of pickle, arrays that NumPy 1 wrote, and torch's files of before 2020.
    paths = [save(tmp_path / f"{protocol}.pkl", arrays(STATE), protocol) for protocol in (0, 2, 4, 5)]
    paths += [tmp_path / "numpy_1.pkl", tmp_path / "torch.pth"]
    numpy_1 = paths[0].read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    paths[-2].write_bytes(numpy_1)
    torch.save(STATE, paths[-1], _use_new_zipfile_serialization=False)
    for path in paths:
        assert read_weights(path).state["a.weight"].equal(STATE["a.weight"])


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("under", [None, "model"])
def test_what_is_written_is_read_again(tmp_path, suffix, under):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"out{suffix}"
    write_weights(path, STATE, {"__author__": "us"} if under else {}, under)
    state = read_weights(path).state
    assert state.keys() == STATE.keys() and all(state[key].equal(STATE[key]) for key in STATE)


def test_a_training_file_of_mmdetection_is_read_without_its_histories(tmp_path, monkeypatch):
    """The classes that it names need not be there."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._methods = np.arange(3.0), {"min": HistoryBuffer.smallest}

        def smallest(self):
            pass

    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.smallest.__module__, HistoryBuffer.smallest.__qualname__ = module.__name__, "HistoryBuffer.smallest"
    content = {"state_dict": STATE, "meta": {"epoch": 1}, "message_hub": {"log_scalars": {"loss": HistoryBuffer()}}}
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            patch.setitem(sys.modules, name, module)
        save(tmp_path / "epoch_1.pth", content)
    assert read_weights(tmp_path / "epoch_1.pth").state["a.weight"].equal(STATE["a.weight"])


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["hostile.pth", "hostile.pkl"])
@pytest.mark.parametrize("where", ["model", "meta", "__author__"])
def test_a_hostile_file_runs_nothing(tmp_path, name, where):
    mark = tmp_path / "was_here"
    path = save(tmp_path / name, {"model": arrays(STATE), where: Hostile(mark)})
    with pytest.raises(CheckpointError, match=r"safe to read") as caught:
        read_weights(path)
    assert not mark.exists() and "weights_only" not in str(caught.value)
    pickle.loads(pickle.dumps(Hostile(mark)))  # it would have
    assert mark.exists()


def test_what_is_no_state_dict_is_said_in_one_line_also_in_safetensors(tmp_path, monkeypatch):
    for name, content, message in [
        ("text.pth", b"no weights", "safe to read"),
        ("text.pkl", b"no weights", "safe to read"),
        ("empty.pkl", b"", "safe to read"),
        ("list.pkl", pickle.dumps([1, 2]), "its content is of type list, not a state dict"),
        ("words.pkl", pickle.dumps({"a": "b", "c": np.ones(2)}), r"holds no state dict \(a: no plain tensors\)"),
        ("names.pkl", pickle.dumps({"a\nb" + 999 * "c": 0, 3: np.ones(2)}), r"\(a\?bc{117}…, 3: no plain tensors\)"),
        ("nothing.pkl", pickle.dumps({"model": {}}), "it is empty"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            read_weights(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\xff" * 100)
    if importlib.util.find_spec("safetensors"):
        with pytest.raises(CheckpointError, match="damaged"):
            read_weights(path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match="pip install safetensors"):
        read_weights(path)


def test_a_file_cut_short_and_a_byte_that_changed_on_the_way_are_noticed(tmp_path):
    """The latter where the form has check sums: torch itself reads such a file."""
    changed = save(tmp_path / "changed.pth", {"a": torch.ones(1000)})
    content = bytearray(changed.read_bytes())
    content[content.index(torch.ones(9).numpy().tobytes()) + 2] ^= 1
    changed.write_bytes(content)
    assert torch.load(changed)["a"][0] != 1
    short = [save(tmp_path / "a.pth", STATE), save(tmp_path / "a.pkl", arrays(STATE))]
    for path in short:
        path.write_bytes(path.read_bytes()[:-40])
    for path in (changed, *short):
        with pytest.raises(CheckpointError, match="damaged"):
            read_weights(path)


def test_what_is_no_dense_tensor_in_the_file_is_refused(tmp_path):
    eight_gigabytes = torch.ones(1).expand(2_000_000_000)  # of which the file holds four bytes
    complex_numbers = torch.ones(2, dtype=torch.complex64)
    for value in (torch.eye(2).to_sparse(), torch.ones(2, device="meta"), complex_numbers, eight_gigabytes):
        with pytest.raises(CheckpointError, match=r"\(b: no plain tensors\)"):
            read_weights(save(tmp_path / "a.pth", STATE | {"b": value}))
    # NumPy would give whatever the memory holds.
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x03tU\x01ftR"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}U\x01a" + array + b"s.")
    with pytest.raises(CheckpointError, match=r"of shape \(3,\) is no empty array"):
        read_weights(tmp_path / "a.pkl")
    for value in (
        np.array([{"an": "object"}], dtype=object), np.dtype("O"), print, getattr, np.load, Path("/"), 1 + 2j,
        np.zeros(2, np.longdouble), np.zeros(2, complex), np.array(["text"]),
    ):  # fmt: skip
        with pytest.raises(CheckpointError):
            read_weights(save(tmp_path / "other.pkl", {"model": {"a": value}}))


def test_classes_are_the_files_then_cocos_then_numbered():
    for framework, meta, number, names, ids in [
        ("mmdetection", {"meta": {"CLASSES": ("cat", "dog")}}, 2, ["cat", "dog"], [1, 2]),
        ("mmdetection", {"meta": {"dataset_meta": {"classes": ["cat", "dog"]}}}, 2, ["cat", "dog"], [1, 2]),
        ("mmdetection", {"meta": {"CLASSES": ("cat", "dog")}}, 3, ["class 1", "class 2", "class 3"], [1, 2, 3]),
        ("mmdetection", {"meta": {"CLASSES": ("cat", "cat")}}, 2, ["class 1", "class 2"], [1, 2]),
        ("mmdetection", {"meta": {"CLASSES": tuple(COCO_NAMES)}}, 80, COCO_NAMES, COCO_80),
        ("mmdetection", {"meta": {"CLASSES": [{}, []]}}, 2, ["class 1", "class 2"], [1, 2]),
        ("mmdetection", {"meta": None}, 80, COCO_NAMES, COCO_80),
        ("detectron2", {}, 80, COCO_NAMES, COCO_80),
        ("detectron2", {}, 1, ["class 1"], [1]),
    ]:
        assert classes_of(framework, meta, number)[:2] == (names, ids)
    names, ids, _ = classes_of("torchvision", {}, 90)
    assert ids == list(range(1, 91)) and names[:2] == ["person", "bicycle"] and names[11] == "unused 12"
    assert [names[i - 1] for i in COCO_80] == COCO_NAMES
