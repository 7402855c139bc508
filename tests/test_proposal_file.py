"""Proposals: the file that `detector evaluate --proposals` writes, which contents are refused, and their recall."""

import contextlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import draw_set, script, train, write_config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

import detector
from detector.data.coco import CocoDataset
from detector.data.proposal_file import FORMAT, ProposalFile, pack
from detector.data.settings import build_dataset
from detector.errors import DataError
from detector.evaluation.proposals import proposal_recall
from detector.structures import Proposals

IDS, NAMES, SIZES = [7, 3, 5], ["i/a.png", "i/b.png", "i/c.png"], [(60, 80), (30, 40), (10, 20)]
ROWS = [
    Proposals(torch.tensor([[1.0, 2, 30, 40], [5, 5, 90, 70]]), torch.tensor([2.0, -1.0])),
    Proposals(torch.zeros(0, 4), torch.zeros(0)),
    Proposals(torch.tensor([[0.0, 0, 20, 10]]), torch.tensor([0.5])),
]


def content(**changes: object) -> dict:
    return pack(IDS, NAMES, SIZES, ROWS) | changes


def save(path: Path, **changes: object) -> Path:
    torch.save({key: value for key, value in content(**changes).items() if value is not None}, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> ProposalFile:
    return ProposalFile(save(tmp_path / "p.pth"))


def check(file: ProposalFile, ids: list[int], names: list[str], sizes: list[tuple[int, int]]) -> None:
    file.check(np.array(ids), names, np.array(sizes), Path("a.json"))


def test_it_is_a_few_flat_tensors_also_of_no_images(tmp_path: Path):
    found = content()
    assert found.pop("format") == FORMAT and all(isinstance(value, Tensor) for value in found.values())
    assert {key: (value.dtype, list(value.shape)) for key, value in found.items()} == {
        "image_ids": (torch.int64, [3]), "names": (torch.int64, [3]), "sizes": (torch.int64, [3, 2]),
        "ends": (torch.int64, [3]), "boxes": (torch.float32, [3, 4]), "scores": (torch.float32, [3]),
    }  # fmt: skip
    assert found["ends"].tolist() == [2, 2, 3]
    torch.save(pack([], [], [], []), tmp_path / "p.pth")
    ProposalFile(tmp_path / "p.pth").check(np.zeros(0, np.int64), [], np.zeros((0, 2), np.int64), Path("a.json"))


def test_every_image_gets_its_own_back_and_what_lies_outside_is_dropped(file: ProposalFile, tmp_path: Path):
    for image_id, rows in zip(IDS[1:], ROWS[1:]):
        assert torch.equal(file[image_id].boxes, rows.boxes) and torch.equal(file[image_id].scores, rows.scores)
    assert file[7].boxes.tolist() == [[1, 2, 30, 40], [5, 5, 80, 60]]  # clipped to 80 x 60
    check(file, IDS, NAMES, SIZES)
    check(file, IDS[::-1], NAMES[::-1], SIZES[::-1])
    check(file, [5], ["i/c.png"], [(10, 20)])  # of a part of the images
    boxes = torch.tensor([[-5.0, -5, 10, 10], [80, 0, 99, 9], [3, 3, 3, 9], [9, 9, 3, 30], [0, 0, 80, 60]])
    rows = [Proposals(boxes, torch.arange(5.0)), *ROWS[1:]]
    found = ProposalFile(save(tmp_path / "q.pth", **pack(IDS, NAMES, SIZES, rows)))[7]
    assert found.boxes.tolist() == [[0, 0, 10, 10], [0, 0, 80, 60]] and found.scores.tolist() == [0, 4]
    file[7].boxes.fill_(0)
    assert file[7].boxes.max() == 80
    sent = pickle.dumps(file)
    assert len(sent) < 300 and torch.equal(pickle.loads(sent)[7].boxes, file[7].boxes)


def test_the_proposals_of_other_images_are_named(file: ProposalFile):
    b, three = "i/b.png", ["i/b.png", "i/x.png", "i/y.png"]
    for ids, names, sizes, message in (
        ([3, 4, 6], three, [(30, 40)] * 3, r"has no proposals for image id 4 \(2 of the 3"),
        ([8], ["i/a.png"], [(60, 80)], "no proposals for image id 8 "),
        ([7, 3], ["i/a.png", b], [(60, 80), (40, 30)], r"image id 3 is not i/b\.png, 30 x 40, of a\.json \(1 of 2"),
        ([7, 3], ["j/a.png", b], SIZES[:2], r"image id 7 is not j/a\.png, 80 x 60, .* another split or data set"),
    ):
        with pytest.raises(DataError, match=rf"p\.pth: .*{message}"):
            check(file, ids, names, sizes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not a file of proposals"),
        ({"boxes": None}, r"`boxes` must be a tensor \(R, 4\) of torch.float32"),
        ({"boxes": torch.zeros(3, 5)}, "`boxes` must be"),
        ({"boxes": torch.zeros(3, 4).double()}, "`boxes` must be"),
        ({"boxes": torch.zeros(4, 4)}, "do not belong together"),
        ({"scores": torch.zeros(())}, r"`scores` must be a tensor \(R\)"),
        ({"scores": [1.0, 2.0, 3.0]}, "`scores` must be"),
        ({"ends": torch.tensor([2, 1, 3])}, "do not belong together"),
        ({"ends": torch.tensor([2, 2, 4])}, "do not belong together"),
        ({"ends": torch.tensor([2, 3])}, "do not belong together"),
        ({"image_ids": torch.tensor([7, 3, 7])}, "an image id occurs twice"),
    ],
)
def test_damage_is_named(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(DataError, match=rf"p\.pth: .*{message}"):
        ProposalFile(save(tmp_path / "p.pth", **changes))


@pytest.mark.parametrize("name", ["boxes", "scores"])
def test_a_number_that_is_none_is_named_with_its_image(tmp_path: Path, name: str):
    column = content()[name].clone()
    column[1] = float("nan")
    file = ProposalFile(save(tmp_path / "p.pth", **{name: column}))
    assert len(file[5].boxes) == 1
    with pytest.raises(DataError, match=r"p\.pth: a proposal of image id 7 is not finite"):
        file[7]


def test_code_is_not_run_and_changed_bytes_are_noticed(tmp_path: Path):
    for name, data in (("text.pth", b"no file"), ("pickle.pth", pickle.dumps(Path("x"))), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}: damaged, or holds more than plain tensors"):
            ProposalFile(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match=r"list\.pth: is not a file of proposals"):
        ProposalFile(tmp_path / "list.pth")
    with pytest.raises(DataError, match=r"none\.pth: no such file of proposals"):
        ProposalFile(tmp_path / "none.pth")
    content = save(tmp_path / "p.pth").read_bytes()
    box = ROWS[0].boxes[0].numpy().tobytes()
    assert content.count(box) == 1
    (tmp_path / "p.pth").write_bytes(content.replace(box, box[::-1]))
    with pytest.raises(DataError, match=r"p\.pth: damaged"):
        ProposalFile(tmp_path / "p.pth")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny set, with an image without objects to train on."""
    folder = draw_set(tmp_path_factory.mktemp("data"))
    document = json.loads((folder / "train.json").read_text())
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] != 12]
    (folder / "train.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert train(write_config(folder / "tiny.yaml", data), folder / "run", ["train.epochs=1"]) == 0
    return folder / "run" / "best.pth"


def write(checkpoint: Path, path: Path, *more: str) -> int:
    return script("evaluate").main([str(checkpoint), "--trust", "--device", "cpu", "--proposals", str(path), *more])


def test_the_proposals_of_every_image_are_written(checkpoint: Path, data: Path, tmp_path: Path, capsys):
    before = sorted(checkpoint.parent.iterdir())
    assert write(checkpoint, tmp_path / "new/p.pth", "--split", "train") == 0
    assert sorted(checkpoint.parent.iterdir()) == before and [p.name for p in (tmp_path / "new").iterdir()] == ["p.pth"]
    dataset = CocoDataset(data / "images", data / "train.json", proposals=tmp_path / "new/p.pth")
    assert dataset.image_ids.tolist() == [10, 11, 12, 13, 14, 15]  # the one without objects, too
    predictor = detector.load(checkpoint, trust=True, device="cpu")
    boxes = {}
    for i, image_id in enumerate(dataset.image_ids.tolist()):
        image, found = dataset.image(i), dataset.target(i).proposals
        expected = predictor.detect([predictor.prepare(image)], [tuple(image.shape[1:])])[0].proposals
        assert 0 < len(found.boxes) <= 50 and (found.scores.diff() <= 0).all()
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-3)
        boxes[image_id] = found.boxes
    recall = proposal_recall(data / "train.json", boxes)
    printed = capsys.readouterr().out
    assert "proposals for 6 images" in printed and f"{recall['AR1000']:.6f}" in printed and "bbox" not in printed


def test_a_file_is_never_written_over(checkpoint: Path, tmp_path: Path, capsys):
    for name in ("p.pth", "folder", "link"):
        path = tmp_path / name
        path.write_text("mine") if name == "p.pth" else path.mkdir() if name == "folder" else path.symlink_to("gone")
        assert write(checkpoint, path) == 2
        assert f"{name}: exists already" in capsys.readouterr().err
    assert (tmp_path / "p.pth").read_text() == "mine"
    assert write(checkpoint, tmp_path / "p.pth/deep/q.pth") == 2
    error = capsys.readouterr().err
    assert "p.pth is no folder" in error and "name another file" in error and "--output" not in error


def test_a_stop_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.save", stopped)
    assert write(checkpoint, tmp_path / "p.pth") == 130
    assert list(tmp_path.iterdir()) == []


def test_it_is_what_a_detector_without_an_rpn_takes(checkpoint: Path, data: Path, tmp_path: Path):
    """RPN -> two files -> a training on them, whose proposals score as the RPN's do."""
    for split in ("train", "val"):
        assert write(checkpoint, tmp_path / f"{split}.pth", "--split", split) == 0
    given = [f"data.{split}.proposals={tmp_path / split}.pth" for split in ("train", "val")]
    config = write_config(tmp_path / "tiny.yaml", data)
    assert train(config, tmp_path / "run", ["model.rpn=precomputed", *given, "train.epochs=1"]) == 0
    scores = []
    for path in (checkpoint, tmp_path / "run/best.pth"):
        arguments = [str(path), "--trust", "--device", "cpu", "--output", str(tmp_path / "out")]
        assert script("evaluate").main(arguments) == 0
        scores.append(json.loads((tmp_path / "out/metrics.json").read_text())["proposals"])
    assert scores[0] == pytest.approx(scores[1])
    keep_empty = detector.load_config(config, ["model.rpn=precomputed", *given, "data.keep_empty=true"])
    assert len(build_dataset(keep_empty.data, "train")) == 6


METRICS = [f"AR{limit}{size}" for limit in (100, 1000) for size in ("", "s", "m", "l")]


def write_truth(path: Path, boxes: dict[int, list[list[float]]], crowd: int = 0, category: int = 1) -> Path:
    """An annotation file of xywh boxes by image id; the first `crowd` of all are crowds."""
    flat = [(image, box) for image, there in boxes.items() for box in there]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 1000, "height": 1000} for i in boxes],
        "categories": [{"id": 1, "name": "cell"}, {"id": category, "name": "other"}][: 1 + (category != 1)],
        "annotations": [
            {"id": i, "image_id": image, "bbox": box, "area": box[2] * box[3], "iscrowd": int(i <= crowd)}
            | {"category_id": category if i % 2 else 1}
            for i, (image, box) in enumerate(flat, start=1)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def oracle(annotations: Path, proposals: dict[int, Tensor]) -> dict[str, float]:
    """The same by pycocotools alone."""
    results = [
        {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1 - rank / 1e4}
        for image, boxes in proposals.items()
        for rank, (x1, y1, x2, y2) in enumerate(boxes.tolist())
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [100, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"]  # (T, 1, areas, limits)
    means = recall.mean(axis=(0, 1)).T.ravel()
    return dict(zip(METRICS, means.tolist()))


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(tmp_path: Path, seed: int) -> None:
    """Crowds, two classes, objects on the borders between sizes, crowded images, more than 1000 proposals."""
    rng = np.random.default_rng(seed)
    objects, proposals = {}, {}
    for image, (g, r) in enumerate([(12, 1100), (3, 40), (0, 20), (5, 0), (30, 300)], start=1):
        corner = rng.integers(0, 150, (g, 2))
        size = rng.choice([8, 16, 32, 48, 96, 130], (g, 2))
        xywh = np.concatenate([corner, size], axis=1).astype(float)
        objects[image] = xywh.tolist()
        near = xywh[rng.integers(0, g, r)] if g else rng.integers(1, 100, (r, 4)).astype(float)
        near = near + rng.integers(-8, 9, (r, 4)) * rng.integers(0, 2, (r, 1))  # many are exact or tied
        xyxy = np.concatenate([near[:, :2], near[:, :2] + near[:, 2:].clip(1)], axis=1)
        proposals[image] = torch.from_numpy(xyxy).float()
    annotations = write_truth(tmp_path / "a.json", objects, crowd=5, category=9)
    expected = oracle(annotations, proposals)
    assert 0.2 < expected["AR100"] < expected["AR1000"] <= 1  # the case is not trivial
    assert proposal_recall(annotations, proposals) == pytest.approx(expected, abs=1e-12)


def test_only_the_chosen_classes_and_images_count_and_nothing_is_none(tmp_path: Path) -> None:
    annotations = write_truth(
        tmp_path / "a.json", {1: [[0, 0, 10, 10], [50, 50, 10, 10]], 2: [[0, 0, 10, 10]]}, category=9
    )
    found = {1: torch.tensor([[50.0, 50.0, 60.0, 60.0]])}
    assert proposal_recall(annotations, found)["AR100"] == pytest.approx(0.5)
    assert proposal_recall(annotations, found, [1])["AR100"] == pytest.approx(1)
    assert proposal_recall(annotations, found, [9])["AR100"] == 0
    annotations = write_truth(tmp_path / "a.json", {1: [[0, 0, 10, 10]], 2: []})
    none = torch.zeros(0, 4)
    missed = proposal_recall(annotations, {1: none, 2: none})
    assert missed["AR100"] == missed["AR1000s"] == 0 and missed["AR100l"] == -1
    assert set(proposal_recall(annotations, {2: torch.ones(3, 4)}).values()) == {-1}
    assert set(proposal_recall(annotations, {}).values()) == {-1}
