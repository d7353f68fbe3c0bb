"""Backdrops and cut-outs from the photographs that scikit-image ships: name -> RGBA, float32
[H, W, 4], colours multiplied by their alpha.

Only photographs whose licence scikit-image names as CC0 or public domain in the docstring of the
function that reads them; SOURCES repeats it. All of them come with its wheel: nothing is
downloaded. An outline is a polygon in pixels of the photograph, found by eye.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from mats_ds.core.storage.package_files import check_packages

EDGE_PIXELS = 1.2  # of the photograph, over which a cut-out fades
BALL_SIDE = 256


@dataclass(frozen=True)
class Source:
    """A photograph: the name of its function in skimage.data, what it shows, whose it is and its
    licence."""

    name: str
    shows: str
    author: str
    licence: str


SOURCES = (
    Source("astronaut", "astronaut Eileen Collins and a model of the Space Shuttle", "NASA", "public domain"),
    Source("rocket", "Falcon 9 with DSCOVR on its launch pad", "SpaceX", "public domain"),
    Source("coffee", "a cup of coffee", "Rachel Michetti", "CC0"),
    Source("chelsea", "Chelsea the cat", "Stefan van der Walt", "CC0"),
    Source("hubble_deep_field", "the Hubble eXtreme Deep Field", "NASA", "public domain"),
    Source("retina", "a retina, here the surface of a ball", "Mikael Häggström", "CC0"),
    Source("brick", "a brick pavement", "CC0Textures", "CC0"),
    Source("gravel", "gravel", "CC0Textures", "CC0"),
    Source("grass", "grass", "linolafett", "CC0"),
)

# Of photographs without colour: that of their darkest and of their brightest pixels.
TINTS = {
    "brick": ((0.16, 0.07, 0.05), (1.0, 0.82, 0.70)),
    "gravel": ((0.10, 0.09, 0.08), (0.98, 0.93, 0.85)),
    "grass": ((0.03, 0.07, 0.02), (0.78, 0.92, 0.48)),
}
# the columns and rows of the launch pad that the rocket covers, and those beside it
ROCKET_LEFT, ROCKET_RIGHT, ROCKET_TOP, ROCKET_BOTTOM, BESIDE = 288, 357, 112, 405, 4

# photograph, and corners "x,y x,y ..."
OUTLINES = {
    "person": (
        "astronaut",
        "23,512 30,460 23,407 25,347 33,307 43,267 70,243 100,220 117,200 115,187 123,167 143,155 183,149 "
        "181,133 170,120 159,100 154,73 160,57 175,43 187,30 207,19 233,16 260,21 283,37 297,53 301,73 "
        "297,100 283,120 270,130 263,150 257,175 273,187 293,210 305,240 327,250 343,267 353,293 360,327 "
        "361,350 333,363 307,393 287,433 280,467 283,512",
    ),
    "shuttle": (
        "astronaut",
        "400,1 430,1 437,27 439,47 443,40 450,48 454,73 454,193 456,220 434,233 437,247 445,267 440,272 "
        "427,260 417,270 407,268 403,250 400,270 390,270 383,257 370,272 367,263 377,230 355,223 357,210 "
        "377,187 379,120 380,103 381,50 387,42 393,53 397,30",
    ),
    "cup": (
        "coffee",
        "77,213 80,173 97,133 127,97 174,71 177,60 193,37 233,21 287,18 340,23 380,40 399,63 403,68 421,68 "
        "423,80 417,105 443,130 467,167 479,207 480,233 470,273 443,317 407,353 360,377 300,388 247,383 "
        "193,367 147,337 110,300 85,257",
    ),
    "rocket": (
        "rocket",
        "322,126 327,132 332,143 335,155 335,176 332,180 332,405 312,405 312,180 309,176 309,155 312,143 317,132",
    ),
}
BACKDROPS = ("launch_pad", "deep_field", "cat", "brick", "gravel", "grass")


@cache
def read_photograph(name: str) -> np.ndarray:
    """A photograph of SOURCES, float32 RGB [H, W, 3] from 0 to 1. Raises ValueError without
    scikit-image."""
    check_packages("a scene made of photographs", "skimage")
    from skimage import data

    pixels = getattr(data, name)().astype(np.float32) / 255
    if pixels.ndim == 3:
        return pixels[..., :3]
    dark, bright = (np.float32(colour) for colour in TINTS[name])
    return dark + (bright - dark) * pixels[..., None]


@cache
def make_backdrop(name: str) -> np.ndarray:
    """One of BACKDROPS, opaque."""
    photograph = {"deep_field": "hubble_deep_field", "cat": "chelsea", "launch_pad": "rocket"}.get(name, name)
    pixels = read_photograph(photograph)
    if name == "launch_pad":
        pixels = _without_rocket(pixels)
    return np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)


@cache
def cut_out(name: str) -> np.ndarray:
    """One of OUTLINES with its smallest margin, transparent outside, with soft edges."""
    from PIL import Image, ImageDraw, ImageFilter

    photograph, corners = OUTLINES[name]
    pixels = read_photograph(photograph)
    height, width = pixels.shape[:2]
    fine = 4  # drawn larger, so that slanted edges have no steps
    mask = Image.new("L", (width * fine, height * fine))
    points = [tuple(fine * int(number) for number in corner.split(",")) for corner in corners.split()]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(EDGE_PIXELS * fine)).resize((width, height), Image.Resampling.BOX)
    alpha = np.asarray(mask, np.float32)[..., None] / 255
    # A blurred edge lies half outside the outline, where the photograph shows what was behind.
    alpha = np.clip(2 * alpha - 1, 0, 1)
    rows, columns = (np.flatnonzero(alpha[..., 0].any(axis=axis)) for axis in (1, 0))
    inside = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.concatenate([pixels * alpha, alpha], axis=-1)[inside]


@cache
def make_ball() -> tuple[np.ndarray, np.ndarray]:
    """A ball's surface, which turns as it rolls, and the light on it, which does not."""
    from PIL import Image

    photograph = Image.fromarray(np.uint8(read_photograph("retina") * 255))
    width, height = photograph.size
    edge = round(0.08 * width)  # its dark frame
    photograph = photograph.crop((edge, edge, width - edge, height - edge)).resize((BALL_SIDE, BALL_SIDE), Image.Resampling.BOX)
    y, x = np.mgrid[:BALL_SIDE, :BALL_SIDE].astype(np.float32) * 2 / (BALL_SIDE - 1) - 1
    radius = np.hypot(x, y)
    alpha = np.clip((1 - radius) * BALL_SIDE / 4, 0, 1)[..., None]
    towards = np.sqrt(np.clip(1 - radius**2, 0, 1))
    light = np.clip(-0.45 * x - 0.6 * y + 0.66 * towards, 0, 1)[..., None]  # from the upper left
    shade = (1 - light) * 0.75 * alpha
    shine = np.clip(light - 0.93, 0, 1) * 8 * alpha
    surface = np.concatenate([np.asarray(photograph, np.float32) / 255 * alpha, alpha], axis=-1)
    lit = np.concatenate([np.repeat(shine, 3, axis=-1), np.clip(shade + shine, 0, 1)], axis=-1)
    return surface, lit.astype(np.float32)


@cache
def make_flame() -> np.ndarray:
    """The light of an engine, brightest at the top; it covers little and adds much."""
    y, x = np.mgrid[:192, :64].astype(np.float32)
    along, across = y / 191, (x - 31.5) / 32
    width = 0.25 + 0.45 * along
    glow = np.exp(-((across / width) ** 2) * 2) * np.clip(1 - along, 0, 1) ** 0.8 * np.clip(8 * along, 0, 1)
    glow = glow * np.clip((1 - np.abs(across)) * 4, 0, 1)
    colour = np.stack([glow * 1.2, glow * (1.05 - 0.6 * along), glow * (0.75 - 0.75 * along)], axis=-1)
    return np.concatenate([colour, 0.5 * glow[..., None]], axis=-1).astype(np.float32)


def _without_rocket(pixels_HWC: np.ndarray) -> np.ndarray:
    """The sky behind the rocket, from what is seen on its two sides."""
    sky_HWC = pixels_HWC.copy()
    rows = np.s_[ROCKET_TOP:ROCKET_BOTTOM]
    left = pixels_HWC[rows, ROCKET_LEFT - BESIDE : ROCKET_LEFT].mean(axis=1, keepdims=True)
    right = pixels_HWC[rows, ROCKET_RIGHT : ROCKET_RIGHT + BESIDE].mean(axis=1, keepdims=True)
    part = np.linspace(0, 1, ROCKET_RIGHT - ROCKET_LEFT, dtype=np.float32)[None, :, None]
    sky_HWC[rows, ROCKET_LEFT:ROCKET_RIGHT] = left + (right - left) * part
    return sky_HWC
