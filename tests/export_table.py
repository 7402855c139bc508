"""Detectors in every engine: `PYTHONPATH=.:tests python tests/export_table.py [NAME ...]`, by default those of configs/shapes.

A name is that of a file there, or with its folder, such as compat/torchvision_fasterrcnn_resnet50_fpn.
"""

import sys
import tempfile
from pathlib import Path

import torch
from helpers.exports import SHAPES, parity

from detector.export.engines import TARGETS


def cell(name: str, target: str) -> str:
    """What was found in both, and the largest difference; or why there is no file."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = parity(name, target, Path(folder))
    except Exception as error:
        return f"no: {type(error).__name__}"
    alone = found.only_first + found.only_second
    shown = f"{found.both} of {found.both + found.only_first}, {found.box:.0e} px, {found.score:.0e}"
    return shown if found.ok else f"**{shown}**, {alone} in one alone"


if __name__ == "__main__":
    torch.set_num_threads(1)
    targets = [target for target in TARGETS if target != "aoti"]  # minutes for each detector
    print("| detector |", *(f"{target} |" for target in targets))
    print("|---|" + "---|" * len(targets))
    for name in sys.argv[1:] or sorted(path.stem for path in SHAPES.glob("*.yaml")):
        print(f"| {name} |", *(f"{cell(name, target)} |" for target in targets), flush=True)
