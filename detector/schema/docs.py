"""The sentence that documents each option: after an attribute of a dataclass, or in the `Args:` of a docstring."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import re
from collections.abc import Callable, Iterator

ARGUMENT = re.compile(r"    (\w+): (.*)")


@functools.cache
def option_docs(part: Callable) -> dict[str, str]:
    """Name -> sentence, of the options of a class or function; parents' sentences stand for what it does not repeat."""
    found: dict[str, str] = {}
    for kind in reversed(inspect.getmro(part)) if inspect.isclass(part) else (part,):
        found |= _arguments(inspect.getdoc(kind) if "__doc__" in vars(kind) else None)
        found |= _attributes(kind) if inspect.isclass(kind) and kind is not object else {}
    return found


def _arguments(doc: str | None) -> dict[str, str]:
    """The lines `name: sentence` below `Args:`; deeper lines continue a sentence."""
    found: dict[str, str] = {}
    name = None
    _, _, below = (doc or "").partition("Args:\n")
    for line in below.splitlines():
        argument = ARGUMENT.fullmatch(line)
        if argument:
            name = argument[1]
            found[name] = argument[2]
        elif name and line.startswith("     "):
            found[name] += " " + line.strip()
        else:
            name = None
    return found


def _attributes(kind: type) -> dict[str, str]:
    """The text that follows each annotated attribute, and the docstrings of methods."""
    try:
        body = _classes(inspect.getsourcefile(kind) or "")[kind.__qualname__].body
    except (TypeError, SyntaxError, KeyError):  # a class without source
        return {}
    found = {}
    for node, after in zip(body, [*body[1:], None]):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            text = getattr(after.value, "value", None)
            if isinstance(text, str):
                found[node.target.id] = " ".join(text.split())
        elif isinstance(node, ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and not node.name.startswith("__"):
                found[node.name] = " ".join(text.split())
    return found


@functools.cache  # a file holds many classes, and inspect.getsource would parse it for each
def _classes(file: str) -> dict[str, ast.ClassDef]:
    """Qualified name -> class, of all classes of a file."""
    return dict(_named(ast.parse("".join(linecache.getlines(file))), ""))


def _named(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield prefix + node.name, node
            yield from _named(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield from _named(node, f"{prefix}{node.name}.<locals>.")
        elif isinstance(node, ast.stmt):
            yield from _named(node, prefix)
