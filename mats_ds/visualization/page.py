"""One picture of a clip: its panels with headings and times, and the strip of candidate frames ->
uint8 [H, W, 3].

Drawn with Pillow and the font that matplotlib brings. Pixels of a panel are enlarged by an integer
factor, without smoothing.
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
# pixels: around everything, between panels, for "1234.56 s" at the left
MARGIN, GAP, GUTTER = 12, 8, 76
LINE, FONT_SIZE = 22, 14
PANEL_SIDE = 224  # small panels are enlarged to about this
COLUMN = 216  # of a panel at least: its longest heading fits, beside a tall video too
THUMBNAIL_SIDE, BORDER = 64, 3
DIMMED = 0.35


@dataclass(frozen=True)
class Strip:
    """The candidate frames of adaptive selection, one picture a tubelet: pictures_KHWC uint8,
    taken_K bool."""

    pictures_KHWC: np.ndarray
    taken_K: np.ndarray


@dataclass(frozen=True)
class Page:
    """The content of a page about a clip of T frames. tubelet_T: the candidate tubelet of each
    frame.
    seconds_T: the time of each frame in its video, None where it is not known.
    """

    title: str
    panels: Sequence[Panel]
    tubelet_T: np.ndarray
    seconds_T: np.ndarray | None = None
    strip: Strip | None = None
    note: str = ""

    @property
    def num_frames(self) -> int:
        return len(self.tubelet_T)

    def name_frame(self, frame: int) -> str:
        """The text at the left of a frame's row."""
        return f"frame {frame + 1}" if self.seconds_T is None else f"{self.seconds_T[frame]:.2f} s"


def draw_page(page: Page, frames: Sequence[int]) -> np.ndarray:
    """uint8 [H, W, 3]: one row of panels for each of the `frames` (numbers from 0), below them the
    strip and the note.

    With a single frame the strip marks it: such pictures make a video, all of one size.
    """
    from PIL import Image, ImageDraw

    height, width = page.panels[0].frames_THWC.shape[1:3]
    scale = choose_scale(height, width)
    column = max(COLUMN, width * scale)
    lefts = [MARGIN + GUTTER + number * (column + GAP) for number in range(len(page.panels))]
    total_width = lefts[-1] + column + MARGIN
    line_width = total_width - 2 * MARGIN - GUTTER
    top_of_rows = MARGIN + 2 * LINE
    row_height = height * scale + GAP
    below = top_of_rows + len(frames) * row_height
    strip = draw_strip(page, frames, line_width) if page.strip else None
    strip_height = LINE + strip.height + GAP if strip else 0
    canvas = Image.new("RGB", (total_width, below + strip_height + (LINE if page.note else 0) + MARGIN), BACKGROUND)
    pen = ImageDraw.Draw(canvas)

    def write(left: int, top: int, text: str, colour: tuple[int, int, int] = FAINT, *, room: int) -> None:
        pen.text((left, top), fit_text(text, room), fill=colour, font=load_font())

    write(MARGIN, MARGIN, page.title, INK, room=total_width - 2 * MARGIN)
    for left, panel in zip(lefts, page.panels, strict=True):
        write(left, MARGIN + LINE, panel.name, room=column)
    for row, frame in enumerate(frames):
        top = top_of_rows + row * row_height
        write(MARGIN, top, page.name_frame(frame), room=GUTTER)
        for left, panel in zip(lefts, page.panels, strict=True):
            canvas.paste(enlarge(panel.frames_THWC[frame], scale), (left, top))
    if strip:
        taken, candidates = int(page.strip.taken_K.sum()), len(page.strip.taken_K)
        now = "; orange: the one shown" if len(frames) == 1 else ""
        caption = f"adaptive frames: of {candidates} candidate tubelets the {taken} with a border were taken{now}"
        write(MARGIN + GUTTER, below, caption, room=line_width)
        canvas.paste(strip, (MARGIN + GUTTER, below + LINE))
    write(MARGIN + GUTTER, below + strip_height, page.note, room=line_width)
    return np.asarray(canvas)


def draw_strip(page: Page, frames: Sequence[int], width: int) -> Image.Image:
    """The candidates side by side within `width`; taken ones bright with a border, the shown one
    with another."""
    from PIL import Image

    pictures_KHWC, taken_K = page.strip.pictures_KHWC, page.strip.taken_K
    num, height, side = len(pictures_KHWC), pictures_KHWC.shape[1], pictures_KHWC.shape[2]
    available = width // num - 2 * BORDER - 2
    thumb_width = max(4, min(available, round(THUMBNAIL_SIDE * side / height)))
    thumb_height = max(4, round(thumb_width * height / side))
    strip = Image.new("RGB", (num * (thumb_width + 2 * BORDER + 2), thumb_height + 2 * BORDER), BACKGROUND)
    now = page.tubelet_T[frames[0]] if len(frames) == 1 else -1
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
    """The integer factor by which a panel's pixels are enlarged."""
    return max(1, round(PANEL_SIDE / max(height, width)))


def enlarge(picture_HWC: np.ndarray, scale: int) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(picture_HWC.repeat(scale, axis=0).repeat(scale, axis=1)))


@lru_cache(maxsize=1)
def load_font() -> ImageFont.FreeTypeFont:
    """The sans-serif font that comes with matplotlib, so that pages look alike everywhere."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", FONT_SIZE)


def fit_text(text: str, width: int) -> str:
    """The text as one line, its end cut off with three dots where it is wider than `width`
    pixels."""
    text = clean_line(text)[: max(0, width)]  # hardly a character is narrower than a pixel
    if load_font().getlength(text) <= width:
        return text
    most = bisect_right(range(len(text)), width, key=lambda length: load_font().getlength(text[:length] + "...")) - 1
    return text[: max(0, most)] + "..."
