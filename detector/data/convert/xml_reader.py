"""XML files of annotations, which may come from strangers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from detector.errors import DataError


class _NoDoctype(ET.TreeBuilder):
    """Rejects document types, whose entities could expand without limit or fetch files."""

    def doctype(self, *_: object) -> None:
        raise ValueError("a DOCTYPE (entities) is not read")


def read_xml(path: Path, tag: str, kind: str, most: int) -> ET.Element:
    """The element `tag` that a file of at most `most` bytes consists of. Raises DataError, which names the `kind` of file."""
    try:
        if not path.is_file():  # reading a pipe could block
            raise ValueError("no such file")
        if path.stat().st_size > most:
            raise ValueError(f"larger than {most} bytes")
        parser = ET.XMLParser(target=_NoDoctype())
        parser.feed(path.read_bytes())
        tree = parser.close()
    except (ET.ParseError, ValueError, LookupError, OSError) as error:  # LookupError: an unknown encoding
        raise DataError(f"{path}: not the XML of {kind}: {error}") from error
    if tree.tag != tag:
        raise DataError(f"{path}: its element is {tree.tag!r:.80}, that of {kind} is {tag!r}")
    return tree
