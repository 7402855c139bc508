"""`detector evaluate` and `detector infer` on several processes: the files of one, to the last bit, and one message."""

import contextlib
import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from helpers.processes import run_processes
from helpers.tiny import CONFIG, built, picture, tiny_model
from helpers.training import draw_split, script, write_json
from PIL import Image

from detector.checkpoint import save_checkpoint
from detector.config.inherit import merge
from detector.distributed import processes, rank

CLASSES = {"square": 3, "disc": 7, "ring": 90}
SPLITS = {"val": 5, "train": 1, "test": 4}  # images; of train some processes have none, the last of test is broken
ODD = {"column.png": (1200, 1), "dot.png": (1, 1), "row.png": (1, 1200), "small.png": (9, 7)}  # (h, w)
COMMANDS = {  # by what they show; $DATA and $OUT are folders
    "whole": "evaluate $DATA/whole.pth --output $OUT/whole",
    "workers": "evaluate $DATA/whole.pth --output $OUT/workers data.workers=1",
    "views": "evaluate $DATA/whole.pth --output $OUT/views --tta",
    "one image": "evaluate $DATA/whole.pth --output $OUT/one --split train",
    "odd sizes": "evaluate $DATA/whole.pth --output $OUT/odd --split test data.test.images=odd data.test.annotations=odd.json",
    "no detections": "evaluate $DATA/blind.pth --output $OUT/blind",
    "rpn alone": "evaluate $DATA/rpn.pth --output $OUT/rpn",
    "file of proposals": "evaluate $DATA/rpn.pth --proposals $OUT/proposals.pth",
    "on proposals": "evaluate $DATA/fast.pth --output $OUT/fast",
    "pictures": "infer $DATA/whole.pth $DATA/odd $DATA/images/val* --output $OUT/pictures --score 0.1 --batch 2",
    "one picture": "infer $DATA/whole.pth $DATA/odd/dot.png --output $OUT/dot --score 0.1",
    "broken picture": "infer $DATA/whole.pth $DATA/images --output $OUT/broken --batch 1",
    "broken image": "evaluate $DATA/whole.pth --output $OUT/no --split test",
    "no checkpoint": "evaluate $DATA/none.pth --output $OUT/no",
    "no folder": "evaluate $DATA/whole.pth --output $DATA/val.json",
    "own file": "evaluate $DATA/rpn.pth --proposals $DATA/given.pth",
    "no path": "infer $DATA/whole.pth $DATA/none --output $OUT/no",
    "no place": "infer $DATA/whole.pth $DATA/odd --output $DATA/full --batch 1",
    "wrong option": "infer $DATA/whole.pth $DATA/odd --no-such-option",
}
ERRORS = {
    "broken picture": "1 of 10 images could not be read, see above",
    "broken image": "test3.png: not a readable image",
    "no checkpoint": "none.pth: no such checkpoint",
    "no folder": "val.json: cannot be made",
    "own file": "given.pth: exists already",
    "no path": "none: no such file or folder",
    "no place": "row.png: cannot be written",
    "wrong option": "the following arguments are required: --output",
}
SOME = ["whole", "broken image"]


@dataclass
class Said:
    """What one command came to, in one process."""

    status: int
    out: str
    err: str


def run_command(line: str, data: Path, output: Path) -> Said:
    name, *arguments = line.replace("$DATA", str(data)).replace("$OUT", str(output)).split()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = script(name).main(arguments)
        except SystemExit as stop:
            status = stop.code
    return Said(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three splits, odd pictures, and four detectors: whole, one that finds nothing, an RPN and a head alone."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in SPLITS.items():
        draw_split(folder, split, count, CLASSES)
    (folder / "images" / "test3.png").write_bytes(b"no image")
    (folder / "odd").mkdir()
    for seed, (name, (height, width)) in enumerate(ODD.items()):
        Image.fromarray(picture(height, width, seed).permute(1, 2, 0).numpy()).save(folder / "odd" / name)
    images = [{"id": i, "file_name": name, "height": h, "width": w} for i, (name, (h, w)) in enumerate(ODD.items())]
    categories = json.loads((folder / "val.json").read_text())["categories"]
    write_json(folder / "odd.json", {"images": images, "annotations": [], "categories": categories})
    (folder / "full" / "row.png").mkdir(parents=True)  # where a picture should go
    write_json(folder / "full" / "detections.json", [])  # of an earlier run
    save_detectors(folder)
    assert run_command("evaluate $DATA/rpn.pth --proposals $DATA/given.pth", folder, folder).status == 0
    return folder


def save_detectors(folder: Path) -> None:
    settings = {name: {"images": "images", "annotations": f"{name}.json"} for name in SPLITS}
    settings |= {"root": str(folder), "workers": 0, "resize": {"short": 64, "long": 200}, "tta": {"scales": [1]}}
    given = {"val": {"proposals": "given.pth"}, "train": {"proposals": "given.pth"}}
    changes = {"whole": {}, "blind": {}, "rpn": {"roi_head": "none"}, "fast": {"rpn": "precomputed"}}
    for name, change in changes.items():
        config = merge(CONFIG, {"model": change, "data": merge(settings, given) if name == "fast" else settings})
        model = tiny_model() if name == "whole" else built(config)
        if name == "blind":
            torch.nn.init.constant_(model.roi_head.stage.class_score.bias[-1:], 1e4)  # all is background
        names, ids = list(CLASSES), list(CLASSES.values())
        save_checkpoint(folder / f"{name}.pth", model=model, config=config, class_names=names, category_ids=ids)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def one_thread():
    """As in every process: the last bit of a sum depends on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "names"), [(2, SOME), (3, list(COMMANDS))], ids=["two", "three"])
def test_several_processes_do_what_one_does(data: Path, tmp_path: Path, one_thread: None, count: int, names: list[str]):
    alone = [run_command(COMMANDS[name], data, tmp_path / "alone") for name in names]
    run = run_processes(Path(__file__), data, tmp_path, *names, count=count)
    assert run.returncode == 0, run.stderr
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    first, *others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(count))
    for number, name in enumerate(names):
        expected = asdict(alone[number])
        assert first[number]["status"] == expected["status"] == (2 if name in ERRORS else 0), (name, first[number])
        assert first[number]["out"].replace("/shared", "/alone") == expected["out"]
        if name in ERRORS:
            *_, last = first[number]["err"].splitlines()
            assert ERRORS[name] in last and first[number]["err"].count("error: ") == 1
        assert first[number]["err"].count("skipped: ") == (name == "broken picture")
        for other in others:
            assert other[number] == {"status": expected["status"], "out": "", "err": ""}


if __name__ == "__main__":  # one of several processes
    data, output, *names = sys.argv[1:]
    with processes(torch.device("cpu")):
        said = [asdict(run_command(COMMANDS[name], Path(data), Path(output, "shared"))) for name in names]
        write_json(Path(output, f"{rank()}.json"), said)
