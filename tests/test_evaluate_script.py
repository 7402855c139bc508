"""`detector evaluate`: what it prints, writes and refuses."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import detector
from detector.cli import evaluate as command
from detector.config.config import parse_config
from detector.errors import CheckpointError, DataError

TRUTH = {
    "images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 100}], "categories": [{"id": 3, "name": "cell"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 40]}],
}  # fmt: skip
FOUND = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 40], "score": 0.5}]
METRICS = {
    "bbox": dict.fromkeys("AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split(), 0.25),
    "per_class": {"cell": {"AP": 0.25, "AP50": 0.75}},
    "proposals": {f"AR{n}{size}": 0.125 for n in (100, 1000) for size in ("", "s", "m", "l")},
}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """--detections and --annotations of a perfect result."""
    (tmp_path / "found.json").write_text(json.dumps(FOUND))
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    return ["--detections", str(tmp_path / "found.json"), "--annotations", str(tmp_path / "truth.json")]


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A checkpoint and a data set that cost nothing; gathers what the command asked them for."""
    asked: dict[str, object] = {}
    truth = tmp_path_factory.mktemp("data") / "truth.json"
    truth.write_text(json.dumps(TRUTH))
    split = {"images": "images", "annotations": "a.json"}
    config = parse_config({"data": {"root": ".", "train": split, "val": split, "workers": 0}}, trust=False)
    model = SimpleNamespace(reports_proposals=False)
    predictor = SimpleNamespace(config=config, class_names=["cell"], model=model, pose=None)

    def load(path: Path, trust: bool, overrides: list[str], **how: str) -> SimpleNamespace:
        if not path.exists():
            raise CheckpointError(f"{path}: no such checkpoint")
        asked.update(overrides=overrides, trust=trust)
        return predictor

    def build_dataset(data: object, split: str, class_names: list[str]) -> SimpleNamespace:
        asked.update(split=split, class_names=class_names, keep_empty=data.keep_empty)
        return SimpleNamespace(report="1 image", annotation_file=truth, category_ids=[3])

    def evaluate(predictor: object, dataset: object, workers: int, scoring: object) -> tuple[dict, list]:
        asked.update(workers=workers)
        return METRICS, FOUND

    monkeypatch.setattr(detector, "load", load)
    monkeypatch.setattr("detector.workflows.build_dataset", build_dataset)
    monkeypatch.setattr("detector.workflows.scoring.evaluate_predictor", evaluate)
    return asked


def test_results_file_is_scored(files: list[str], tmp_path: Path, capsys) -> None:
    assert command.main([*files]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[0] == "AP" and "cell" in out and "proposals" not in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found.json", "truth.json"]  # nothing is written unasked
    assert command.main([*files, "--output", str(tmp_path / "new")]) == 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["metrics.json"]
    metrics = json.loads((tmp_path / "new/metrics.json").read_text())
    assert metrics["bbox"]["AP"] == pytest.approx(1) and metrics["per_class"]["cell"]["AP50"] == pytest.approx(1)


def test_checkpoint_is_evaluated_beside_itself_or_into_a_folder_that_is_tried_first(faked, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    (tmp_path / "best.pth").write_bytes(b"weights")
    assert command.main([str(tmp_path / "best.pth"), "data.root=there", "--split", "test", "data.workers=0"]) == 0
    expected = {"overrides": ["data.root=there", "data.workers=0"], "split": "test", "class_names": ["cell"]}
    assert faked == expected | {"workers": 0, "trust": False, "keep_empty": True}
    assert json.loads((tmp_path / "metrics.json").read_text()) == METRICS
    assert json.loads((tmp_path / "detections.json").read_text()) == FOUND
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pth", "detections.json", "metrics.json"]
    printed = capsys.readouterr()
    assert "AR1000" in printed.out and "1 image" in caplog.text
    (tmp_path / "best.pth").write_bytes(b"weights")
    assert command.main([str(tmp_path / "best.pth"), "--output", str(tmp_path / "a/b")]) == 0
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == ["detections.json", "metrics.json"]
    faked.clear()
    assert command.main([str(tmp_path / "best.pth"), "--output", str(tmp_path / "best.pth")]) == 2
    assert "workers" not in faked  # refused before the long part
    assert (tmp_path / "best.pth").read_bytes() == b"weights"


def test_numbers_survive_a_failed_write(faked: dict, tmp_path: Path, monkeypatch, capsys) -> None:
    def full(path: Path, text: str) -> None:
        raise DataError(f"{path}: cannot be written (the disk is full)")

    monkeypatch.setattr("detector.workflows.write_text", full)
    (tmp_path / "best.pth").write_bytes(b"weights")
    assert command.main([str(tmp_path / "best.pth")]) == 2
    printed = capsys.readouterr()
    assert "0.250000" in printed.out and "metrics.json: cannot be written" in printed.err


def test_files_survive_a_reader_who_goes_away(faked: dict, tmp_path: Path, monkeypatch) -> None:
    """As with `detector evaluate ... | head -2`."""

    def closed(*texts: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    (tmp_path / "m.pth").touch()
    command.main([str(tmp_path / "m.pth"), "--output", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out/detections.json").read_text()) == FOUND
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == METRICS


@pytest.mark.parametrize("name", ["metrics.json", "detections.json"])
@pytest.mark.parametrize("content", ['{"mine": 1}', '[{"file_name": "a.png", "image_id": 1}]', "", None])
def test_foreign_files_are_not_written_over(faked, tmp_path, name, content, capsys):
    """Of other content, or, where there is none, a folder of that name."""
    (tmp_path / "best.pth").write_bytes(b"weights")
    assert command.main([str(tmp_path / "best.pth")]) == 0
    assert command.main([str(tmp_path / "best.pth")]) == 0  # its own files it may
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_text(content)
    faked.clear()
    assert command.main([str(tmp_path / "best.pth")]) == 2
    assert f"{name}: not of an earlier run" in capsys.readouterr().err and "workers" not in faked
    assert content is None or (tmp_path / name).read_text() == content


def test_results_of_somebody_else_are_not_ours_because_they_look_alike(faked, files, tmp_path):
    (tmp_path / "best.pth").write_bytes(b"weights")
    (tmp_path / "detections.json").write_text(json.dumps(FOUND))  # but there is no metrics.json beside it
    assert command.main([str(tmp_path / "best.pth")]) == 2
    assert command.main([*files, "--output", str(tmp_path)]) == 0  # which writes metrics.json alone
    (tmp_path / "metrics.json").write_text("{}")
    assert command.main([*files, "--output", str(tmp_path)]) == 2


def test_a_wrong_command_line_and_bad_input_are_one_message(capsys, files, faked, tmp_path):
    for arguments, message in [
        ([], "give either"), (["--detections", "a.json"], "go together"),
        (["best.pth", "--detections", "a.json", "--annotations", "b.json"], "give either"),
        (["best.pth", "--no-such-option"], "--no-such-option"),
        (["--detections", "a.json", "--annotations", "b.json", "--proposals", "p.pth"], "--proposals FILE goes"),
        (["best.pth", "--proposals", "p.pth", "--output", "out"], "--proposals FILE goes"),
    ]:  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert command.main([str(tmp_path / "none.pth")]) == 2
    assert command.main([files[0], str(tmp_path / "none.json"), *files[2:]]) == 2
    assert command.main([*files[:3], files[1]]) == 2  # the results given as annotations
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 3
    assert "none.pth" in lines[0] and "none.json" in lines[1]
    assert "found.json: `images` is missing or is not a list" in lines[2]
