"""The commands with a sentence each, and the options that several of them share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = {
    "train": "Train a detector; started by torchrun, on many processes.",
    "evaluate": "Compute the COCO metrics of a checkpoint or of a results file, or write a checkpoint's proposals.",
    "infer": "Detect objects in images; write pictures with boxes, and detections.json in COCO results form.",
    "check-data": "Check a data set: files, boxes, outlines, classes, and whether the anchors fit its objects.",
    "convert-annotations": "Convert VOC, YOLO, labelme, Label Studio or CVAT annotations into COCO, or COCO into VOC or YOLO.",
    "split": "Divide a COCO file into train, val and test by share, class and group.",
    "merge": "Merge COCO files into one, or rename, join and drop the classes of one.",
    "convert-weights": "Convert the weights of another framework into a checkpoint, or a checkpoint into such weights.",
    "export": "Write a checkpoint as a file for another engine, and check that it finds the same.",
    "report": "Write a page about trainings: scores, errors, lost objects, wrong labels; several are compared.",
    "browse": "Look at the images of a training in a browser: objects, detections, kinds of errors; two runs are compared.",
    "explain": "Explain why something is detected in an image or is not: a picture, a paragraph, all steps in numbers.",
    "compare": "Train and evaluate configurations under one recipe, and tabulate their accuracy and cost.",
    "benchmark": "Measure speed and memory of a detector, beside torchvision's where that has the same model.",
    "make-shapes": "Draw a small data set in COCO form: shapes of all scales, the same on every machine.",
    "config": "Print the effective configuration, the origin of every value, and the meaning of every key.",
}
CONFIG_HELP = "a YAML file, or detector://NAME.yaml for one that comes with the package"
CHECKPOINT_HELP = "a checkpoint, or a published detector such as torchvision/fasterrcnn_resnet50_fpn_v2"
RUNNABLE_HELP = f"{CHECKPOINT_HELP}, or an exported file (.onnx, .xml, .pt2)"
OVERRIDES_HELP = "changes to the configuration, for instance train.epochs=3"


class CommandParser(argparse.ArgumentParser):
    """Parses the arguments of one command; every command has `--debug`. argparse makes those of FORMATs with `prog` alone."""

    def __init__(self, command: str = "", *, prog: str | None = None, **options: Any):
        options.setdefault("description", COMMANDS.get(command))
        super().__init__(prog=prog or f"detector {command}", **options)
        # suppressed: the default of a subcommand would replace the value given before it
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks of errors")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2; of several processes only the first prints the message."""
        if os.environ.get("RANK", "0") != "0":
            self.exit(2)
        super().error(message)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that run a trained network."""
    add = parser.add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--precision", choices=["bfloat16", "float32"], default="float32", help="of the network (default: float32)")
    add("--tta", action="store_true", help="test-time augmentation: merge the scales and flips of data.tta")
    add("--trust", action="store_true", help="import the custom code that the checkpoint refers to")


def runs_and_changes(parser: argparse.ArgumentParser, given: list[str]) -> tuple[list[Path], list[str]]:
    """Folders of trainings and changes of their configuration, told apart by the `=`; an error without a folder."""
    changes = [text for text in given if "=" in text and not Path(text).is_dir()]
    runs = [Path(text) for text in given if text not in changes]
    if not runs:
        parser.error("name the folder of a training")
    return runs, changes


def output_folder(text: str) -> Path:
    """A folder argument; an empty one, as an unset shell variable gives, would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder")
    return Path(text)
