"""Reading a COCO file: without its outlines, and otherwise what json itself reads, errors and their places included."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.data.coco_json import OUTLINE, read_document
from detector.errors import DataError

texts = st.sampled_from(['"segmentation": [1]', "segmentation", 'a"', "\\", '\\"segmentation": [[2, 3]]', "[", "é"])
outlines = st.sampled_from([[], [[1, 2.5, -3e-7]], [[1], [2]], {"counts": [1, 2], "size": [3, 4]}, "[1]", None])
entries = st.dictionaries(texts | st.just("segmentation"), texts | outlines, max_size=4)


def without_outlines(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_outlines(inner) for key, inner in value.items() if key != "segmentation"}
    return [without_outlines(inner) for inner in value] if isinstance(value, list) else value


@given(st.lists(entries, max_size=3), st.sampled_from([None, 1]), st.booleans())
def test_only_outlines_are_missing(tmp_path_factory, content: list, indent: int | None, ascii_only: bool):
    path = tmp_path_factory.getbasetemp() / "document.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    assert read_document(path) == without_outlines(content)


def test_an_outline_is_never_parsed():
    text = json.dumps({"segmentation": [[1.5, 2.5, 3.5]], "id": 1}).encode()
    assert OUTLINE.sub(b"", text) == b'{, "id": 1}'


@pytest.mark.parametrize("wrong", ["x", '"', "]", "}"])
def test_an_error_names_its_place_in_the_file(tmp_path: Path, wrong: str):
    text = '{"annotations": [{"segmentation": [[1, 2, 3, 4]], "id": 1' + wrong
    with pytest.raises(ValueError) as expected:
        json.loads(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError) as error:
        read_document(tmp_path / "a.json")
    assert f"not a JSON file ({expected.value})" in str(error.value)
    assert gc.isenabled()
