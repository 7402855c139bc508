"""Test-time augmentation: views of an image, what comes back from each, and how they become one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import CONFIG, DATA, assert_same_detections, built, columns, picture, predictor_of, tiny_model
from helpers.training import draw_set, script, train, write_config
from torchvision.ops import box_iou, nms

import detector
from detector.config.inherit import merge
from detector.errors import ConfigError
from detector.inference.predictor import Predictor
from detector.inference.tta import TTAPredictor
from detector.structures import Detections, Proposals

SIZED = DATA | {"resize": {"short": 64, "long": 200}}


def augmented(model: torch.nn.Module | None = None, kind: type[Predictor] = TTAPredictor, **tta: Any) -> Predictor:
    return predictor_of(model or tiny_model(), {**CONFIG, "data": SIZED | {"tta": tta}}, kind)


def predictor(model: torch.nn.Module | None = None) -> Predictor:
    return augmented(model, Predictor)


def test_the_default_is_detectron2s_at_the_size_of_coco():
    config = CONFIG | {"data": DATA | {"resize": {"short": [640, 800], "long": 1333}}}
    views = predictor_of(tiny_model(), config, TTAPredictor)
    shorts = [min(scale.shape[1:]) for scale in views.prepare(picture(40, 50))]
    assert shorts == [400, 500, 600, 700, 800, 900, 1000, 1100, 1200]
    assert len(views.views) == 18 and max(max(s.shape[1:]) for s in views.prepare(picture(20, 100))) == 2000


def test_workers_can_be_sent_what_prepares_an_image():
    prepare = augmented(scales=[0.5, 1]).prepare
    sent = pickle.dumps(prepare)
    assert len(sent) < 2000  # and not the model with it
    assert all(map(torch.equal, pickle.loads(sent)(picture(64, 96)), prepare(picture(64, 96))))


@pytest.mark.parametrize("scales", [[], [0], [1, float("nan")], [101]], ids=str)
def test_scales_out_of_range_are_named(scales):
    with pytest.raises(ConfigError, match=r"data\.tta(\.|: )scales: "):
        augmented(scales=scales)


def test_the_picture_as_it_is_gives_what_the_predictor_finds():
    image = picture(111, 149)
    plain, views = predictor(), augmented(scales=[1], flip=False)
    for same in (views, augmented(scales=[1, 1, 1], flip=False)):  # three views of one scale say no more than one
        assert_same_detections(same(image), plain(image))
    expected, found = (p.detect([p.prepare(image)], [(111, 149)])[0].proposals for p in (plain, views))
    torch.testing.assert_close(found.boxes, expected.boxes)


@pytest.mark.parametrize("size", [(111, 149), (64, 90)])
def test_the_mirrored_picture_alone_gives_mirrored_boxes(size):
    """In the pixels of the original, whose width decides; 90 is no multiple of the padding."""
    views, image = augmented(scales=[1]), picture(*size)
    views.views = [(0, True)]
    expected = predictor()(image.flip(-1)).mirrored(size[1])
    assert_same_detections(views(image), expected)
    assert (expected.boxes[:, 2:] > expected.boxes[:, :2]).all() and expected.boxes.min() >= 0


def test_twice_mirrored_is_the_same():
    rows = Proposals(torch.tensor([[1.0, 2, 30, 40], [0, 0, 100, 50]]), torch.zeros(2))
    assert rows.mirrored(100).boxes.tolist() == [[70, 2, 99, 40], [0, 0, 100, 50]]
    assert torch.equal(rows.mirrored(100).mirrored(100).boxes, rows.boxes)


def test_another_scale_alone_is_a_predictor_of_that_size():
    image = picture(111, 149)
    larger = predictor_of(tiny_model(), CONFIG | {"data": DATA | {"resize": {"short": 96, "long": 300}}})
    assert_same_detections(augmented(scales=[1.5], flip=False)(image), larger(image))


def test_the_boxes_of_all_views_are_merged_by_nms_within_a_class():
    image = picture(111, 149)
    views = augmented(scales=[1, 1.5])
    found = views(image)
    alone = []
    for view in views.views:
        one = augmented(scales=[1, 1.5])
        one.views = [view]
        alone.append(one(image))
    boxes, scores, labels = (torch.cat(x) for x in zip(*map(columns, alone)))
    kept = torch.cat([torch.where(labels == k)[0][nms(boxes[labels == k], scores[labels == k], 0.5)] for k in range(3)])
    best = kept[scores[kept].argsort(descending=True)][:100]
    assert_same_detections(found, Detections(boxes[best], scores[best], labels[best]))
    assert len(best) < len(boxes) and found.names and (found.scores.diff() <= 0).all()
    overlap = box_iou(found.boxes, found.boxes).fill_diagonal_(0)
    assert (overlap[found.labels[:, None] == found.labels] <= 0.5).all()


def test_what_a_detector_says_of_nms_holds_for_the_views():
    model = tiny_model(roi_head={"selection": {"class_agnostic_nms": True, "max_detections": 7, "nms_iou": 0.3}})
    found = augmented(model, scales=[1, 1.25])(picture(111, 149))
    assert len(found) == 7 and (box_iou(found.boxes, found.boxes).fill_diagonal_(0) <= 0.3 + 1e-6).all()


@pytest.mark.parametrize("size", [(30, 40), (111, 149), (300, 400)])
def test_images_of_any_size_have_boxes_in_their_pixels(size):
    found = augmented(scales=[0.5, 1.5])(picture(*size))
    assert len(found) > 0 and found.boxes.min() >= 0
    assert (found.boxes <= torch.tensor([size[1], size[0], size[1], size[0]])).all()


def test_a_larger_picture_of_the_same_gives_larger_boxes():
    """Scales are parts of the evaluation's size, so that the picture's own does not matter."""
    small, large = picture(64, 96), picture(64, 96).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    views = augmented(scales=[1], flip=True)
    views.prepare = lambda image: [small]
    expected = views(small)
    found = views(large)
    assert_same_detections(found, Detections(expected.boxes * 2, expected.scores, expected.labels))


def test_no_image_sees_another_and_no_view_another():
    """So memory is that of the largest view: the model is given one view of each image at a time."""
    views = augmented(scales=[0.5, 1, 1.5])
    pictures = [picture(64, 96, seed=1), picture(96, 64, seed=2), picture(64, 96, seed=3)]
    shapes: list[list[tuple[int, ...]]] = []
    call = views.model.detect
    views.model.detect = lambda images, given: shapes.append([tuple(i.shape) for i in images]) or call(images, given)
    together = views(pictures)
    assert [len(s) for s in shapes] == [3] * 6 and {s[0][1] for s in shapes} == {32, 64, 96}
    for found, image in zip(together, pictures, strict=True):
        assert_same_detections(found, views(image))


def test_an_empty_list_and_nothing_found_are_sizes():
    views = augmented(tiny_model(roi_head={"selection": {"score_threshold": 1.0}}), scales=[1, 2])
    assert views([]) == []
    found = views(picture(64, 96))
    assert found.boxes.shape == (0, 4) and found.labels.dtype == torch.int64


@pytest.mark.parametrize("wanted", [1, 5, 100, 1000])
def test_the_first_proposals_of_all_views_are_those_of_one_nms(wanted):
    views = augmented(tiny_model(rpn={"selection": {"post_nms": [wanted, wanted], "nms_iou": 0.2}}))
    corner = torch.rand(3, 200, 2) * 60
    rows = [Proposals(torch.cat([c, c + 30], dim=1), torch.rand(200)) for c in corner]
    boxes, scores = torch.cat([r.boxes for r in rows]), torch.cat([r.scores for r in rows])
    best = nms(boxes, scores, 0.2)[:wanted]
    found = views.model.rpn.selection.merge(rows)
    assert torch.equal(found.boxes, boxes[best]) and torch.equal(found.scores, scores[best])


def test_the_views_of_an_rpn_alone_are_merged_by_its_own_nms():
    torch.manual_seed(0)
    sections = {"roi_head": "none", "rpn": {"selection": {"nms_iou": 0.6, "post_nms": [200, 150]}}}
    model = built(merge(CONFIG, {"model": sections}))
    views, image = augmented(model, scales=[1, 1.5]), picture(111, 149)
    (found,) = views.detect([views.prepare(image)], [(111, 149)])
    proposals = found.proposals
    overlap = box_iou(proposals.boxes, proposals.boxes).fill_diagonal_(0)
    assert len(proposals.boxes) == 150 and (overlap <= 0.6 + 1e-6).all()
    assert torch.equal(found.boxes, proposals.boxes[:100]) and set(found.names) == {"object"}


def test_given_proposals_are_seen_in_every_view():
    """Mirrored with it: a detector on given proposals has the same ones in the end."""
    whole = tiny_model()
    model = built(merge(CONFIG, {"model": {"rpn": "precomputed"}}))
    model.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith("rpn.")})
    views = augmented(model, scales=[1])
    views.views = [(0, True)]
    image = picture(111, 149)
    given = Proposals(torch.tensor([[5.0, 9, 60, 80], [70, 20, 149, 111]]), torch.tensor([1.0, 0.0]))
    (found,) = views.detect([views.prepare(image)], [(111, 149)], [given])
    regions = found.proposals
    torch.testing.assert_close(regions.boxes, given.boxes, rtol=0, atol=1e-3)
    plain = predictor(model)
    flipped = [plain.prepare(image).flip(-1)]
    (expected,) = plain.detect(flipped, [(111, 149)], [given.mirrored(149)])
    assert len(found) > 0
    torch.testing.assert_close(found.boxes, expected.mirrored(149).boxes, rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tta")
    config = write_config(folder / "tiny.yaml", draw_set(folder / "data"))
    assert train(config, folder / "run", ["train.epochs=1", "data.tta.scales=[1, 1.25]"]) == 0
    return folder / "run"


def test_the_scripts_take_the_views_of_the_configuration(finished, tmp_path, monkeypatch):
    seen: list[TTAPredictor] = []
    look = TTAPredictor.detect
    monkeypatch.setattr(TTAPredictor, "detect", lambda self, *a, **k: seen.append(self) or look(self, *a, **k))
    common = [str(finished / "best.pth"), "--trust", "--device", "cpu", "--output"]
    assert script("evaluate").main([*common, str(tmp_path / "plain")]) == 0 and not seen
    assert script("evaluate").main([*common, str(tmp_path / "eval"), "--tta"]) == 0
    assert len(seen[-1].views) == 4
    assert script("evaluate").main([*common, str(tmp_path / "eval"), "--tta", "data.tta.flip=false"]) == 0
    assert len(seen[-1].views) == 2
    count = len(seen)
    images = str(finished.parent / "data/images")
    assert script("infer").main([*common, str(tmp_path / "infer"), "--tta", "--score", "0", images]) == 0
    assert len(seen) > count and json.loads((tmp_path / "infer/detections.json").read_text())
    assert json.loads((tmp_path / "eval/metrics.json").read_text())["proposals"]["AR1000"] >= 0
    views = detector.load(finished / "best.pth", trust=True, device="cpu", kind=TTAPredictor)
    assert type(views) is TTAPredictor and len(views.views) == 4
