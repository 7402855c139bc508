"""`detector split JSON --val 0.2 [--test 0.1] --output DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from detector.cli.arguments import CommandParser, output_folder
from detector.cli.ending import ending
from detector.cli.printing import print_report
from detector.data.curation.groups import Link, joined_groups, links_by_key, links_by_name
from detector.data.curation.near_equal import LIMIT, Pair, hashes_of, near_equal_pairs
from detector.data.curation.split import Division, divide, rare_class_lines, share_rows
from detector.data.curation.whole_file import WholeFile, document_text, read_whole_file
from detector.data.image import MAX_PIXELS, ImageError
from detector.dataset_check.text_table import text_table
from detector.errors import DataError
from detector.files import check_folder, make_folder, write_text

PAIRS = 10  # shown
EPILOG = """
The images are neither copied nor moved: file names stay relative to the folder of the images. Groups of several kinds may be
asked for together; images that one of them joins stay together.
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `shares` are those of all splits."""
    parser = CommandParser("split", epilog=EPILOG)
    add = parser.add_argument
    add("annotations", metavar="JSON", type=Path, help="a COCO file; it is only read")
    add("--output", metavar="DIR", type=output_folder, required=True, help="for train.json, val.json and test.json")
    add(
        "--val",
        metavar="SHARE",
        type=float,
        required=True,
        help="share of the images and objects for validation, as 0.2",
    )
    add("--test", metavar="SHARE", type=float, help="share for a test split (default: none is made)")
    add("--seed", type=int, default=0, help="another seed gives another division (default: 0)")
    add("--group", metavar="KEY", help="images with the same value of this key of their entries stay together")
    add(
        "--group-name",
        metavar="REGEX",
        help="images in whose file names this finds the same stay together, as '^[^/]+'",
    )
    add("--group-content", metavar="IMAGES", type=Path, help="near-equal images in this folder stay together")
    add("--content-distance", metavar="D", type=float, default=LIMIT, help=f"0..1, up to which images count as near-equal "
        f"(default: {LIMIT})")  # fmt: skip
    add("--max-pixels", metavar="N", type=int, default=MAX_PIXELS, help="refuse larger images")
    args = parser.parse_args(argv)
    parts = {"val": args.val} | ({} if args.test is None else {"test": args.test})
    if not (all(0 < share < 1 for share in parts.values()) and sum(parts.values()) < 1):
        parser.error("--val and --test are shares between 0 and 1 that leave something for training, as 0.2")
    if not 0 <= args.seed < 2**32:
        parser.error("--seed lies in 0..2^32-1")
    args.shares = {"train": 1 - sum(parts.values())} | parts
    return args


def find_groups(args: argparse.Namespace, whole: WholeFile) -> tuple[list[list[int]], list[str]]:
    """The groups of images, and lines about them."""
    names, path, n = whole.coco.file_names, whole.coco.path, len(whole.coco.file_names)
    links: list[Link] = []
    lines: list[str] = []
    if args.group is not None:
        links += links_by_key(whole.document["images"], args.group, path)
        lines.append(f"by `{args.group}`: {_size(joined_groups(n, links))}")
    if args.group_name is not None:
        own = links_by_name(names, args.group_name, path)
        lines.append(f"by the file names: {_size(joined_groups(n, own))}")
        links += own
    if args.group_content is not None:
        pairs, errors = find_pairs(args, names)
        own = [(a, b) for _, a, b in pairs]
        lines += [f"by near-equal content: {_size(joined_groups(n, own))}", *_pair_lines(pairs, names)]
        lines += [f"  not compared: {len(errors)} images, the first: {errors[0]}"] if errors else []
        links += own
    groups = joined_groups(n, links)
    if sum(option is not None for option in (args.group, args.group_name, args.group_content)) > 1:
        lines.append(f"together: {_size(groups)}")
    return groups, lines


def find_pairs(args: argparse.Namespace, names: list[str]) -> tuple[list[Pair], list[ImageError]]:
    """The pairs of near-equal images, the nearest first, and the errors of images that cannot be read."""
    hashes, rows, errors = hashes_of(args.group_content, names, args.max_pixels)
    pairs = near_equal_pairs(hashes, args.content_distance)
    return sorted((distance, rows[a], rows[b]) for distance, a, b in pairs), errors


def _size(groups: list[list[int]]) -> str:
    several = [len(rows) for rows in groups if len(rows) > 1]
    return (
        f"{len(several)} groups of {sum(several)} images, the largest of {max(several, default=0)}; "
        f"{len(groups) - len(several)} images alone"
    )


def _pair_lines(pairs: list[Pair], names: list[str]) -> Iterator[str]:
    """The pairs with the largest distance, which are the doubtful ones."""
    for distance, a, b in reversed(pairs[-PAIRS:]):
        yield f"  {distance:.2f}  {names[a]}  {names[b]}"
    if len(pairs) > PAIRS:
        yield f"  and {len(pairs) - PAIRS} pairs of a smaller distance"


def write_new_or_equal(texts: dict[Path, str]) -> None:
    """Write files, unless they exist with that content. Raises DataError, before anything is written, if one has another.

    A division that is written over would put images that a detector has learnt into its validation.
    """
    missing = {path: text for path, text in texts.items() if not (path.exists() or path.is_symlink())}
    for path in texts.keys() - missing.keys():
        try:
            equal = path.is_file() and path.read_bytes() == texts[path].encode()
        except OSError:
            equal = False
        if not equal:
            raise DataError(f"{path}: exists already with other content and is not written over; name another folder")
    for path, text in missing.items():
        write_text(path, text)


def report(division: Division) -> str:
    """The table and the rare classes."""
    rows = share_rows(division)
    return "\n".join([*text_table(rows, "l" + "r" * (len(rows[0]) - 1)), *rare_class_lines(division)])


def main(argv: list[str] | None = None) -> int:
    """Divide, write and report; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        check_folder(args.output)
        whole = read_whole_file(args.annotations)
        groups, lines = find_groups(args, whole)
        division = divide(whole, groups, args.shares, args.seed)
        files = {split: args.output / f"{split}.json" for split in args.shares}
        make_folder(args.output)
        write_new_or_equal({path: document_text(division.document(split)) for split, path in files.items()})
        print_report("\n".join([*lines, report(division)]))
        print_report(f"written. In a configuration, with the image folder of {args.annotations} as root:")
        print_report(
            "\n".join(f"  {split}: {{images: ., annotations: {path.resolve()}}}" for split, path in files.items())
        )
    return end.status
