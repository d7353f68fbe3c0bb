"""Frames of sprites that move in one direction: no single frame shows which, two do.

Every sprite starts anywhere in the picture, all positions being equally likely, and goes straight
on; what leaves at one side comes in at the opposite one. So in every frame its position is uniform,
whatever the direction. Sizes, colours, textures, speeds, the number of sprites and the camera are
sampled without regard to the direction either. A single frame therefore has the same distribution
for all directions, and no classifier of single frames can be better than chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Steps (down, right). The demo has the first four; a set of K classes has the first K.
DIRECTIONS = {
    "horizontal": (0, 1),
    "vertical": (1, 0),
    "falling": (1, 1),
    "rising": (-1, 1),
    "leftward": (0, -1),
    "upward": (-1, 0),
    "falling-left": (1, -1),
    "rising-left": (-1, -1),
}
NAMES = tuple(DIRECTIONS)

# In parts of the shorter side of the picture: sides, and what a sprite moves from one frame to the
# next.
SQUARE_SIDES, DISC_SIDES, SPEEDS = (1 / 4, 1 / 3), (1 / 8, 1 / 6), (1 / 40, 1 / 20)
# of the patterns, in parts of the range from dark to light
SPRITE_DEPTH, BACKGROUND_DEPTH = 0.12, 0.03
PAN_ROOM, PAN_SPEEDS = 32, (0.5, 1.0)  # in pixels, and pixels a frame

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SceneSize:
    """num_classes: the directions that occur are the first so many."""

    num_frames: int
    height: int
    width: int
    num_classes: int = 4

    @property
    def short_side(self) -> int:
        return min(self.height, self.width)


@dataclass(frozen=True)
class Scene:
    """frames_THWC: uint8. boxes, distractor_boxes: for each sprite and frame (top, left, height,
    width), the corner inside the picture; what sticks out below or on the right is seen above or on
    the left. background_shifts: for each frame how far (down, right) the camera has gone.
    """

    frames_THWC: np.ndarray
    boxes: list[list[Box]]
    distractor_boxes: list[list[Box]]
    background_shifts: list[tuple[int, int]]


def make_scene(rng: np.random.Generator, name: str, *, size: SceneSize, pans: bool) -> Scene:
    """One or two squares that move in the direction `name`, over a smaller disc that moves in
    another one, over a background that stands still or, with `pans`, goes there and back. Later
    sprites cover earlier ones.
    """
    shifts = _pan(rng, size.num_frames) if pans else [(0, 0)] * size.num_frames
    room = PAN_ROOM if pans else 0
    background = _draw_texture(rng, size.height + room, size.width + room, low=40, high=215, depth=BACKGROUND_DEPTH)
    frames_THWC = np.stack([background[down : down + size.height, right : right + size.width] for down, right in shifts])
    others = [other for other in NAMES[: size.num_classes] if other != name]
    disc = _move_sprite(rng, frames_THWC, DIRECTIONS[others[rng.integers(len(others))]], _draw_disc(rng, size))
    squares = [_move_sprite(rng, frames_THWC, DIRECTIONS[name], _draw_square(rng, size)) for _ in range(1 + int(rng.integers(2)))]
    return Scene(frames_THWC, squares, [disc], shifts)


def find_covered(box: Box, height: int, width: int) -> np.ndarray:
    """bool [H, W]: the pixels of the picture inside a box, on both sides where it sticks out."""
    top, left, box_height, box_width = box
    inside_HW = np.zeros((height, width), bool)
    inside_HW[:box_height, :box_width] = True
    return np.roll(inside_HW, (top, left), axis=(0, 1))


def _pan(rng: np.random.Generator, num_frames: int) -> list[tuple[int, int]]:
    speed, is_across = rng.uniform(*PAN_SPEEDS), bool(rng.integers(2))
    shifts = [round(PAN_ROOM - abs(speed * frame % (2 * PAN_ROOM) - PAN_ROOM)) for frame in range(num_frames)]
    return [(0, shift) if is_across else (shift, 0) for shift in shifts]


def _draw_square(rng: np.random.Generator, size: SceneSize) -> tuple[np.ndarray, np.ndarray]:
    side = _draw_side(rng, SQUARE_SIDES, size)
    return _draw_texture(rng, side, side, low=10, high=250, depth=SPRITE_DEPTH), np.ones((side, side, 1), bool)


def _draw_disc(rng: np.random.Generator, size: SceneSize) -> tuple[np.ndarray, np.ndarray]:
    side = _draw_side(rng, DISC_SIDES, size)
    from_middle = np.arange(side) - (side - 1) / 2
    inside_HW = np.hypot(from_middle[:, None], from_middle) <= side / 2
    return _draw_texture(rng, side, side, low=10, high=250, depth=SPRITE_DEPTH), inside_HW[..., None]


def _draw_side(rng: np.random.Generator, parts: tuple[float, float], size: SceneSize) -> int:
    low, high = (round(part * size.short_side) for part in parts)
    return int(rng.integers(low, high + 1))


def _move_sprite(
    rng: np.random.Generator, frames_THWC: np.ndarray, direction: tuple[int, int], sprite: tuple[np.ndarray, np.ndarray]
) -> list[Box]:
    """Draw a sprite, (pixels, opaque), into the frames; returns its box in each."""
    pixels_HWC, opaque_HW1 = sprite
    _, *sides, _ = frames_THWC.shape
    start = rng.integers(sides)
    # all directions are equally fast
    speed = rng.uniform(*SPEEDS) * min(sides) / math.hypot(*direction)
    boxes = []
    for frame, frame_HWC in enumerate(frames_THWC):
        # Whole pixels: a sprite between them would be blurred along its direction.
        steps = round(speed * frame)
        top, left = (int(corner + step * steps) % side for corner, step, side in zip(start, direction, sides, strict=True))
        rows, columns = ((begin + np.arange(len(pixels_HWC))) % side for begin, side in zip((top, left), sides, strict=True))
        there = np.ix_(rows, columns)
        frame_HWC[there] = np.where(opaque_HW1, pixels_HWC, frame_HWC[there])
        boxes.append((top, left, *pixels_HWC.shape[:2]))
    return boxes


def _draw_texture(rng: np.random.Generator, height: int, width: int, *, low: int, high: int, depth: float) -> np.ndarray:
    """A coloured surface with a soft pattern of that depth, lit from the upper left, uint8 [H, W,
    3].

    The light is the same in every video, so that a small model has something to learn within a
    minute; colour and pattern differ.
    """
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    waves = rng.uniform(1, 2, 2)
    phase = rng.uniform(0, 2 * np.pi)
    pattern = depth * np.sin(2 * np.pi * (waves[0] * x + waves[1] * y) + phase)
    light = np.clip(1 - (x + y) / 2 + pattern, 0, 1)[..., None]
    colour = rng.uniform(0.6, 1.0, 3)
    return np.uint8((low + (high - low) * light) * colour)
