"""Names to constructors: what a configuration builds, what it must not say, and how it is told."""

import copy
import json
import sys
import types
from typing import Any

import pytest
import torch
import yaml
from helpers.tiny import CONFIG, built, picture, target, tiny_model
from helpers.training import draw_set

import detector
from detector.config.config import build_detector, load_config, parse_config
from detector.config.inherit import merge
from detector.data.coco import CocoDataset
from detector.data.settings import build_dataset, parse_data
from detector.data.transforms import HorizontalFlip, Resize
from detector.errors import ConfigError
from detector.modeling.anchors import AnchorGenerator
from detector.modeling.backbones.resnet import ResNet
from detector.modeling.necks.fpn import FPN
from detector.modeling.parts import PARTS
from detector.modeling.preprocess import ImagePreprocessor
from detector.modeling.pyramid import PlainPyramid
from detector.modeling.roi_heads.box_head import TwoFC
from detector.modeling.roi_heads.pool import RoIPool
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.modeling.rpn import RPN
from detector.protocols import members

DATA = {
    "root": "data",
    "train": {"images": "train", "annotations": "train.json"},
    "val": {"images": "val", "annotations": "val.json"},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The tiny configuration, with data, and with one value set."""
    section: Any = value
    for key in reversed(path.split(".")):
        section = {key: section}
    return merge(CONFIG | {"data": DATA, "train": {}}, section)


def complaint(config: dict[str, Any], *, trust: bool = True) -> str:
    with pytest.raises(ConfigError) as error:
        parse_config(config, trust=trust)
    return str(error.value)


UNTYPED = """
model:
  neck: {width: 128}
  rpn: {loss: {beta: 0.5}, anchors: {sizes: [[16], [32], [64], [96], [128]]}}
  roi_head: {sampling: {batch_per_image: 64}, pool: {samples: 1, canonical_size: 112}, box_head: {conv_width: 64, type: conv_fc}}
"""


@pytest.mark.parametrize("by_override", [True, False])
def test_another_type_keeps_what_both_types_have_and_a_line_says_so(tmp_path, by_override, caplog):
    (tmp_path / "base.yaml").write_text(UNTYPED)
    base = yaml.safe_load(UNTYPED)["model"]
    both = base["roi_head"] | {"type": "cascade", "loss": {"beta": 0.1}}
    for name, own, kept in (
        ("rpn", {"type": "precomputed"}, {"type": "precomputed"}), ("rpn", {"type": "rpn"}, base["rpn"] | {"type": "rpn"}),
        ("roi_head", {"type": "none"}, {"type": "none"}), ("roi_head", {"type": "cascade", "loss": {"beta": 0.1}}, both),
    ):  # fmt: skip
        section = {} if by_override else {name: own}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({"_base_": "base.yaml", "model": section}))
        overrides = [f"model.{name}.{key}={json.dumps(value)}" for key, value in own.items()] if by_override else []
        assert load_config(tmp_path / "own.yaml", overrides).raw["model"][name] == kept
    with caplog.at_level("INFO"):
        config = load_config(tmp_path / "base.yaml", ["model.roi_head.pool.type=all_levels", "model.neck=panet"])
    assert config.raw["model"]["roi_head"] == base["roi_head"] | {"pool": {"type": "all_levels", "samples": 1}}
    assert (
        "model.roi_head.pool: all_levels instead of by_level; kept: samples=1; dropped: canonical_size" in caplog.text
    )
    assert config.raw["model"]["neck"]["width"] == base["neck"]["width"]


def test_an_empty_model_section_is_the_default_detector():
    config = parse_config({"model": {"num_classes": 80}}, trust=False)
    with torch.device("meta"):
        model = build_detector(config, pretrained=False)
    assert model.pyramid.backbone.depth == 50 and type(model.pyramid.neck) is FPN
    assert model.roi_head.stage.class_score.out_features == 81 and model.roi_head.stage.box_delta.out_features == 320
    assert parse_config({}, trust=False).with_num_classes(80).model == config.model


def test_arguments_reach_the_part_that_they_are_meant_for():
    model = tiny_model(
        rpn={"selection": {"nms_iou": 0.6}, "anchors": {"ratios": [1.0]}},
        roi_head={"selection": {"nms_iou": 0.4}, "pool": {"size": 5}},
        preprocess={"order": "bgr", "divisor": 64},
    )
    assert (model.rpn.selection.nms_iou, model.roi_head.selection.nms_iou) == (0.6, 0.4)
    assert model.rpn.anchors.per_cell == 1 and model.rpn.objectness.out_channels == 1
    assert model.roi_head.pool.size == 5 and model.roi_head.stage.box_head.fc1.in_features == 32 * 5 * 5
    assert (model.preprocess.order, model.preprocess.divisor) == ("bgr", 64)


def test_convolutions_are_channels_last_and_the_configuration_stays_as_it_was():
    config = copy.deepcopy(CONFIG)
    weight = built(config).pyramid.backbone.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert config == CONFIG
    with pytest.raises(ConfigError, match=r"model\.num_classes: not given"):
        built(changed("model.num_classes", None))


def test_a_typo_is_told_with_file_path_and_nearest_key(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {neck: {type: fpn, widht: 64}}")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value) == f"{path}: model.neck.widht: unknown key; did you mean 'width'?"
    path.write_text("model: {neck: {type: fpn}}")
    with pytest.raises(ConfigError, match=r"mine\.yaml: model\.roi_hed: unknown key; did you mean 'roi_head'"):
        load_config(path, ["model.roi_hed.nms_iou=0.5"])


def test_a_wrong_key_type_or_number_is_told_with_its_path():
    for path, value, message in (
        ("modle", {}, "configuration.modle: unknown key; did you mean 'model'?"),
        ("model.neck.typ", "panet", "model.neck.typ: unknown key; did you mean 'type'?"),
        ("model.roi_head.pool.sample", 2, "model.roi_head.pool.sample: unknown key; did you mean 'samples'?"),
        ("model.roi_head.box_head.convs", 4, "model.roi_head.box_head.convs: unknown key"),  # those of another head
        ("model.backbone.depth", "50", "model.backbone.depth: expected one of 18, 34, 50, 101, 152, got '50'"),
        ("model.backbone.norm", "bach", "model.backbone.norm: expected one of 'frozen', 'affine', 'batch', 'sync', 'group'"),
        ("model.rpn.selection.pre_nms", 1000, "model.rpn.selection.pre_nms: expected a list of 2"),
        ("model.rpn.anchors.sizes", [32, 64], "model.rpn.anchors.sizes: expected a list, each a list, each a number"),
        ("model.roi_head", 3, "model.roi_head: expected a section"),
        ("model", None, "model: expected a section"),
        ("model.rpn.neg_iou", 0.9, "model.rpn.matching.neg_iou: must not exceed pos_iou"),
        *((f"model.{part}", 3, f"model.{part}: the program sets this itself") for part in (
            "neck.channels", "neck.strides", "rpn.channels", "rpn.anchors.strides", "roi_head.pool.channels",
            "roi_head.pool.strides", "roi_head.box_head.channels", "roi_head.box_head.size", "roi_head.num_classes",
        )),
        *(("model.num_classes", classes, "model.num_classes: expected a whole number") for classes in (
            0, -1, "3", 2.5, True, [3],
        )),
        *(("model.neck", {"type": name}, f"model.neck.type: {name!r} is none of fpn, panet") for name in (
            "FPN", "", None, ["fpn"], {"fpn": 1},
        )),
        ("data", [], "data: expected a section"),
        ("data.train.imges", "x", "data.train.imges: unknown key; did you mean 'images'?"),
        ("data.val", None, "data.val: expected a section, got None"),
        ("data.classes", "cat", "data.classes: expected a list, each a text or null"),
        ("data.resize", {"short": 800}, "data.resize.long: this key must be given"),
        ("data.resize", {"short": "800", "long": 1}, "data.resize.short: expected a whole number in 1..1e+06 or a list"),
        ("data.transforms", {"type": "horizontal_flip"}, "data.transforms: expected a list, each a section"),
        ("data.transforms", [{"type": "flip"}], "data.transforms[0].type: 'flip' is none of horizontal_flip"),
        ("data.transforms", [{}, {"type": "color_jitter", "hu": 1}], "data.transforms[1].hu: unknown key"),
        ("data.transforms", [{"p": "x"}], "data.transforms[0].p: expected a number"),
        ("train.epoch", 3, "train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.precision", "fp16", "train.precision: expected one of 'auto', 'float32', 'bfloat16', 'float16', got 'fp16'"),
        *(("data.type", name, f"data.type: {name.rpartition('.')[2]} cannot be called like CocoDataset") for name in (
            "os.system", "os.getcwd", "builtins.int", "collections.OrderedDict",  # never called
        )),
    ):  # fmt: skip
        assert complaint(changed(path, value)).startswith(message)
    assert complaint(CONFIG | {"data": {"root": "a", "train": DATA["train"]}}) == "data.val: this key must be given"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("backbone", {"frozen_stages": 5, "stages": 3}, "model.backbone does not fit: frozen_stages: expected 0"),
        ("backbone", {"dilated_c5": True}, "model.neck does not fit: .*strides"),
        ("rpn.anchors.sizes", [[32], [64]], "model.rpn.anchors does not fit: .*2 lists of anchor sizes for 5 pyramid"),
        ("neck", {"width": 33, "norm": "group"}, "model.neck does not fit: .*divisible by num_groups"),
        ("roi_head.pool.levels", 6, "model.roi_head.pool does not fit: levels: 6 wanted"),
    ],
)
def test_parts_that_do_not_fit_each_other(path, value, message):
    config = changed(f"model.{path}", value)
    if "dilated_c5" in str(value):  # PANet halves its maps
        config = merge(config, {"model": {"neck": {"type": "panet"}}})
    for source in (None, "mine.yaml"):
        with pytest.raises(ConfigError, match=f"^{'mine.yaml: ' if source else ''}{message}") as error:
            build_detector(parse_config(config, trust=False, source=source))
        chain, found = [], error.value
        while found is not None and found not in chain:
            chain, found = [*chain, found], found.__cause__
        assert not isinstance(chain[-1], ConfigError)  # for --debug: the part's own error


@pytest.fixture
def my_parts(tmp_path, monkeypatch):
    """A module of a user with a neck of hers."""
    (tmp_path / "my_parts.py").write_text(
        "from detector.modeling.necks.fpn import FPN\n"
        "NUMBER = 3\n"
        "class MyNeck(FPN):\n"
        "    def __init__(self, channels, strides, *, width: int = 8, twice: bool = False):\n"
        "        super().__init__(channels, strides, width=16 if twice else width)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_parts", None)


def with_neck(**section: Any) -> dict[str, Any]:
    return merge(CONFIG, {"model": {"neck": section}})


def test_a_neck_of_ones_own_is_built_and_trains_and_is_checked_by_the_same_rule(my_parts):
    model = built(with_neck(type="my_parts.MyNeck", twice=True))
    assert type(model.pyramid.neck).__name__ == "MyNeck" and model.rpn.objectness.in_channels == 16
    assert len(model([picture(64, 64)], [target((8, 8, 40, 40, 0))])) == 4
    message = complaint(with_neck(type="my_parts.MyNeck", twize=True))
    assert message == "model.neck.twize: unknown key; did you mean 'twice'?"
    assert "model.neck.twice: expected true or false" in complaint(with_neck(type="my_parts.MyNeck", twice=1))
    for name in "my_parts.No no_module.Neck my_parts.NUMBER .fpn ..fpn fpn. a..b . builtins.dict".split():
        assert complaint(with_neck(type=name)).startswith("model.neck")


def test_a_part_of_ones_own_is_followed_only_with_trust(my_parts):
    for config in (with_neck(type="my_parts.MyNeck"), CONFIG | {"data": DATA | {"type": "my_parts.MyData"}},
                   CONFIG | {"data": DATA | {"transforms": [{"type": "my_parts.MyFlip"}]}}):  # fmt: skip
        message = complaint(config, trust=False)
        assert "my_parts.My" in message and "--trust" in message
    assert "my_parts" not in sys.modules  # not even imported
    with pytest.raises(TypeError, match="trust"):
        parse_config(CONFIG)


OWN_PARTS = {
    "preprocess": ImagePreprocessor, "backbone": ResNet, "neck": FPN, "pyramid": PlainPyramid, "rpn": RPN,
    "rpn.anchors": AnchorGenerator,
    "roi_head": RoIHead, "roi_head.pool": RoIPool, "roi_head.box_head": TwoFC,
}  # fmt: skip


@pytest.mark.parametrize("key", OWN_PARTS)
def test_what_a_part_of_ones_own_lacks_is_told_with_its_meaning(monkeypatch, key):
    """One member that the other parts read, missing at a time."""
    parts = types.ModuleType("own_parts")
    monkeypatch.setitem(sys.modules, "own_parts", parts)
    for name, meaning in members(PARTS[key].protocol).items():

        class Own(OWN_PARTS[key]):
            lacks = name

            def __getattribute__(self, attribute):
                if attribute == type(self).lacks:
                    raise AttributeError(attribute)
                return super().__getattribute__(attribute)

        parts.Own = Own
        with pytest.raises(ConfigError) as error:
            built(changed(f"model.{key}", {"type": "own_parts.Own"}))
        assert meaning and str(error.value) == f"model.{key}: Own must have `{name}`: {meaning}"


def test_a_part_that_holds_weights_is_a_module(monkeypatch):
    parts = types.ModuleType("own_parts")
    parts.neck = lambda channels, strides: types.SimpleNamespace(channels=channels, strides=strides)
    monkeypatch.setitem(sys.modules, "own_parts", parts)
    with pytest.raises(ConfigError, match=r"^model\.neck: SimpleNamespace must be a torch\.nn\.Module"):
        built(with_neck(type="own_parts.neck"))


def test_a_split_must_be_there_and_transforms_follow_the_resizing_in_order():
    config = parse_config(CONFIG | {"data": DATA}, trust=False)
    with pytest.raises(ConfigError, match=r"data\.test: the configuration has no such split"):
        build_dataset(config.data, "test")
    with pytest.raises(ConfigError, match=r"data: the configuration has no such section"):
        parse_config(CONFIG, trust=False).needed_data()
    data = DATA | {"resize": {"short": 64, "long": 96}, "transforms": [{"p": 0.3}, {"p": 0.7}]}
    resize, first, second = parse_data(data, trust=False).training_transform().transforms
    assert isinstance(resize, Resize) and resize.long == 96
    assert isinstance(first, HorizontalFlip) and (first.p, second.p) == (0.3, 0.7)


def test_public_names():
    assert detector.load_config is load_config and detector.build_detector is build_detector
    for name in detector.__all__:
        assert getattr(detector, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = detector.nothing


class Reversed(CocoDataset):
    """A data set of one's own: the last image first."""

    def __getitem__(self, i):
        return super().__getitem__(len(self) - 1 - i)


def test_a_data_set_of_ones_own_is_named_by_its_dotted_path(tmp_path):
    data = {split: {"images": "images", "annotations": f"{split}.json"} for split in ("train", "val")}
    raw = {"data": data | {"root": str(draw_set(tmp_path)), "type": "test_build.Reversed"}}
    config = parse_config(raw, trust=True)
    own = build_dataset(config.data, "val", class_names=["square", "disc"])
    assert type(own).__name__ == "Reversed" and [own[i][2] for i in range(len(own))] == [11, 10]
    assert "--trust" in complaint(raw, trust=False)


class Nameless:
    """A data set of one's own that lacks what the training reads of it."""

    def __init__(self, images, annotations, **options):
        self.class_names, self.category_ids = ["square"], [1]


def test_a_data_set_of_ones_own_that_lacks_something_is_told_what(tmp_path):
    config = parse_config({"data": DATA | {"type": "test_build.Nameless"}}, trust=True)
    with pytest.raises(ConfigError, match=r"^data.type: Nameless must have `image_ids`: The id of every"):
        build_dataset(config.data, "val")
