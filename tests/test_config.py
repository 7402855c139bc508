"""YAML configuration: bases, merging, overrides, signatures as schemas; whatever the file holds, only ConfigError."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from detector.config.config import load_config
from detector.config.inherit import Reader, Types, merge
from detector.errors import ConfigError
from detector.schema.signatures import parse_call
from detector.yaml_reader import MAX_BYTES


def read_config(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    return Reader().read(path, overrides)


def check_call(function: Any, section: Any, where: str, supplied: Sequence[str] = ()) -> None:
    parse_call(function, section, where, supplied=supplied)


@pytest.fixture
def write(tmp_path):
    """Write a file of the given name, one that does not exist yet by default."""

    def write(text: str | bytes, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def refused(write):
    """The message with which a file is refused."""

    def refused(text: str | bytes, overrides: Sequence[str] = ()) -> str:
        path = write(text)
        with pytest.raises(ConfigError) as error:
            read_config(path, overrides)
        return str(error.value)

    return refused


def test_values_overrides_aliases_and_nothing(write):
    for text, value in [
        ("1e-3", 0.001), ("1E5", 100000.0), ("-2.5e+2", -250.0), ("+1e2", 100.0), ("0.02", 0.02), ("1.", 1.0),
        ("12", 12), ("1_000", 1000), ("true", True), ("null", None), ("", None), ("[1, 2e-1]", [1, 0.2]),
        ("e5", "e5"), ("1e", "1e"), ("a1e-3", "a1e-3"), ("'1e-3'", "1e-3"), ("IMAGENET1K_V1", "IMAGENET1K_V1"),
    ]:  # fmt: skip
        found = read_config(write(f"key: {text}"))["key"]
        assert found == value and type(found) is type(value)
        assert read_config(write("other: 1"), [f"key={text}"])["key"] == value
    assert read_config(write("")) == {} == read_config(write("# nothing but this\n"))
    assert read_config(write("a: &x {lr: 1}\nb: *x\nc: {<<: *x, epochs: 2}")) == {
        "a": {"lr": 1}, "b": {"lr": 1}, "c": {"lr": 1, "epochs": 2},
    }  # fmt: skip
    path = write("model: {neck: {type: fpn, width: 256}}")
    config = read_config(path, ["model.neck.width=64", "train.lr=1e-3", "data.classes=[cat, dog]", "note=a=b"])
    assert config["model"] == {"neck": {"type": "fpn", "width": 64}}
    assert config["train"] == {"lr": 0.001}
    assert config["data"] == {"classes": ["cat", "dog"]}
    assert config["note"] == "a=b"
    assert read_config(write("a: 1"), ["a=2", "a=3"]) == {"a": 3}


def test_of_several_bases_later_ones_win_and_missing_ones_no_files_or_a_circle_are_named(write, refused, tmp_path):
    write("{a: 1, b: 1, c: 1}", "one.yaml")
    write("{b: 2, c: 2}", "two.yaml")
    assert read_config(write("_base_: [one.yaml, two.yaml]\nc: 3")) == {"a": 1, "b": 2, "c": 3}
    write("a: 1", "root.yaml")
    write("{_base_: root.yaml, b: 1}", "left.yaml")
    write("{_base_: root.yaml, c: 1}", "right.yaml")
    assert read_config(write("_base_: [left.yaml, right.yaml]")) == {"a": 1, "b": 1, "c": 1}
    write("model: {depth: 50, width: 256}", "_base_/models/r50.yaml")
    write("_base_: models/r50.yaml\nmodel: {width: 128}", "_base_/narrow.yaml")
    path = write("_base_: _base_/narrow.yaml\ntrain: {epochs: 1}")
    assert read_config(path) == {"model": {"depth": 50, "width": 128}, "train": {"epochs": 1}}
    write("_base_: config.yaml", "other.yaml")
    assert "circle" in refused("_base_: other.yaml")
    assert "circle" in refused("_base_: config.yaml")
    message = refused("_base_: none.yaml")
    assert f"{tmp_path}/none.yaml: no such configuration file" in message and f"{tmp_path}/config.yaml" in message
    for base in ["5", "null", "{a: b}", "[1]", "[[a]]", "true", '"a\\0b"', "a" * 400, "."]:
        assert "config.yaml" in refused(f"_base_: {base}")


def test_the_content_of_a_file_is_a_configuration_as_well():
    content = {"_base_": "detector://shapes_r18_fpn.yaml", "train": {"epochs": 3}}
    train = load_config(content, ["train.lr=0.5"]).train
    assert (train.epochs, train.lr, train.batch_size) == (3, 0.5, 8) and len(content) == 2
    for wrong, reason in (
        ({"train": {"epoch": 1}}, "train.epoch: .*epochs"),
        ({"_base_": "none.yaml"}, "none.yaml: no such"),
    ):
        with pytest.raises(ConfigError, match=reason):
            load_config(wrong)


def test_dictionaries_merge_and_anything_else_replaces():
    base = {"a": {"x": 1, "y": {"z": 1}}, "list": [1, 2], "number": 1}
    own = {"a": {"y": {"w": 2}}, "list": [3], "number": {"now": "a section"}}
    assert merge(base, own) == {"a": {"x": 1, "y": {"z": 1, "w": 2}}, "list": [3], "number": {"now": "a section"}}
    assert merge({"a": {"x": 1}}, {"a": None}) == {"a": None}
    assert merge({"neck": "panet"}, {"neck": {"width": 16}}) == {"neck": {"type": "panet", "width": 16}}
    assert merge({"neck": "panet"}, {"neck": {"type": "fpn", "width": 16}}) == {"neck": {"type": "fpn", "width": 16}}
    base, own = {"a": {"x": 1}}, {"a": {"y": 2}}
    merge(base, own)["a"]["x"] = 3
    assert base == {"a": {"x": 1}} and own == {"a": {"y": 2}}  # neither side has changed


KEYS = {
    "fpn": {"width": int, "norm": str, "extra": str},
    "panet": {"width": int, "norm": bool, "form": str},
    "rpn": {"beta": float},
}


def test_a_section_whose_type_changes_keeps_the_keys_of_both_types_if_they_are_known():
    types, notes = Types({"neck": "fpn"}, lambda where, name: KEYS.get(name)), []
    for base in (
        {"norm": "group", "width": 128, "extra": "c5"},
        {"type": "fpn", "norm": "group", "width": 128, "extra": "c5"},
    ):
        merged = merge({"neck": base}, {"neck": {"type": "panet", "form": "authors"}}, types, note=notes.append)
        assert merged == {"neck": {"type": "panet", "width": 128, "form": "authors"}}
    # a key whose values are others is another key
    assert notes == ["neck: panet instead of fpn; kept: width=128; dropped: norm, extra; at their defaults: form"] * 2
    assert merge({"neck": base}, {"neck": "panet"}, types) == {"neck": {"type": "panet", "width": 128}}
    types, notes = Types({"rpn": "rpn", "rpn.anchors": "grid"}, lambda where, name: KEYS.get(name)), []
    base = {"rpn": {"beta": 1.0, "anchors": {"sizes": [[8]]}}}
    assert merge(base, {"rpn": {"type": "rpn"}}, types, note=notes.append) == {"rpn": base["rpn"] | {"type": "rpn"}}
    assert merge(base, {"rpn": {"beta": 2.0}}, types)["rpn"]["anchors"] == {"sizes": [[8]]} and notes == []
    own = {"rpn": {"anchors": {"type": "mine.Grid"}}}
    assert merge(base, own, types, note=notes.append) == {"rpn": {"beta": 1.0, "anchors": {"type": "mine.Grid"}}}
    assert notes == [
        "rpn.anchors: mine.Grid instead of grid; its keys are not known before it is imported, so none is kept of sizes"
    ]
    assert merge({"rpn": {"type": "precomputed"}}, {"rpn": {"keep": 1}}, types)["rpn"]["type"] == "precomputed"


def test_what_is_no_configuration_or_override_is_refused_with_its_name(refused, tmp_path):
    for text in [
        "- a list", "only text", "3", "a: [1", "a: b: c", "\ta: 1", "a: 'open", "{a: 1}}", "a: *nobody", "[" * 5000,
        "a: 1\x00", "a: \x07", "%YAML 9.9\n---\na: 1", "a: 1\n---\nb: 2", "? [1]\n: 2", "{a: {b: 1}: 2}",
        "a: !!int ''", "a: !!int x", "a: !!bool x", "a: !!float x", "a: !!timestamp x", "a: 2020-13-45",
        "a: !!binary x", "a: !!set [1]", "a: !!omap 3", "a: !!map [1]", "a: {<<: 5}", "a: =", "a: " + "9" * 5000,
    ]:  # fmt: skip
        assert "config.yaml" in refused(text)
    with pytest.raises(ConfigError, match=r"none\.yaml: no such configuration file"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    for path in (tmp_path, tmp_path / "circle.yaml"):
        with pytest.raises(ConfigError, match="no such configuration file"):
            read_config(path)
    assert "config.yaml" in refused(b"\xff\xfe\x00a")
    assert f"larger than {MAX_BYTES} bytes" in refused("a: 1 #" + "x" * MAX_BYTES)
    for override in ["model", "=3", "a..b=3", ".a=3", "a.=3", "--lr 0.1", "a=[1"]:
        assert repr(override) in refused("a: 1", [override])
    message = refused("model: {depth: 50}\ntrain:\n  lr: 1\n  lr: 2\n")
    assert "config.yaml, line 4: the key 'lr' is given twice" in message
    assert all("recursive" in refused(text) for text in ("a: &x [*x]", "a: &x {b: *x}", "&x {a: *x}"))


def test_a_file_cannot_run_code(refused, capfd):
    for tag in ["object/apply:os.system", "name:os.system", "object:builtins.set"]:
        assert "config.yaml" in refused(f"a: !!python/{tag} ['echo owned']")
        assert "owned" not in capfd.readouterr().out


@dataclass
class Inner:
    side: int
    name: str = "inner"


class Example:
    """Takes one of each kind of argument."""

    def __init__(
        self,
        channels: int,
        *,
        number: float = 1.0,
        count: int = 1,
        flag: bool = False,
        text: str = "",
        mode: Literal["sum", "average"] = "sum",
        maybe: str | None = None,
        sizes: Sequence[Sequence[float]] = ((1,),),
        pair: tuple[int, int] = (1, 2),
        either: int | list[int] = 1,
        inner: Inner | None = None,
        sections: Sequence[dict[str, Any]] = (),
        anything: Any = None,
        **rest: Any,
    ): ...


class Extended(Example):
    """Hands on what it does not name itself."""

    def __init__(self, channels: int, *, width: int = 1, flag: int = 0, **options: Any): ...


class Closed(Example):
    def __init__(self, channels: int): ...


def test_a_class_that_takes_options_has_the_arguments_of_its_parent_as_well():
    check_call(Extended, {"width": 2, "flag": 3, "number": 0.5}, "here", ["channels"])
    for key, value in (("width", 0.5), ("flag", True), ("number", "x")):  # its own `flag` is a number
        with pytest.raises(ConfigError, match=rf"here\.{key}: expected"):
            check_call(Extended, {key: value}, "here", ["channels"])
    with pytest.raises(ConfigError, match=r"here\.nubmer: unknown key; did you mean 'number'"):
        check_call(Extended, {"nubmer": 1}, "here", ["channels"])
    with pytest.raises(ConfigError, match=r"here\.number: unknown key"):
        check_call(Closed, {"number": 1}, "here", ["channels"])


def complaint(section: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as error:
        check_call(Example, section, "model.neck", **kwargs)
    return str(error.value)


def test_what_fits_is_taken_and_a_wrong_type_is_named_with_its_path_and_what_is_expected():
    for key, value in [
        ("number", 1), ("number", 0.5), ("count", -3), ("flag", True), ("text", "abc"), ("mode", "average"),
        ("maybe", None), ("maybe", "abc"), ("sizes", [[1, 2.5], []]), ("pair", [3, 4]), ("either", 3), ("either", [3]),
        ("inner", {"side": 3}), ("inner", None), ("sections", [{"type": "flip"}, {}]), ("anything", object()),
    ]:  # fmt: skip
        check_call(Example, {"channels": 1, key: value}, "model.neck")
    for key, value, expected in [
        ("number", "1", "a number, got '1'"), ("number", True, "a number"), ("number", None, "a number"),
        ("count", 1.5, "a whole number, got 1.5"), ("count", True, "a whole number"), ("flag", 1, "true or false"),
        ("flag", "yes", "true or false"), ("text", 3, "a text, got 3"),
        ("mode", "max", "one of 'sum', 'average', got 'max'"), ("mode", ["sum"], "one of"),
        ("maybe", 3, "a text or null"),
        ("sizes", [1, 2], "a list, each a list, each a number"), ("sizes", "12", "a list"), ("sizes", {"a": 1}, "a list"),
        ("pair", [1, 2, 3], "a list of 2, each a whole number"), ("pair", [1, 2.5], "a list of 2"),
        ("either", "3", "a whole number or a list, each a whole number"), ("inner", 3, "a section or null"),
        ("sections", [3], "a list, each a section"), ("sections", {"type": "flip"}, "a list, each a section"),
    ]:  # fmt: skip
        message = complaint({"channels": 1, key: value})
        assert message.startswith(f"model.neck.{key}: expected ") and expected in message
    for section in [None, 3, "fpn", [], ["fpn"], True]:
        assert "model.neck: expected a section of 'key: value' lines" in complaint(section, supplied=["channels"])
    assert "model.neck.channels: the program sets this itself" in complaint({"channels": 1}, supplied=["channels"])
    check_call(Example, {"number": 2}, "model.neck", supplied=["channels"])


def test_an_unknown_key_is_named_with_its_path_and_the_nearest_key_in_nested_sections_too():
    assert complaint({"channels": 1, "nunber": 2}) == "model.neck.nunber: unknown key; did you mean 'number'?"
    assert "known keys: anything, channels, count" in complaint({"channels": 1, "zzz": 2})
    assert "model.neck.3: unknown key" in complaint({"channels": 1, 3: 2})
    for inner, message in (
        ({"sied": 3}, "model.neck.inner.sied: unknown key; did you mean 'side'?"),
        ({}, "model.neck.inner.side: this key must be given"),
        ({"side": "x"}, "model.neck.inner.side: expected a whole number, got 'x'"),
    ):
        assert complaint({"channels": 1, "inner": inner}) == message
    assert len(complaint({"channels": 1, "number": ["x" * 100] * 10_000})) < 1000
    assert len(complaint(["x" * 100] * 10_000)) < 1000


def test_a_function_is_a_schema_too_but_not_a_callable_without_a_signature():
    def function(a: int, *more: int, b: str = "") -> None: ...

    check_call(function, {"a": 1}, "here")
    with pytest.raises(ConfigError, match=r"here\.b: expected a text"):
        check_call(function, {"a": 1, "b": 2}, "here")
    for builtin in (dict, type, map):
        with pytest.raises(ConfigError, match="here"):
            check_call(builtin, {"a": 1}, "here")
