"""The building stands: imports go down only, in no circle, to few packages; and no file is too long to read."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "detector"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))

FLOORS = [  # ground first; the scripts are the roof
    {
        "errors",
        "archive",
        "random_state",
        "structures",
        "config",
        "layers",
        "pixels",
        "geometry",
        "distributed",
        "command",
    },
    {"matching", "data", "formats"},
    {"backbones", "necks"},
    {"heads", "rcnn"},
    {"parts", "build", "training", "evaluation", "inference", "interop", "health"},
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
PACKAGES = {"torch", "torchvision", "numpy", "PIL", "pycocotools", "yaml", "tqdm"}  # PIL and numpy come with the others
EXTRAS = {"safetensors"}  # optional: imported where it is used, inside a `try`

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write `from detector.x import y`"
            names.add(node.module)
    return names


def ours(path: Path) -> set[str]:
    """The modules of the package among them, without the package's own name: {"geometry.boxes", ...}."""
    return {name.partition(".")[2] for name in imported(path) if name.startswith("detector.")}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room(name: str) -> str:
    """The part of the package that a module belongs to: "geometry" of "geometry.boxes"."""
    return name.partition(".")[0]


def test_every_room_has_its_floor():
    rooms = {room(module_name(path)) for path in FILES} - {"__init__"}
    assert rooms == set(FLOOR_OF)


@each_file
def test_imports_go_down(path):
    own = room(module_name(path))
    if own == "__init__":
        assert not ours(path), "the legend imports nothing"
        return
    for name in ours(path):
        assert FLOOR_OF[room(name)] <= FLOOR_OF[own], f"{own} (floor {FLOOR_OF[own]}) reaches up to {name}"


def test_no_imports_go_in_a_circle():
    graph = {module_name(path): ours(path) for path in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(FILES)  # raises CycleError


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda path: path.name)
def test_only_the_core_packages_are_needed(path):
    neighbours = {"detector", *(script.stem for script in SCRIPTS)}
    roots = {room(name) for name in imported(path)} - neighbours - EXTRAS
    assert roots - PACKAGES <= sys.stdlib_module_names


@each_file
def test_no_file_is_longer_than_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300


@each_file
def test_no_function_is_longer_than_40_lines(path):
    """Without its signature and its docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 40, f"{node.name} has {length} lines"


@each_file
def test_every_public_function_and_class_says_what_it_is(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
