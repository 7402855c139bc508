"""The architecture holds: a room imports only rooms on lower floors, from few packages, and no file is too long to read."""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "detector"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))

FLOORS = [  # top first, as in docs/extending.md; a room is a folder or a file directly in the package
    {"__main__"},
    {"cli"},
    {"workflows"},
    {"comparison"},
    {"browse", "training"},
    {"insight"},
    {"evaluation"},
    {"dataset_check"},
    {"chart"},
    {"export"},
    {"inference"},
    {"interop"},
    {"config"},
    {"data", "modeling"},
    {"checkpoint", "device", "protocols", "recipe"},
    {"structures"},
    {"records"},
    {"coco_format", "distributed", "files", "renames", "rows", "schema", "yaml_reader"},
    {"errors", "progress", "rng", "runtime"},
]
FLOOR_OF = {room: len(FLOORS) - number for number, rooms in enumerate(FLOORS) for room in rooms}
PACKAGES = {"torch", "torchvision", "numpy", "PIL", "pycocotools", "yaml", "tqdm"}  # PIL and numpy come with the others
EXTRAS = {
    "av",
    "mlflow",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pandas",
    "safetensors",
    "supervision",
    "triton",
    "wandb",
}  # optional: imported where it is used, inside a `try`


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write `from detector.x import y`"
            names.add(node.module)
            if node.module and (PACKAGE.parent / node.module.replace(".", "/")).is_dir():
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """The modules of the package that a file imports, without the package's own name: {"modeling.boxes", ...}."""
    names = {name.partition(".")[2] for name in imported(path) if name.startswith("detector.")}
    return {name for name in names if (PACKAGE / f"{name.replace('.', '/')}.py").exists()}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room(name: str) -> str:
    """The part of the package that a module belongs to: "modeling" of "modeling.boxes"."""
    return name.partition(".")[0]


def modules() -> Iterator[tuple[Path, str]]:
    """Every file that may import something, with its room."""
    for path in FILES:
        if path.name != "__init__.py":
            yield path, room(module_name(path))


def test_rooms_import_only_rooms_on_lower_floors_as_documented_and_files_go_in_no_circle():
    assert {own for _, own in modules()} == set(FLOOR_OF)
    assert sum(map(len, FLOORS)) == len(FLOOR_OF), "a room is on two floors"
    for path, own in modules():
        for other in {room(name) for name in ours(path)} - {own}:
            assert FLOOR_OF[other] < FLOOR_OF[own], f"{path}: {own} imports {other}, which is not on a lower floor"
    for path in FILES:
        if path.name == "__init__.py":
            assert not ours(path), path
    graph = {module_name(path): ours(path) for path in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(FILES)  # raises CycleError
    text = (ROOT / "docs/extending.md").read_text()
    rows = re.findall(r"^\| \d+ \| (.+?) \|", text, flags=re.M)
    assert [set(re.findall(r"`(\w+)[/.`]", row)) for row in rows] == FLOORS[1:]


def test_only_the_core_packages_are_needed():
    for path in FILES + SCRIPTS:
        roots = {room(name) for name in imported(path)} - {"detector", *(script.stem for script in SCRIPTS)} - EXTRAS
        assert roots - PACKAGES <= sys.stdlib_module_names, path


def test_no_file_or_function_is_too_long_and_every_public_one_has_a_docstring():
    # Functions are counted without signature and docstring.
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert length <= 40, f"{path}: {node.name} has {length} lines"
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_no_two_public_names_are_the_same():
    """A reader who meets a name finds one thing; commands and drawings share their entry points' names by design."""
    places: dict[str, list[str]] = {}
    for path, _ in modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module_name(path))
    allowed = {"main", "parse", "draw_image"}
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in allowed} == {}
