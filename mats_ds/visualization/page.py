"""Panels of a clip -> one picture with headings, times, and the strip of candidate frames: uint8 [H, W, 3].

Drawn with Pillow and the font that matplotlib brings. Pixels of a panel are enlarged by a whole number, without smoothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mats_ds.core.text import clean_line
from mats_ds.visualization.panels import Panel

if TYPE_CHECKING:
    from PIL import Image, ImageFont

BACKGROUND, INK, FAINT = (255, 255, 255), (32, 34, 40), (110, 114, 122)
TAKEN, NOW = (30, 160, 90), (240, 130, 20)  # borders of the strip
MARGIN, GAP, GUTTER = 12, 8, 58  # pixels: around everything, between panels, for the times at the left
LINE, FONT_SIZE = 22, 14
PANEL_SIDE = 224  # small panels are enlarged to about this
THUMBNAIL_SIDE, BORDER = 64, 3
DIMMED = 0.35


@dataclass(frozen=True)
class Strip:
    """The candidate frames of adaptive selection, one picture a tubelet: pictures_KHWC uint8, taken_K bool."""

    pictures_KHWC: np.ndarray
    taken_K: np.ndarray


@dataclass(frozen=True)
class Page:
    """What is drawn of a clip. seconds_T: the time of each frame used; tubelet_T: which candidate it belongs to."""

    title: str
    panels: Sequence[Panel]
    seconds_T: np.ndarray
    tubelet_T: np.ndarray
    strip: Strip | None = None
    note: str = ""


def draw_page(sheet: Page, frames: Sequence[int]) -> np.ndarray:
    """One row of panels for each of the `frames` (numbers from 0), below them the strip and the note.

    With a single frame the strip marks where it is: these sheets make a film, all of one size.
    """
    from PIL import Image, ImageDraw

    height, width = sheet.panels[0].frames_THWC.shape[1:3]
    scale = choose_scale(height, width)
    lefts = [MARGIN + GUTTER + number * (width * scale + GAP) for number in range(len(sheet.panels))]
    total_width = lefts[-1] + width * scale + MARGIN
    top_of_rows = MARGIN + 2 * LINE
    row_height = height * scale + GAP
    below = top_of_rows + len(frames) * row_height
    strip = draw_strip(sheet, frames, total_width - 2 * MARGIN - GUTTER) if sheet.strip else None
    strip_height = LINE + strip.height + GAP if strip else 0
    page = Image.new("RGB", (total_width, below + strip_height + (LINE if sheet.note else 0) + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN), fit_text(sheet.title, total_width - 2 * MARGIN), fill=INK, font=load_font())
    for left, panel in zip(lefts, sheet.panels, strict=True):
        pen.text((left, MARGIN + LINE), fit_text(panel.name, width * scale), fill=FAINT, font=load_font())
    for row, frame in enumerate(frames):
        top = top_of_rows + row * row_height
        pen.text((MARGIN, top), f"{sheet.seconds_T[frame]:.2f} s", fill=FAINT, font=load_font())
        for left, panel in zip(lefts, sheet.panels, strict=True):
            page.paste(enlarge(panel.frames_THWC[frame], scale), (left, top))
    if strip:
        taken, candidates = int(sheet.strip.taken_K.sum()), len(sheet.strip.taken_K)
        now = "; orange: the one shown" if len(frames) == 1 else ""
        told = f"adaptive frames: of {candidates} candidate tubelets the {taken} with a border were taken{now}"
        pen.text((MARGIN + GUTTER, below), fit_text(told, total_width - 2 * MARGIN - GUTTER), fill=FAINT, font=load_font())
        page.paste(strip, (MARGIN + GUTTER, below + LINE))
    pen.text(
        (MARGIN + GUTTER, below + strip_height),
        fit_text(sheet.note, total_width - 2 * MARGIN - GUTTER),
        fill=FAINT,
        font=load_font(),
    )
    return np.asarray(page)


def draw_strip(sheet: Page, frames: Sequence[int], width: int) -> Image.Image:
    """The candidates side by side within `width`; taken ones bright with a border, the one that is shown with another."""
    from PIL import Image

    pictures_KHWC, taken_K = sheet.strip.pictures_KHWC, sheet.strip.taken_K
    num, height, side = len(pictures_KHWC), pictures_KHWC.shape[1], pictures_KHWC.shape[2]
    room = width // num - 2 * BORDER - 2
    thumb_width = max(4, min(room, round(THUMBNAIL_SIDE * side / height)))
    thumb_height = max(4, round(thumb_width * height / side))
    strip = Image.new("RGB", (num * (thumb_width + 2 * BORDER + 2), thumb_height + 2 * BORDER), BACKGROUND)
    now = sheet.tubelet_T[frames[0]] if len(frames) == 1 else -1
    for number, (picture_HWC, taken) in enumerate(zip(pictures_KHWC, taken_K, strict=True)):
        left = number * (thumb_width + 2 * BORDER + 2)
        shown_HWC = picture_HWC if taken else (picture_HWC * DIMMED + 255 * (1 - DIMMED)).astype(np.uint8)
        if taken:
            frame = Image.new("RGB", (thumb_width + 2 * BORDER, thumb_height + 2 * BORDER), NOW if number == now else TAKEN)
            strip.paste(frame, (left, 0))
        thumb = Image.fromarray(shown_HWC).resize((thumb_width, thumb_height), Image.Resampling.LANCZOS)
        strip.paste(thumb, (left + BORDER, BORDER))
    return strip


def choose_scale(height: int, width: int) -> int:
    """The whole number by which a panel's pixels are enlarged."""
    return max(1, round(PANEL_SIDE / max(height, width)))


def enlarge(picture_HWC: np.ndarray, scale: int) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(picture_HWC.repeat(scale, axis=0).repeat(scale, axis=1)))


@lru_cache(maxsize=1)
def load_font() -> ImageFont.FreeTypeFont:
    """The sans-serif font that comes with matplotlib, so that sheets look alike everywhere."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", FONT_SIZE)


def fit_text(text: str, width: int) -> str:
    """The text as one line, its end cut off with three dots where it is wider than `width` pixels."""
    text = clean_line(text)[: max(0, width)]  # hardly a character is narrower than a pixel
    if load_font().getlength(text) <= width:
        return text
    most = bisect_right(range(len(text)), width, key=lambda length: load_font().getlength(text[:length] + "...")) - 1
    return text[: max(0, most)] + "..."
