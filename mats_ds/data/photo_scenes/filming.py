"""A scene before the camera: backdrop, actors, camera -> frames, uint8 [T, H, W, 3].

Every frame is the mean of a few moments while the shutter is open, which blurs what moves; each
moment looks at another quarter of every pixel, which smooths edges. Shadows are blurred cut-outs,
light falls off towards the corners, and each pixel has the noise of a sensor. M moments, C channels
(RGBA).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mats_ds.data.photo_scenes.motion import Path, sample_camera, sample_path
from mats_ds.data.photo_scenes.photographs import cut_out, make_backdrop, make_ball, make_flame

# Where in a pixel each moment of an open shutter looks, right and down: a turned square.
OFFSETS = np.array([[0.125, 0.375], [-0.375, 0.125], [0.375, -0.125], [-0.125, -0.375]])
MOMENTS = len(OFFSETS)
SHUTTER = 0.5  # of the time from one frame to the next
NOISE = 0.008  # standard deviation, of a range of 1
VIGNETTE = 0.22
SHADOW_BLUR = 0.035  # in heights of the cut-out
MARGIN = 1.3  # of a backdrop around the view
OPEN_SKY = ("launch_pad", "deep_field")  # nothing that a shadow could fall on
BYSTANDER_FOR = ("grass", "gravel", "brick")
# The flame below the rocket, in heights of the rocket.
FLAME = np.array([[0.5, 0, 0], [0, 0.5, 0.73], [0, 0, 1.0]])
# How strong shadows are, and where they fall from the cut-out, in its heights: on the ground under
# it, on a wall behind it, nowhere in space.
GROUND, WALL, NONE = (0.45, 0.05, 0.07), (0.28, 0.09, 0.03), (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Cast:
    """Who moves before which backdrops. nearness: how much more than the backdrop the actor moves
    when the camera does. bystander: who stands still, behind the actor or before it."""

    actor: str
    shadow: tuple[float, float, float]
    backdrops: tuple[str, ...]
    nearness: float = 1.0
    bystander: str | None = None


CASTS = {
    "lift-off": Cast("rocket", NONE, ("launch_pad",)),
    "walk": Cast("person", WALL, ("launch_pad", "brick", "grass"), 1.6),
    "slide": Cast("cup", GROUND, ("brick", "gravel", "grass")),
    "roll": Cast("ball", GROUND, ("grass", "gravel", "brick", "cat"), 1.2, "cup"),
    "drift": Cast("shuttle", NONE, ("deep_field",), 1.4),
}


@dataclass(frozen=True)
class PhotoScene:
    """frames_THWC uint8 RGB; covered_THW: the part of each pixel that the actor covers, 0 to 1."""

    frames_THWC: np.ndarray
    covered_THW: np.ndarray


class Picture:
    """RGBA float32 [H, W, 4], averaged down to the size at which it is seen."""

    def __init__(self, rgba_HWC: np.ndarray) -> None:
        self.rgba_HWC = rgba_HWC
        self.height, self.aspect = len(rgba_HWC), rgba_HWC.shape[1] / rgba_HWC.shape[0]
        self.is_opaque = bool(rgba_HWC[..., 3].min() == 1)
        self._smaller: dict[int, torch.Tensor] = {}

    def smaller(self, factor: int) -> torch.Tensor:
        """[1, 4, h, w]: the means of squares of `factor` pixels; what is left over at the end is
        mirrored."""
        if factor not in self._smaller:
            pad = [(0, -side % factor) for side in self.rgba_HWC.shape[:2]]
            padded_HWC = np.pad(self.rgba_HWC, (*pad, (0, 0)), mode="symmetric")
            height, width = (side // factor for side in padded_HWC.shape[:2])
            mean_HWC = padded_HWC.reshape(height, factor, width, factor, 4).mean(axis=(1, 3))
            self._smaller[factor] = torch.from_numpy(mean_HWC).permute(2, 0, 1)[None].contiguous()
        return self._smaller[factor]


def film_scene(
    seed: int | tuple[int, ...], *, action: str, backdrop: str, camera: str, num_frames: int, height: int, width: int
) -> PhotoScene:
    """The clip of these settings; equal seeds give the same scene, up to rounding.
    Raises ValueError for an unknown action or camera, and without scikit-image."""
    rng = np.random.default_rng(seed)
    moment_M = np.arange(num_frames)[:, None] + SHUTTER * np.arange(MOMENTS) / MOMENTS
    time_M = moment_M.reshape(-1) / num_frames
    path = sample_path(rng, action, time_M)
    camera_M33 = sample_camera(rng, camera, time_M)
    cast = CASTS[action]
    behind = Picture(make_backdrop(backdrop))
    place = _place_backdrop(rng, backdrop, behind.aspect, aspect=width / height)
    light = rng.uniform(0.85, 1.1) * rng.uniform(0.95, 1.05, 3)
    size = (height, width)
    frames, covered = [], []
    near_M33 = _nearer(camera_M33, cast.nearness)
    shadow = NONE if backdrop in OPEN_SKY else cast.shadow
    pictures = _dress(cast.actor, path, shadow)
    if cast.bystander and backdrop in BYSTANDER_FOR:
        bystander, is_behind = _place_bystander(rng, path), rng.random() < 0.5
        others = [(*picture, False) for *picture, _ in _dress(cast.bystander, bystander, shadow)]
        pictures = [*others, *pictures] if is_behind else [*pictures, *others]
    for frame in range(num_frames):
        moments = slice(frame * MOMENTS, (frame + 1) * MOMENTS)
        seen_MCHW = _project(behind, camera_M33[moments] @ place, size)[:, :3]
        hidden_MHW = torch.zeros(MOMENTS, *size)
        for picture, pose_M33, is_moving in pictures:
            layer_MCHW = _project(picture, near_M33[moments] @ pose_M33[moments], size)
            seen_MCHW = seen_MCHW * (1 - layer_MCHW[:, 3:]) + layer_MCHW[:, :3]
            hidden_MHW = torch.maximum(hidden_MHW, layer_MCHW[:, 3]) if is_moving else hidden_MHW * (1 - layer_MCHW[:, 3])
        frames.append(seen_MCHW.mean(dim=0).permute(1, 2, 0).numpy())
        covered.append(hidden_MHW.mean(dim=0).numpy())
    frames_THWC = np.stack(frames) * light * _vignette(height, width)
    noise_THWC = rng.normal(size=frames_THWC.shape) * NOISE * np.sqrt(0.4 + np.clip(frames_THWC, 0, 1))
    return PhotoScene(np.uint8(np.clip((frames_THWC + noise_THWC) * 255 + 0.5, 0, 255)), np.stack(covered))


def _dress(actor: str, path: Path, shadow: tuple[float, float, float]) -> list[tuple[Picture, np.ndarray, bool]]:
    """What an actor consists of, from back to front: picture, pose at every moment, and whether it
    is the actor itself."""
    turned_M33 = path.homographies()
    if actor == "ball":
        surface, light = make_ball()
        pictures = [(Picture(surface), turned_M33, True), (Picture(light), path.homographies(turns=False), True)]
    else:
        pictures = [(Picture(cut_out(actor)), turned_M33, True)]
    if actor == "rocket":
        pictures = [(Picture(make_flame()), turned_M33 @ FLAME, False), *pictures]
    strength, right, down = shadow
    if strength:
        outline, growth = _make_shadow(pictures[0][0].rgba_HWC, strength)
        shift_M33 = np.tile(np.eye(3), (len(turned_M33), 1, 1))
        shift_M33[:, 0, 2], shift_M33[:, 1, 2] = right * path.scale_M, down * path.scale_M
        pictures = [(Picture(outline), shift_M33 @ turned_M33 @ np.diag([growth, growth, 1.0]), False), *pictures]
    return pictures


def _place_bystander(rng: np.random.Generator, path: Path) -> Path:
    """A path that stays near the middle of the actor's."""
    still_M = np.zeros_like(path.x_M)
    x, y = rng.uniform(-0.3, 0.3), float(path.y_M.mean()) + rng.uniform(-0.12, 0.08)
    return Path(still_M + x, still_M + y, still_M + rng.uniform(0.35, 0.5), still_M + rng.uniform(-0.2, 0.2), still_M)


def _make_shadow(picture_HWC: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """The blurred outline in black, with room around it, and how much higher that makes it."""
    from PIL import Image, ImageFilter

    height = len(picture_HWC)
    blur = SHADOW_BLUR * height
    room = round(3 * blur)
    alpha = np.pad(picture_HWC[..., 3], room)
    soft = Image.fromarray(np.uint8(alpha * 255)).filter(ImageFilter.GaussianBlur(blur))
    shadow = np.zeros((*alpha.shape, 4), np.float32)
    shadow[..., 3] = np.asarray(soft, np.float32) / 255 * strength
    return shadow, len(shadow) / height


def _place_backdrop(rng: np.random.Generator, backdrop: str, own_aspect: float, *, aspect: float) -> np.ndarray:
    """[3, 3]: larger than the view by MARGIN; another part of it in every scene, but the launch pad
    stays where the rocket stands."""
    scale = MARGIN * max(1.0, aspect / own_aspect)
    free_x, free_y = scale * own_aspect - MARGIN * aspect, scale - MARGIN
    x, y = (0.5 * free * rng.uniform(-1, 1) for free in (free_x, free_y))
    if backdrop == "launch_pad":
        x = y = 0.0
    return np.array([[scale, 0, x], [0, scale, y], [0, 0, 1.0]])


def _nearer(camera_M33: np.ndarray, nearness: float) -> np.ndarray:
    """The camera as something nearer than the backdrop sees it: its shifts are larger."""
    near_M33 = camera_M33.copy()
    near_M33[:, :2, 2] *= nearness
    return near_M33


def _project(picture: Picture, pose_M33: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """float32 [M, 4, H, W]: the picture in the view. An opaque one goes on, mirrored, at its
    borders."""
    height, width = size
    enlarged = float(np.abs(np.linalg.det(pose_M33[:, :2, :2])).max() ** 0.5)
    # averaged down to about the size at which it is seen, or fine textures would glitter
    texture_1CHW = picture.smaller(max(1, int(picture.height / (enlarged * height))))
    # From the middles of pixels, counted from the upper left one, to the picture from -1 to 1.
    to_view_M33 = np.tile(np.diag([1 / height, 1 / height, 1.0]), (MOMENTS, 1, 1))
    to_view_M33[:, :2, 2] = (0.5 + OFFSETS - np.array([width, height]) / 2) / height
    back_M33 = torch.from_numpy(np.diag([2 / picture.aspect, 2, 1.0]) @ np.linalg.inv(pose_M33) @ to_view_M33).float()
    column_W, row_H1 = torch.arange(width, dtype=torch.float32), torch.arange(height, dtype=torch.float32)[:, None]
    right, down, offset = back_M33[..., None, None].unbind(dim=2)
    seen_M3HW = right * column_W + down * row_H1 + offset
    grid_MHW2 = (seen_M3HW[:, :2] / seen_M3HW[:, 2:]).permute(0, 2, 3, 1)
    return functional.grid_sample(
        texture_1CHW.expand(len(pose_M33), -1, -1, -1),
        grid_MHW2,
        padding_mode="reflection" if picture.is_opaque else "zeros",
        align_corners=False,
    )


def _vignette(height: int, width: int) -> np.ndarray:
    """[H, W, 1]: 1 in the middle, darker towards the corners."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (1 - VIGNETTE * (x**2 + y**2) / 2)[..., None]
