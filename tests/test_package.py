"""The wheel: built, installed beside the present dependencies, and used as a tool in an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import detector
from detector.config.config import build_detector, load_config
from detector.config.inherit import shipped_configs
from detector.interop.torchvision import TORCHVISION

ROOT = Path(__file__).parents[1]
OWN = {
    "_base_": "detector://shapes_r18_fpn.yaml",
    "model": {
        "backbone": {"width": 8},
        "neck": {"width": 16},
        "rpn": {"selection": {"pre_nms": [50, 50], "post_nms": [50, 50]}},
        "roi_head": {"box_head": {"width": 16}, "sampling": {"batch_per_image": 16}},
    },
    "data": {"resize": {"short": 64, "long": 96}, "workers": 0},
    "train": {"epochs": 1, "batch_size": 4, "evaluate_every": 1, "device": "cpu"},
}


def run(command: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """A process that knows neither this checkout nor the caller's settings; it must succeed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))} | {
        "OMP_NUM_THREADS": "1"
    }
    done = subprocess.run(list(map(str, command)), cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout by the backend of the `test` extra, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", folder]
    run([sys.executable, "-m", "pip", "wheel", "--quiet", *options, ROOT], folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment with the wheel; it sees the packages of the present one by a .pth file.

    A .pth file does not read the .pth files of the folder that it adds: the editable install of this checkout stays out.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    base = {"base": str(home), "platbase": str(home)}
    library = Path(sysconfig.get_path("purelib", "venv", vars=base))
    (library / "present.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    target = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    programs = Path(sysconfig.get_path("scripts", "venv", vars=base))
    run([sys.executable, "-m", "pip", "--python", programs / "python", "install", *target, wheel], home)
    return programs


def test_the_wheel_holds_the_package_its_types_and_every_configuration(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {f"detector/configs/{path.relative_to(shipped_configs())}" for path in shipped_configs().rglob("*.yaml")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "detector").rglob("*.py")}
    pages = {f"detector/browse/page.{kind}" for kind in ("html", "css", "js")} | {"detector/insight/report.css"}
    assert configs | modules | pages | {"detector/py.typed"} == {name for name in names if name.startswith("detector/")}
    metadata = zipfile.ZipFile(wheel).read(f"detector-{detector.__version__}.dist-info/METADATA").decode()
    for line in ("License-Expression: Apache-2.0", "Requires-Python: >=3.10", "Provides-Extra: safetensors"):
        assert line in metadata.splitlines()


@pytest.mark.slow
def test_the_installed_command_works_in_an_empty_folder(installed: Path, tmp_path: Path):
    command = installed / "detector"
    place = run([installed / "python", "-c", "import detector; print(detector.__file__)"], tmp_path).stdout
    assert Path(place.strip()).is_relative_to(installed.parent)
    for version in ([command], [installed / "python", "-m", "detector"]):
        assert run([*version, "--version"], tmp_path).stdout == f"detector {detector.__version__}\n"
    run([command, "make-shapes", "--train", 8, "--val", 2, "--size", 96, 64, "data/shapes"], tmp_path)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(OWN))
    run([command, "train", "own.yaml", "--output", "run"], tmp_path)
    run([command, "evaluate", "run/best.pth", "--output", "scores"], tmp_path)
    assert set(json.loads((tmp_path / "scores/metrics.json").read_text())) == {"bbox", "per_class", "proposals"}
    run([command, "infer", "run/best.pth", "data/shapes/images/val", "--output", "found"], tmp_path)
    assert len(list((tmp_path / "found").glob("*.*g"))) == 2
    assert "detector://shapes_r18_fpn.yaml" in run([command, "config", "own.yaml"], tmp_path).stdout


@pytest.mark.slow
def test_the_installed_command_recognises_weights_by_its_configurations(installed: Path, tmp_path: Path):
    config = load_config("detector://compat/torchvision_fasterrcnn_resnet50_fpn.yaml", ["model.num_classes=2"])
    torch.save(TORCHVISION.export_state(build_detector(config, pretrained=False).state_dict()), tmp_path / "theirs.pth")
    convert = [installed / "detector", "convert-weights", "theirs.pth", "--from", "auto", "--output", "ours.pth"]
    assert "torchvision_fasterrcnn_resnet50_fpn" in run(convert, tmp_path).stdout
    assert (tmp_path / "ours.pth").exists()


def test_an_editable_install_is_found_from_the_folder_above_the_checkout(tmp_path: Path):
    """A folder `detector` without __init__.py is a namespace; a .pth file takes precedence, an import hook would not."""
    build = "import sys, hatchling.build; hatchling.build.build_editable(sys.argv[1])"
    run([sys.executable, "-c", build, tmp_path], ROOT)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "site")
    (tmp_path / "above").mkdir()
    (tmp_path / "above/detector").symlink_to(ROOT)
    code = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import detector; print(detector.__version__)"
    assert run([sys.executable, "-S", "-c", code], tmp_path / "above").stdout == f"{detector.__version__}\n"
