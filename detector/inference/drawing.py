"""Drawing detections so that boxes and labels are legible on light and dark images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from detector.data.image import MAX_PIXELS
from detector.inference.label_places import PixelBox, inside, place_labels, shared_area
from detector.inference.lettering import Line, fonts_of, joined, readable_names, typeset
from detector.inference.mask_drawing import BLACK, WHITE, Colour, draw_keypoints, draw_masks
from detector.inference.pictures import Picture, read_picture
from detector.structures import Detections

GOLDEN = 0.618034  # hue steps by the golden ratio keep the colours of neighbouring labels apart
TONES = ((0.85, 1.0), (0.5, 1.0), (0.9, 0.8))  # saturation, value
LEAST_LUMINANCE = 0.22  # a contrast of (0.22 + 0.05) / 0.05 = 5.4 to black; WCAG 2 asks for 4.5
MOST_INK = 0.4  # of the picture, under lines and halos; more boxes have thinner lines
LESS_INK = 0.1  # of boxes around masks, which must not hide them
LEAST_OPACITY = 0.1  # of lines one pixel wide, in a crowd that would still hide the picture
LEAST_LINE, LEAST_FONT = 2, 13  # pixels, to which small objects may reduce those of a large picture
HALO = (0, 0, 0, 130)  # a dark outline around the bright lines, for light images


def draw_detections(image: Tensor, detections: Detections) -> Image.Image:
    """Draw boxes, class names and scores on a uint8 RGB image (3, H, W).

    Line width and font scale with the image, and stay small where its objects are small, which they would hide.
    Masks are filled and outlined, keypoints joined where their skeleton is known; then each object has its own colour, else
    each class. In a crowd lines are thin, labels that would hide better ones are left out, and a note says how many.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    short, long = sorted(picture.size)
    typical = _typical_side(detections.boxes)
    full = max(1, min(round(short / 240), max(LEAST_LINE, round(typical / 8))))
    size = max(10, min(round(long / 50), max(LEAST_FONT, round(typical))))
    apart = detections.masks is not None or detections.keypoints is not None
    colours = [class_colour(i) for i in (range(len(detections)) if apart else detections.labels.tolist())]
    if detections.masks is not None:
        draw_masks(picture, detections.masks, colours, full)
    most = MOST_INK if detections.masks is None else LESS_INK
    line, seam, opacity = _line_style(detections.boxes, picture.size, full, most)
    pen = ImageDraw.Draw(picture, "RGBA")
    boxes = [_frame(box, line + seam, picture.size) for box in detections.boxes.tolist()]
    for box, colour in reversed(list(zip(boxes, colours))):  # the best on top
        if seam:
            _rectangle(pen, _grow(box, seam), HALO, line + 2 * seam)
        _rectangle(pen, box, (*colour, opacity), line)
    if detections.keypoints is not None:
        draw_keypoints(pen, detections, colours, full)
    margin = 2 * line
    labels = _labels(detections, size, picture.width - 2 * margin)
    sizes = [(label.width + 2 * margin, label.ascent + label.descent) for label in labels]
    plates = place_labels(boxes, sizes, picture.size)
    for plate, colour, label in reversed(list(zip(plates, colours, labels))):
        if plate is not None:
            _plate(picture, plate, label, margin, colour, BLACK)
    _note_left_out(picture, plates, max(10, min(round(long / 60), size)))
    return picture


def plot(
    image: Picture, detections: Detections, *, max_pixels: int = MAX_PIXELS, bit_depth: int | None = None
) -> Image.Image:
    """Draw on whatever a predictor takes as one picture, the best on top.

    Raises DataError for an unreadable file, ValueError for a tensor or array of another form.
    """
    if not isinstance(image, Tensor):
        image = read_picture(image, max_pixels, bit_depth=bit_depth)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected a uint8 RGB tensor (3, H, W), got {image.dtype} {tuple(image.shape)}")
    return draw_detections(image, detections.sort())


def class_colour(label: int) -> Colour:
    """The fixed colour of a class, distinct from those of neighbouring labels and bright enough for black text."""
    saturation, value = TONES[label % len(TONES)]
    colour = [255 * c for c in colorsys.hsv_to_rgb(label * GOLDEN % 1, saturation, value)]
    while luminance(colour) < LEAST_LUMINANCE:  # blues and violets
        colour = [c + (255 - c) / 8 for c in colour]
    r, g, b = (round(c) for c in colour)
    return r, g, b


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour (0..255 each), as in WCAG 2: 0 black .. 1 white."""
    r, g, b = ((c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _typical_side(boxes: Tensor) -> float:
    """The median of the longer sides of boxes (D, 4); zero without any."""
    return (boxes[:, 2:] - boxes[:, :2]).amax(dim=1).median().item() if len(boxes) else 0.0


def _line_style(boxes: Tensor, picture: tuple[int, int], line: int, share: float) -> tuple[int, int, int]:
    """Width of the line, of the halo beside it, and opacity (0..255): the most that leave much of the picture visible."""
    perimeters = 2 * (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).sum().item()
    most = share * picture[0] * picture[1]
    for width in range(line, 0, -1):
        seam = (width + 1) // 2
        if perimeters * (width + 2 * seam) <= most:
            return width, seam, 255
    return 1, 0, round(255 * max(min(most / perimeters, 1), LEAST_OPACITY))


def _labels(detections: Detections, size: int, room: int) -> list[Line]:
    """The name and score of each detection, laid out in at most `room` pixels; names alone where scores do not fit."""
    labels, classes = detections.labels.tolist(), detections.class_names
    known = None if classes is None else readable_names(tuple(classes))
    names = [str(label) if known is None else known[label] for label in labels]
    fonts = fonts_of(sorted(set(names)))
    scores = [f"  {score:.2f}" for score in detections.scores.tolist()]  # two: one is too narrow in small letters
    score_lines = {score: typeset(score, size, fonts) for score in set(scores)}
    left = room - max((line.width for line in score_lines.values()), default=0)
    name_lines = {name: typeset(name, size, fonts, left if left >= size else room) for name in set(names)}
    if left < size:
        return [name_lines[name] for name in names]
    return [joined(name_lines[name], score_lines[score]) for name, score in zip(names, scores)]


def _note_left_out(picture: Image.Image, plates: Sequence[PixelBox | None], size: int) -> None:
    """Write into a corner how many labels are left out, if any and if there is room."""
    count = plates.count(None)
    line = typeset(f"{count} more without label", size, fonts_of(()))
    w, h = line.width + size, line.ascent + line.descent
    if not count or w > picture.width or h > picture.height / 4:
        return
    right, bottom = picture.width - w, picture.height - h
    taken = [plate for plate in plates if plate is not None]
    corners = [inside(x, y, w, h, picture.size) for y in (bottom, 0) for x in (0, right)]
    corner = min(corners, key=lambda corner: sum(shared_area(corner, plate) for plate in taken))
    _plate(picture, corner, line, size // 2, BLACK, WHITE)


def _plate(picture: Image.Image, box: PixelBox, line: Line, margin: int, background: Colour, colour: Colour) -> None:
    x1, y1, x2, y2 = box
    ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), fill=background)
    line.draw(picture, x1 + margin, y1 + line.ascent, colour)


def _frame(box: list[float], by: int, picture: tuple[int, int]) -> PixelBox:
    """The outer edge of the line around a box: outside the box, but inside the picture."""
    x1, y1, x2, y2 = _grow(tuple(round(v) for v in box), by)
    return max(x1, 0), max(y1, 0), min(x2, picture[0]), min(y2, picture[1])


def _grow(box: PixelBox, by: int) -> PixelBox:
    x1, y1, x2, y2 = box
    return x1 - by, y1 - by, x2 + by, y2 + by


def _rectangle(pen: ImageDraw.ImageDraw, box: PixelBox, colour: tuple[int, ...], line: int) -> None:
    x1, y1, x2, y2 = box
    pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=colour, width=line)
