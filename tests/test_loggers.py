"""TensorBoard, Weights & Biases and MLflow: the numbers, pictures and curves of a training, read back from their files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.training import assert_same_training, before_steps, draw_set, rows, script, train, write_config

from detector.errors import ConfigError, Interrupted
from detector.evaluation.thresholds import THRESHOLDS, ThresholdCounts, threshold_counts
from detector.training.loggers import Loggers, check_loggers
from detector.training.val_view import LONGEST, view_of

Numbers = dict[tuple[str, int], list[float]]  # by column and step
PICTURES = ["val/image_1", "val/image_2"]


def of_tensorboard(folder: Path) -> tuple[Numbers, dict[str, list[int]], dict[str, np.ndarray]]:
    """Numbers; the steps of each picture; (6, thresholds) counts and shares of each class at the last step."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.util import tensor_util

    board = accumulator.EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0}
    )
    board.Reload()
    tags = board.Tags()
    numbers: Numbers = {}
    for key in tags["scalars"]:
        for event in board.Scalars(key):
            numbers.setdefault((key, event.step), []).append(event.value)
    pictures = {key: [event.step for event in board.Images(key)] for key in tags["images"]}
    curves = {k.split("/")[1]: tensor_util.make_ndarray(board.Tensors(k)[-1].tensor_proto) for k in tags["tensors"]}
    return numbers, pictures, curves


def records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log after seven bytes, blocks of 32 KiB with whole records (1) and parts."""
    assert content.startswith(b":W&B")
    place, whole = 7, b""
    while place + 7 <= len(content):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def of_wandb(folder: Path) -> tuple[Numbers, dict[str, list[int]], dict[str, dict[str, list[float]]]]:
    """Numbers; the steps of each picture; the points of each class at the last step. Of all runs with one id."""
    Record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
    numbers: Numbers = {}
    pictures: dict[str, list[int]] = {}
    curves: dict[str, dict[str, list[float]]] = {}
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for record in map(Record.FromString, records(path.read_bytes())):
            if record.WhichOneof("record_type") != "history":
                continue
            items: dict[str, Any] = {}
            for item in record.history.item:
                key, *inner = item.nested_key or [item.key]
                items |= {
                    key: items.get(key, {}) | {inner[0]: json.loads(item.value_json)}
                    if inner
                    else json.loads(item.value_json)
                }
            for key, value in items.items():
                if isinstance(value, dict) and value["_type"] == "image-file":
                    pictures.setdefault(key, []).append(items["_step"])
                    assert (path.parent / "files" / value["path"]).is_file()
                elif isinstance(value, dict):
                    curves = {}
                    for x, name, y in json.loads((path.parent / "files" / value["path"]).read_text())["data"]:
                        points = curves.setdefault(name, {"recall": [], "precision": []})
                        points["recall"].append(x)
                        points["precision"].append(y)
                elif not key.startswith("_"):
                    value = math.nan if value == "NaN" else value
                    numbers.setdefault((key, items["_step"]), []).append(value)
    return numbers, pictures, curves


def of_mlflow(folder: Path) -> tuple[Numbers, dict[str, list[int]], dict[str, dict[str, list[float]]]]:
    """The same of the only run in the database."""
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("detector").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == folder.name
    numbers: Numbers = {}
    for key in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, key):
            numbers.setdefault((key, metric.step), []).append(metric.value)
    pictures: dict[str, list[int]] = {}
    for file in sorted((folder / "mlflow").rglob("images/*.png")):
        name, _, step, *_ = file.name.split("+")
        pictures.setdefault(name.replace("~", "/"), []).append(int(step))
    last = max((folder / "mlflow").rglob("step_*.json"), key=lambda file: int(file.stem.split("_")[1]))
    return numbers, pictures, json.loads(last.read_text())


READERS: dict[str, Callable[[Path], Any]] = {"tensorboard": of_tensorboard, "wandb": of_wandb, "mlflow": of_mlflow}


def installed() -> list[str]:
    """The tools whose package is there."""
    found = []
    for name in READERS:
        try:
            check_loggers([name])
            found.append(name)
        except ConfigError:
            pass
    return found


def of_table(folder: Path) -> Numbers:
    """The numbers of metrics.csv, in the form of the readers."""
    numbers: Numbers = {}
    for row in rows(folder):
        for key, value in row.items():
            if value and key != "step":
                numbers.setdefault((key, int(row["step"])), []).append(float(value))
    return numbers


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run: all tools, stopped in step 5 of 6 and resumed; plain: undisturbed, without a tool."""
    folder = tmp_path_factory.mktemp("loggers")
    config = write_config(folder / "tiny.yaml", draw_set(folder / "data"), save_seconds=0)
    arguments = [f"train.loggers=[{','.join(installed())}]"]
    with pytest.MonkeyPatch.context() as patch:

        def stop(step: int) -> None:
            if step == 5:
                raise Interrupted("a test", 143)

        before_steps(patch, stop)
        assert train(config, folder / "run", arguments) == 143
    assert train(config, folder / "run", [*arguments, "--resume"]) == 0
    assert train(config, folder / "plain") == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_tool_has_every_number_of_the_table_once_and_every_evaluations_pictures_and_curves(name: str, runs: Path):
    if name not in installed():
        pytest.skip(f"{name} is not installed")
    numbers, pictures, curves = READERS[name](runs / "run")
    table = of_table(runs / "run")
    assert numbers.keys() == table.keys() and len(table) > 60
    for key, values in table.items():
        if key[0] == "epoch":  # of a step and of the evaluation after it
            assert set(numbers[key]) == set(values)
        else:
            assert numbers[key] == pytest.approx(values, rel=1e-5, nan_ok=True), key
    assert pictures == {picture: [3, 6] for picture in PICTURES}
    assert set(curves) <= {"square", "disc"}
    for points in curves.values():
        recall, precision = (points[5], points[4]) if name == "tensorboard" else (points["recall"], points["precision"])
        assert all(0 <= value <= 1 for value in [*recall, *precision]) and len(recall)


@pytest.mark.slow
def test_tools_change_no_bit_of_a_training_and_a_resumed_one_continues_its_run(runs: Path):
    assert_same_training(runs / "run", runs / "plain", but="/config/train/loggers")
    ids = {path.name.rsplit("-", 1)[1] for path in (runs / "run").glob("wandb/offline-run-*")}
    assert len(ids) == ("wandb" in installed())


@pytest.mark.slow
def test_without_the_key_nothing_is_written_for_any_tool(runs: Path):
    found = {path.name for path in (runs / "plain").iterdir()}
    assert not found & {"tensorboard", "wandb", "mlflow", "mlflow.db"}


def test_a_missing_package_is_one_line_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("detector.training.loggers.PACKAGES", {"mlflow": "no_such_package"})
    config = write_config(tmp_path / "tiny.yaml", draw_set(tmp_path / "data"))
    assert train(config, tmp_path / "run", ["train.loggers=[mlflow]"]) == 2
    said = capsys.readouterr().err
    assert "train.loggers: mlflow cannot be imported" in said and "`pip install mlflow`" in said
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()
    assert script("train").main([str(config), "train.loggers=[excel]"]) == 2
    assert "train.loggers" in capsys.readouterr().err


def test_what_tensorboard_has_beyond_the_step_of_a_resumed_training_is_hidden(tmp_path: Path):
    pytest.importorskip("tensorboard")
    for step, last, loss in [(0, 5, 1.0), (3, 4, 2.0)]:
        board = Loggers(["tensorboard"], tmp_path, None, one_class=False).open(step)
        for number in range(step + 1, last + 1):
            board.write(number, {"loss": loss})
        board.close()
    assert of_tensorboard(tmp_path)[0] == {("loss", 1): [1], ("loss", 2): [1], ("loss", 3): [1], ("loss", 4): [2]}


class Failing:
    """Fails in every other call of `log`."""

    def __init__(self, folder: Path, step: int):
        self.calls: list[int] = []

    def log(self, step: int, numbers: dict[str, float], view: object) -> None:
        self.calls.append(step)
        if step < 3 or step == 4:
            raise RuntimeError("no room")

    def close(self) -> None:
        raise OSError("gone")


def test_a_tool_that_fails_is_said_once_a_streak_and_the_others_go_on(tmp_path: Path, monkeypatch, caplog):
    def unable(folder: Path, step: int) -> None:
        raise PermissionError("denied")

    failing = Failing(tmp_path, 0)
    monkeypatch.setattr("detector.training.loggers.LOGGERS", {"mlflow": unable, "wandb": lambda folder, step: failing})
    loggers = Loggers(["mlflow", "wandb", "wandb"], tmp_path, None, one_class=False).open(0)
    loggers.observe(SimpleNamespace(detections=[]))  # of which there is no view: the data set is None
    for step in range(1, 6):
        loggers.write(step, {"loss": 1.0})
    loggers.close()
    assert failing.calls == [1, 2, 3, 4, 5]
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in said] == ["mlflow", "the view of val", "wandb", "wandb", "wandb"]
    assert said[0] == "mlflow: not written (PermissionError: denied); the training goes on" and "gone" in said[4]


# --- what the tools show


def write_truth(path: Path) -> Path:
    """Two objects of class a, a crowd of class a, none of class b; an image of 100 x 100."""
    boxes = [([0, 0, 10, 10], 0), ([50, 50, 10, 10], 0), ([80, 80, 20, 20], 1)]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for n, (box, crowd) in enumerate(boxes, start=1)
    ]
    image = {"id": 1, "file_name": "a.png", "width": 100, "height": 100}
    categories = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]
    path.write_text(json.dumps({"images": [image], "annotations": annotations, "categories": categories}))
    return path


def test_right_and_wrong_detections_are_counted_at_each_threshold(tmp_path: Path):
    found = [
        ([0, 0, 10, 10], 0.9, 3),  # right
        ([0, 0, 10, 9], 0.8, 3),  # the same object again
        ([50, 50, 10, 6], 0.5, 3),  # right: IoU 0.6
        ([50, 50, 10, 4], 0.3, 3),  # IoU 0.4
        ([82, 82, 8, 8], 0.99, 3),  # in the crowd: neither
        ([20, 20, 5, 5], 0.405, 7),
    ]
    results = [{"image_id": 1, "category_id": c, "bbox": box, "score": score} for box, score, c in found]
    counts = threshold_counts(write_truth(tmp_path / "a.json"), results, [3, 7])
    a, b = counts["a"], counts["b"]
    at = {round(t * 100): i for i, t in enumerate(THRESHOLDS)}
    for percent, right, wrong in [(0, 2, 2), (30, 2, 2), (31, 2, 1), (50, 2, 1), (51, 1, 1), (81, 1, 0), (91, 0, 0)]:
        assert (a.right[at[percent]], a.wrong[at[percent]]) == (right, wrong), percent
    assert a.objects == 2 and a.precision[at[50]] == pytest.approx(2 / 3) and a.recall[at[51]] == 0.5
    assert math.isnan(a.precision[at[91]]) and a.recall[at[91]] == 0
    assert (b.objects, b.wrong[at[40]], b.wrong[at[41]]) == (0, 1, 0) and np.isnan(b.recall).all()


def test_without_results_no_object_is_found(tmp_path: Path):
    counts = threshold_counts(write_truth(tmp_path / "a.json"), [], [3])
    assert list(counts) == ["a"] and counts["a"].objects == 2 and not counts["a"].recall.any()


def test_pictures_are_of_images_across_val_with_their_boxes_and_small(tmp_path: Path):
    from PIL import Image

    from detector.data.coco import CocoDataset

    images = [{"id": n, "file_name": f"{n}.png", "width": 960, "height": 480} for n in range(1, 10)]
    for n in range(1, 10):
        Image.new("RGB", (960, 480), (10 * n,) * 3).save(tmp_path / f"{n}.png")
    one = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    document = {"images": images, "annotations": [one], "categories": [{"id": 3, "name": "a"}]}
    (tmp_path / "val.json").write_text(json.dumps(document))
    val = CocoDataset(tmp_path, tmp_path / "val.json", keep_empty=True)
    results = [{"image_id": 9, "category_id": 3, "bbox": [192, 96, 96, 192], "score": s} for s in (0.9, 0.2)]
    view = view_of(val, results, one_class=False)
    pictures = list(view.pictures.items())
    assert [name for name, _ in pictures] == [f"val/image_{n}" for n in range(1, 5)]
    assert all(picture.size == (LONGEST, LONGEST // 2) for _, picture in pictures)
    grey = [picture.getpixel((400, 200)) for _, picture in pictures]
    assert grey == [(10 * n,) * 3 for n in (1, 4, 6, 9)]
    drawn = np.asarray(pictures[3][1]) != 90
    ys, xs = drawn.any(axis=(1, 2)).nonzero()[0], drawn.any(axis=(0, 2)).nonzero()[0]
    assert xs.min() in range(93, 98) and ys.max() in range(141, 147)  # the box is 96..144 by 48..144 here
    assert not (np.asarray(pictures[0][1]) != 10).any()
    assert isinstance(view.counts["a"], ThresholdCounts)
    alone = view_of(val, [{**row, "category_id": 1} for row in results], one_class=True)
    assert alone.counts == {} and np.array_equal(alone.pictures["val/image_1"], view.pictures["val/image_1"])
