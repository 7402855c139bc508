"""Checkpoints: what goes in comes out, what is hostile or damaged stays out, and no crash costs the older file."""

import copy
import errno
import io
import math
import os
import pickle
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import built
from helpers.training import MODEL
from torch import Tensor

from detector import __version__, files
from detector.checkpoint import FORMAT, init_from, load_weights, read_checkpoint, save_checkpoint, with_old_depth
from detector.config.inherit import merge
from detector.errors import CheckpointError
from detector.modeling.rcnn import GeneralizedRCNN

HEAD = {f"roi_head.stage.{layer}.{part}" for layer in ("class_score", "box_delta") for part in ("weight", "bias")}


def make_model(classes: int = 2, **sections: Any) -> GeneralizedRCNN:
    return built({"model": merge(MODEL, {"num_classes": classes, **sections})})


def save(path: Path, model: GeneralizedRCNN | None = None, **training: Any) -> Path:
    save_checkpoint(
        path,
        model=model or make_model(),
        config={"model": MODEL, "train": {"lr": 1e-3}},
        class_names=["cell", "dust"],
        category_ids=[3, 7],
        training=training,
    )
    return path


def state_of(model: GeneralizedRCNN) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    return str(error.value)


def test_what_goes_in_comes_out_and_fills_another_model(tmp_path: Path):
    model = make_model(preprocess={"order": "bgr", "mean": [1.0, 2.0, 3.0]})
    state = {"step": 5, "best": -math.inf, "rng": torch.get_rng_state(), "cuda_rng": [], "none": None}
    read = read_checkpoint(save(tmp_path / "a.pth", model, **state))
    assert read["format"] == FORMAT and read["versions"]["detector"] == __version__
    assert read["versions"].keys() == {"detector", "torch", "torchvision", "python"}
    assert read["config"] == {"model": MODEL, "train": {"lr": 1e-3}}
    assert (read["class_names"], read["category_ids"]) == (["cell", "dust"], [3, 7])
    assert read["pixels"]["order"] == "bgr" and read["pixels"]["mean"] == [1, 2, 3]
    assert torch.equal(read["training"].pop("rng"), state.pop("rng")) and read["training"] == state
    assert equal(read["model"], model.state_dict())
    source, target = make_model(), make_model()
    read = read_checkpoint(save(tmp_path / "a.pth", source))
    save(tmp_path / "a.pth")  # other weights take its place
    assert not equal(source.state_dict(), target.state_dict())
    load_weights(target, read["model"], tmp_path / "a.pth")
    assert equal(source.state_dict(), target.state_dict())


class Hostile:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["torch", "torch, in the training state", "bare pickle"])
def test_reading_never_runs_code(tmp_path: Path, form: str):
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"format": FORMAT, "model": Hostile(trace)}))
    elif form == "torch":
        torch.save(Hostile(trace), path)
    else:
        save(path, hostile=Hostile(trace))
    assert str(path) in refusal(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Hostile(trace))).close()
    assert trace.exists()  # it is hostile indeed


def damaged(good: bytes) -> dict[str, bytes]:
    """Files that are no checkpoint (any more), by what befell them."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "nothing")
    foreign = io.BytesIO()
    torch.save({"state_dict": {"conv.weight": torch.ones(3)}}, foreign)
    middle = len(good) // 2
    return {
        "empty": b"",
        "text": b"lr: 0.1\n",
        "cut in half": good[:middle],
        "last byte lost": good[:-1],
        "head lost": good[100:],
        "one byte of the weights changed": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "another archive": archive.getvalue(),
        "weights of another framework": foreign.getvalue(),
    }


@pytest.mark.parametrize("damage", damaged(b"any"))
def test_damaged_and_foreign_files_are_named(tmp_path: Path, damage: str):
    path = save(tmp_path / "a.pth")
    path.write_bytes(damaged(path.read_bytes())[damage])
    message = refusal(path)
    assert str(path) in message and "weights_only" not in message and "\n" not in message
    if damage.startswith("weights of"):
        assert "`detector convert-weights`" in message


def test_missing_files_and_malformed_parts_are_named(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none.pth", tmp_path / "none" / "a.pth"):
        assert refusal(path) == f"{path}: no such checkpoint"
    (tmp_path / "last.pth").touch()
    last = tmp_path / "last.pth"
    assert refusal(tmp_path) == f"{tmp_path}: no such checkpoint; {last} is there"
    assert refusal(tmp_path / "a.pth") == f"{tmp_path / 'a.pth'}: no such checkpoint; {last} is there"
    best = tmp_path / "best.pth"
    assert refusal(best) == f"{best}: no such checkpoint; {last} is there, and best.pth comes with the first evaluation"
    with pytest.raises(CheckpointError, match="none"):
        save(tmp_path / "none" / "last.pth")
    for key, value in [
        ("model", None), ("model", [1]), ("model", {"pyramid.x": 3}), ("model", {7: torch.ones(1)}), ("config", "x"),
        ("class_names", ("a",)), ("category_ids", None), ("pixels", 1), ("training", []),
    ]:  # fmt: skip
        path = save(tmp_path / "a.pth")
        torch.save(read_checkpoint(path) | {key: value}, path)
        assert f"{path}: damaged: {key} " in refusal(path)
        content = read_checkpoint(save(path))
        del content[key]
        torch.save(content, path)
        assert f"{path}: damaged: {key} " in refusal(path)


def fails_after(count: int):
    """An `open` whose file is on a disk that has room for `count` bytes."""

    class Full(io.FileIO):
        def write(self, data: bytes) -> int:
            if self.tell() + len(data) > count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    return lambda path, mode: Full(path, mode)


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int):
    path = save(tmp_path / "last.pth")
    before = path.read_bytes()
    monkeypatch.setattr(files, "open", fails_after(room), raising=False)
    with pytest.raises(CheckpointError, match=r"last\.pth: could not be written .*No space left"):
        save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.pth"]


@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "os.replace"])
@pytest.mark.parametrize("reason", [OSError("disk"), KeyboardInterrupt(), SystemExit(130)])
def test_whatever_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, failing, reason):
    path = save(tmp_path / "last.pth")
    before = path.read_bytes()

    def fail(*args: object, **options: object) -> None:
        raise reason

    monkeypatch.setattr(failing, fail)
    with pytest.raises((CheckpointError, KeyboardInterrupt, SystemExit)):
        save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.pth"]


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace, seen = os.replace, []

    def look(source: Path, target: Path) -> None:
        seen.append(read_checkpoint(source)["class_names"])
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    save(tmp_path / "last.pth")
    assert seen == [["cell", "dust"]] and os.listdir(tmp_path) == ["last.pth"]


def test_another_architecture_is_told_from_other_classes_and_changes_nothing():
    model, other = make_model(), make_model(neck={"width": 16})
    state = {k: v for k, v in other.state_dict().items() if k != "rpn.deltas.bias"} | {"rpn.extra": torch.ones(1)}
    before = state_of(model)
    for take in (load_weights, partial(init_from, before=NAMES, now=NAMES)):
        with pytest.raises(CheckpointError) as error:
            take(model, state, "x.pth")
        message = str(error.value)
        assert message.startswith("x.pth: made for another architecture; missing: rpn.deltas.bias; ")
        assert "not part of this model: rpn.extra; of another shape: pyramid.neck." in message and " more" in message
        assert "; set model.rpn and model.neck and model.roi_head as " in message
        assert equal(before, model.state_dict())
    with pytest.raises(CheckpointError, match=r"of another shape: roi_head\.stage\.class_score\.weight"):
        load_weights(make_model(3), make_model(4).state_dict(), "x.pth")
    agnostic = make_model(2, roi_head={"class_agnostic": True})
    with pytest.raises(CheckpointError, match=r"of another shape: roi_head\.stage\.box_delta"):
        init_from(make_model(2), agnostic.state_dict(), "x.pth", ["a", "b"], ["a", "c"])


NAMES = ["cat", "dog", "cow"]


def test_init_from_takes_everything_or_moves_the_rows_of_the_predictor_by_name():
    source, model = make_model(), make_model()
    names = [f"c{i}" for i in range(source.roi_head.num_classes)]
    line = init_from(model, source.state_dict(), "x.pth", names, names)
    assert line == f"x.pth: all {len(source.state_dict())} tensors loaded"
    assert equal(source.state_dict(), model.state_dict())
    source, model = make_model(3), make_model(4)
    before, now = state_of(model), ["cow", "hen", "cat", "ox"]
    line = init_from(model, source.state_dict(), "x.pth", NAMES, now)
    assert line.endswith("rows of the predictor moved by name for 2 of 4 classes; afresh: hen, ox; dropped: dog")
    given, filled = source.state_dict(), model.state_dict()
    for key, tensor in filled.items():
        if key not in HEAD:
            assert torch.equal(tensor, given[key])
    for name in ("weight", "bias"):
        scores, deltas = (f"roi_head.stage.{part}.{name}" for part in ("class_score", "box_delta"))
        for label, row in ((0, 2), (2, 0), (4, 3)):  # cow, cat, background
            assert torch.equal(filled[scores][label], given[scores][row])
        for label, row in ((0, 2), (2, 0)):
            assert torch.equal(filled[deltas][4 * label : 4 * label + 4], given[deltas][4 * row : 4 * row + 4])
        for label in (1, 3):
            assert torch.equal(filled[scores][label], before[scores][label])
            assert torch.equal(filled[deltas][4 * label : 4 * label + 4], before[deltas][4 * label : 4 * label + 4])


def test_init_from_starts_the_predictor_afresh_for_other_classes_and_moves_every_stage_of_a_cascade():
    for now in [["a", "b", "c"], ["a"]]:
        source, model = make_model(3), make_model(len(now))
        before, total = state_of(model), len(model.state_dict())
        line = init_from(model, source.state_dict(), "x.pth", NAMES, now)
        assert line.startswith(f"x.pth: {total - 4} of {total} tensors loaded; the predictor starts afresh") and all(
            key in line for key in HEAD
        )
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, (before if key in HEAD else source.state_dict())[key])
    # Its deltas are class-agnostic, so that only the scores have rows by class.
    cascade = {"type": "cascade", "box_head": {"width": 32}}
    source, model = make_model(3, roi_head=cascade), make_model(3, roi_head=cascade)
    init_from(model, source.state_dict(), "x.pth", NAMES, NAMES[::-1])
    for key, tensor in model.state_dict().items():
        given = source.state_dict()[key]
        assert torch.equal(tensor, given[[2, 1, 0, 3]] if ".class_score." in key else given)


def test_init_from_begins_the_branches_afresh_that_the_other_training_lacked_and_leaves_out_what_this_one_lacks():
    masks, points = {"mask_head": {"width": 8}}, {"keypoint_head": {"width": 8}}
    source, model = make_model(3), make_model(3, roi_head=masks)
    before, total = state_of(model), len(model.state_dict())
    line = init_from(model, source.state_dict(), "x.pth", NAMES, NAMES)
    assert line == f"x.pth: {len(source.state_dict())} of {total} tensors loaded; roi_head.mask starts afresh"
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict().get(key, before[key]))
    model = make_model(3, roi_head=points)
    line = init_from(model, make_model(4, roi_head=masks).state_dict(), "x.pth", [*NAMES, "hen"], NAMES)
    assert line.endswith("dropped: hen; roi_head.keypoint starts afresh; roi_head.mask of the file is left out")
    scoring = make_model(3, roi_head=masks | {"mask_iou_head": {"width": 8}})
    line = init_from(scoring, make_model(3, roi_head=masks).state_dict(), "x.pth", NAMES, NAMES)
    assert line.endswith("loaded; roi_head.mask.iou_head starts afresh")


def test_images_are_read_as_version_0_1_trained_on_them_unless_a_class_of_ones_own_reads_them():
    old, new = {"versions": {"detector": "0.1.0"}}, {"versions": {"detector": "0.2.0"}}
    assert with_old_depth({"data": {"root": "."}}, old) == {"data": {"bit_depth": 16, "root": "."}}
    for config, checkpoint in (
        ({"data": {"root": "."}}, new), ({}, old), ({"data": {"bit_depth": 12}}, old), ({"data": {"type": "mine.Set"}}, old)
    ):  # fmt: skip
        assert with_old_depth(config, checkpoint) == config
