"""Published detectors by name, from files of random weights in a cache of their own: nothing is downloaded but by file://."""

import hashlib
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from helpers.golden_rules import PROJECT
from helpers.tiny import assert_same_detections, picture
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)

import detector
from detector.cli.evaluate import parse
from detector.config.config import build_detector, load_config
from detector.errors import CheckpointError
from detector.inference.predictor import Predictor
from detector.interop import fetch
from detector.interop.published import PUBLISHED, Published
from detector.interop.recognise import blank_state
from detector.interop.torchvision import TORCHVISION
from detector.training.run import _start_from

NAME = "torchvision/fasterrcnn_resnet50_fpn_v2"
SMALL = ("model.backbone.depth=18", "model.neck.width=16", "model.roi_head.box_head.width=16", "model.num_classes=2",
         "data.resize.short=64", "data.resize.long=96")  # fmt: skip


class Cache:
    """A cache in which the published file of NAME is a small one of random weights."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.patch, self.source = patch, folder / "elsewhere" / "v2-12345678.pth"
        self.file = folder / "torch/hub/checkpoints" / self.source.name
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        patch.setattr(torch.hub, "_hub_dir", None)
        self.source.parent.mkdir()
        self.write(seed=0)

    def write(self, seed: int) -> None:
        """The published file, and its SHA-256 in the table."""
        torch.manual_seed(seed)
        config = load_config(PUBLISHED[NAME].config, SMALL)
        self.model = build_detector(config, pretrained=False)
        torch.save(TORCHVISION.export_state(self.model.state_dict()), self.source)
        self.expected = Predictor(self.model, config, ["a", "b"], [1, 2], device="cpu")
        sha256 = hashlib.sha256(self.source.read_bytes()).hexdigest()
        compat = "torchvision_fasterrcnn_resnet50_fpn_v2"
        self.patch.setitem(PUBLISHED, NAME, Published(self.source.as_uri(), compat, sha256[:8], SMALL))

    def put(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.source, self.file)

    def converted(self) -> list[Path]:
        return sorted((self.file.parents[1] / "detector").glob("*"))

    def disconnect(self) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise URLError("no network")

        self.patch.setattr(torch.hub, "urlopen", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    return Cache(tmp_path, monkeypatch)


def test_a_name_is_fetched_checked_converted_once_and_kept(cache: Cache):
    found = detector.load(NAME, device="cpu")
    assert cache.file.read_bytes() == cache.source.read_bytes()
    assert_same_detections(found(picture(64, 96)), cache.expected(picture(64, 96)))
    assert found.class_names == ["class 1", "class 2"]
    (kept,) = cache.converted()
    assert re.fullmatch(r"torchvision-fasterrcnn_resnet50_fpn_v2-[0-9a-f]{8}\.pth", kept.name)
    written = kept.stat().st_mtime_ns
    cache.file.unlink()
    cache.disconnect()
    assert fetch.checkpoint_file(Path(NAME)) == kept and kept.stat().st_mtime_ns == written  # no file, no network
    cache.put()
    os.utime(cache.file, (kept.stat().st_mtime + 9,) * 2)  # another file
    assert fetch.checkpoint_file(NAME) == kept and kept.stat().st_mtime_ns > written
    cache.patch.setattr(fetch, "__version__", "9.9")
    assert fetch.checkpoint_file(NAME) != kept and len(cache.converted()) == 2
    cache.write(seed=1)
    with pytest.raises(CheckpointError, match="not the published file"):  # a table with another SHA-256
        detector.load(NAME)


def test_without_a_network_the_message_says_which_file_belongs_where(cache: Cache):
    cache.disconnect()
    with pytest.raises(CheckpointError) as caught:
        detector.load(NAME)
    text, model = str(caught.value), PUBLISHED[NAME]
    assert text.startswith(f"{NAME}: could not be downloaded") and "no network" in text and len(model.sha256) == 8
    assert model.url in text and str(cache.file) in text and f"SHA-256 begins with {model.sha256}" in text
    assert cache.converted() == []
    cache.put()
    assert len(detector.load(NAME, device="cpu").class_names) == 2


def test_another_file_is_refused_before_it_is_read(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "import_weights", lambda *_: pytest.fail("it was read"))
    cache.put()
    cache.file.write_bytes(cache.file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{cache.file}: not the published file of {NAME}, whose .* Remove it"):
        detector.load(NAME)
    cache.file.unlink()
    cache.source.write_bytes(b"<html>404</html>")
    with pytest.raises(CheckpointError, match=r"could not be downloaded \(invalid hash value"):
        detector.load(NAME)
    assert not cache.file.exists() and cache.converted() == []


def test_paths_are_paths_and_a_misspelt_name_is_told(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CheckpointError, match=rf"did you mean {NAME}\?"):
        detector.load("torchvision/fasterrcnn_resnet50_fpn_v3")
    with pytest.raises(CheckpointError, match=r"gone/best\.pth: no such checkpoint$"):
        detector.load("gone/best.pth")
    assert fetch.is_published(NAME)
    monkeypatch.chdir(tmp_path)
    Path(NAME).parent.mkdir()
    Path(NAME).write_bytes(b"")
    assert not fetch.is_published(NAME) and fetch.checkpoint_file(NAME) == Path(NAME)


def test_a_training_starts_from_one_and_an_evaluation_asks_where_to_write(cache, capsys):
    fresh = build_detector(load_config(PUBLISHED[NAME].config, SMALL), pretrained=False)
    line = _start_from(Path(NAME), fresh, SimpleNamespace(class_names=["class 1", "class 2"]))
    assert line.startswith(f"{NAME}: all ") and "tensors loaded" in line
    for key, tensor in cache.model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], tensor), key
    with pytest.raises(SystemExit):
        parse([NAME])
    assert "say by --output where to write" in capsys.readouterr().err and parse([NAME, "--output", "out"])


def test_the_table_agrees_with_torchvision_and_the_page_lists_it():
    urls = {name: model.url for name, model in PUBLISHED.items()}
    assert urls["torchvision/fasterrcnn_resnet50_fpn"] == FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url
    assert urls["torchvision/maskrcnn_resnet50_fpn"] == MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url
    assert urls["torchvision/maskrcnn_resnet50_fpn_v2"] == MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url
    assert urls["torchvision/keypointrcnn_resnet50_fpn"] == KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.url
    assert urls[NAME] == FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url
    assert len(set(urls.values())) == len(urls) - 1  # `_v1` is another name
    for name, model in PUBLISHED.items():
        assert model.url.startswith("https://") and name.split("/")[1].removesuffix("_v1") in model.url
        assert re.fullmatch("([0-9a-f]{8}){0,2}", model.sha256) and (model.sha256 or name.startswith("detectron2"))
        assert load_config(model.config, model.overrides).model.calls["backbone"].arguments.get("depth", 50) == (
            101 if "101" in name else 50
        )
    listed = re.findall(r"`((?:torchvision|detectron2|mmdetection)/[\w-]+)`", (PROJECT / "docs/weights.md").read_text())
    assert sorted(listed) == sorted(PUBLISHED)


@pytest.mark.slow
def test_every_configuration_of_the_table_builds():
    for model in PUBLISHED.values():
        assert len(blank_state(load_config(model.config, model.overrides))) > 200
