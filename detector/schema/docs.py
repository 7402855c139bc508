"""The sentence that documents each option: after an attribute of a dataclass, or in the `Args:` of a docstring."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable

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
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # a class without source
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
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
