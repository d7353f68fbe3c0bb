"""The display matrix of a video -> Orientation: how its decoded pictures are mirrored and turned to
stand as players show them.

Eight orientations can be had without resampling: four quarter turns, each mirrored or not. Phones
write turns, front cameras and editors mirrored ones, in MP4, Matroska or the video stream itself;
FFmpeg brings all of them with the first decoded picture. What players show is defined by FFmpeg's
`-autorotate`, and equals it here for every matrix that means one of the eight. An all-zero or
otherwise degenerate matrix means nothing: the picture stays as it is. Other angles (5, 45 degrees)
are brought to the nearest of the eight, and `odd_degrees` says what is left.
Source: ISO/IEC 14496-12, 8.3.2 (matrix of a track: x' = a x + c y, y' = b x + d y, stored a, b, u,
c, d, v, x, y, w).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import av
import numpy as np
from av.sidedata.sidedata import Type

MATRIX_NUMBERS = 9
# FFmpeg rounds to whole degrees and takes what is less than one off for a quarter turn
ODD_DEGREES = 1.0


@dataclass(frozen=True)
class Orientation:
    """A decoded picture stands upright after it was `mirrored` left to right, then turned by
    `quarters` counter-clockwise.

    odd_degrees: by how much the file asks for another angle than that; it is not followed.
    """

    quarters: int = 0
    mirrored: bool = False
    odd_degrees: float = field(default=0.0, compare=False)

    @property
    def is_plain(self) -> bool:
        """Whether decoded pictures stand upright as they are."""
        return not (self.quarters or self.mirrored)

    @property
    def swaps_sides(self) -> bool:
        """Whether the upright picture is as wide as the decoded one is high."""
        return self.quarters % 2 == 1

    def apply(self, pictures: np.ndarray, *, axes: tuple[int, int]) -> np.ndarray:
        """Decoded pictures made upright, as a view; `axes` are those of their rows and columns."""
        if self.mirrored:
            pictures = np.flip(pictures, axes[1])
        return np.rot90(pictures, self.quarters, axes=axes)

    def coded_box(self, box: tuple[int, int, int, int], coded: tuple[int, int]) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) in the decoded picture of (height, width) of a (top, left,
        height, width) box in the upright one.
        """
        top, left, box_height, box_width = box
        bottom, right = top + box_height, left + box_width
        height, width = coded
        if self.quarters == 1:  # upright row r, column c shows row c, column width - 1 - r
            top, left, bottom, right = left, width - bottom, right, width - top
        elif self.quarters == 2:
            top, left, bottom, right = height - bottom, width - right, height - top, width - left
        elif self.quarters == 3:  # row height - 1 - c, column r
            top, left, bottom, right = height - right, top, height - left, bottom
        return (top, width - right, bottom, width - left) if self.mirrored else (top, left, bottom, right)

    def __str__(self) -> str:
        parts = ["mirrored"] * self.mirrored + [f"turned by {90 * self.quarters} degrees"] * (self.quarters > 0)
        return " and ".join(parts) or "as it is coded"


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """That of a decoded picture: of its container's track, or of a message in the video stream."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return Orientation()
    return read_matrix(np.frombuffer(bytes(matrix), np.int32)[:MATRIX_NUMBERS].tolist())


def read_matrix(matrix: list[int]) -> Orientation:
    """The nearest of the eight to a display matrix of nine numbers."""
    a, b, _, c, d = matrix[:5]
    if not math.hypot(a, c) or not math.hypot(b, d):  # a picture of no width or height
        return Orientation()
    # As FFmpeg's av_display_rotation_get does it, whatever the scale.
    degrees = math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))
    odd = degrees - 90 * round(degrees / 90)
    odd = odd if abs(odd) >= ODD_DEGREES else 0.0
    if abs(a) + abs(d) >= abs(b) + abs(c):  # columns stay columns
        turned, mirrored = d < 0, (a < 0) != (d < 0)
        return Orientation(2 * turned, mirrored, odd)
    # Upright = transposed, then perhaps mirrored: the transpose is a mirrored picture, turned by
    # one quarter.
    return Orientation(1 if c > 0 else 3, (b < 0) == (c < 0), odd)
