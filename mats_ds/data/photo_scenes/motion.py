"""What cut-outs and cameras do: time -> homographies, float64 [M, 3, 3], one a moment.

The world is a plane; its unit is the height of the view at rest, its origin the view's middle, x to
the right and y down. An actor's homography leads from its picture (x and y from -1/2 to 1/2 of its
height) to the world, a camera's from the world to the view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ACTIONS = ("lift-off", "walk", "slide", "roll", "drift")
CAMERAS = ("tripod", "handheld", "pan")
SHAKE = {"tripod": 0.0004, "handheld": 0.006, "pan": 0.002}  # in heights of the view
PAN_SPEEDS = (0.15, 0.35)  # heights of the view in a clip
SHAKE_WAVES = 5


@dataclass(frozen=True)
class Path:
    """Where an actor is at M moments: x_M, y_M, scale_M (its height), turn_M (radians), tilt_M
    (perspective: how much nearer its right side is)."""

    x_M: np.ndarray
    y_M: np.ndarray
    scale_M: np.ndarray
    turn_M: np.ndarray
    tilt_M: np.ndarray

    def homographies(self, *, turns: bool = True) -> np.ndarray:
        """[M, 3, 3]; without `turns` as if the actor stood upright."""
        turn_M = self.turn_M if turns else np.zeros_like(self.turn_M)
        cos_M, sin_M = np.cos(turn_M), np.sin(turn_M)
        zero_M, one_M = np.zeros_like(cos_M), np.ones_like(cos_M)
        tilt = _stack([[one_M, zero_M, zero_M], [zero_M, one_M, zero_M], [-self.tilt_M, zero_M, one_M]])
        pose = _stack(
            [
                [self.scale_M * cos_M, -self.scale_M * sin_M, self.x_M],
                [self.scale_M * sin_M, self.scale_M * cos_M, self.y_M],
                [zero_M, zero_M, one_M],
            ]
        )
        return pose @ tilt


def sample_path(rng: np.random.Generator, action: str, time_M: np.ndarray) -> Path:
    """A path of that action; time_M runs from 0 to 1 over the clip. Raises ValueError for another
    than ACTIONS."""
    centred_M, still_M = time_M - 0.5, np.zeros_like(time_M)
    towards = rng.choice([-1.0, 1.0])
    if action == "lift-off":
        begins, gain = rng.uniform(0.05, 0.15), rng.uniform(0.8, 1.1)
        y_M = 0.16 - gain * np.clip(time_M - begins, 0, None) ** 2
        sway_M = 0.003 * _wander(rng, time_M)
        return Path(rng.uniform(-0.02, 0.02) + sway_M, y_M, still_M + rng.uniform(0.75, 0.85), still_M, still_M)
    if action == "walk":
        steps_M = 2 * np.pi * rng.uniform(1.6, 2.4) * time_M
        scale = rng.uniform(0.85, 1.15)
        x_M = towards * rng.uniform(0.9, 1.3) * centred_M + rng.uniform(-0.15, 0.15)
        y_M = 0.5 - 0.42 * scale + rng.uniform(0.02, 0.12) + 0.018 * np.abs(np.sin(steps_M))
        grows_M = 1 + rng.uniform(-0.1, 0.15) * centred_M
        return Path(x_M, y_M, scale * grows_M, 0.025 * np.sin(steps_M), 0.15 * towards * centred_M)
    if action == "slide":
        stops = rng.uniform(1.3, 2.2)
        gone_M = (1 - (1 - time_M) ** stops) - 0.55
        y_M = rng.uniform(0.0, 0.2) + rng.uniform(-0.25, 0.25) * gone_M
        turn_M = rng.uniform(-0.15, 0.15) + rng.uniform(-0.7, 0.7) * gone_M
        scale_M = rng.uniform(0.42, 0.6) * (1 + 0.5 * y_M)
        return Path(towards * rng.uniform(0.8, 1.2) * gone_M, y_M, scale_M, turn_M, 0.12 * gone_M)
    if action == "roll":
        side = rng.uniform(0.24, 0.36)
        x_M = towards * rng.uniform(1.0, 1.5) * centred_M
        bounce_M = np.abs(np.sin(np.pi * (time_M * rng.uniform(1.5, 3.0) + rng.uniform(0, 1)))) * np.exp(-1.5 * time_M)
        y_M = rng.uniform(0.15, 0.3) + 0.1 * centred_M - rng.uniform(0.0, 0.3) * bounce_M
        return Path(x_M, y_M, still_M + side, x_M / (side / 2), still_M)
    if action == "drift":
        x_M = towards * rng.uniform(0.5, 0.9) * centred_M
        y_M = rng.uniform(-0.5, 0.5) * centred_M + 0.02 * _wander(rng, time_M)
        scale_M = rng.uniform(0.5, 0.7) * np.exp(rng.uniform(-0.3, 0.5) * centred_M)
        turn_M = rng.uniform(-0.6, 0.6) + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9) * centred_M
        return Path(x_M, y_M, scale_M, turn_M, rng.uniform(-0.5, 0.5) * centred_M)
    raise ValueError(f"there is no action {action!r}; there are {', '.join(ACTIONS)}")


def sample_camera(rng: np.random.Generator, camera: str, time_M: np.ndarray) -> np.ndarray:
    """[M, 3, 3]: shake of that camera, a slow zoom and, of "pan", a pan. Raises ValueError for
    another than CAMERAS."""
    if camera not in CAMERAS:
        raise ValueError(f"there is no camera {camera!r}; there are {', '.join(CAMERAS)}")
    shake = SHAKE[camera]
    x_M, y_M = shake * _wander(rng, time_M), shake * _wander(rng, time_M)
    turn_M = 0.5 * shake * _wander(rng, time_M)
    zoom_M = 1 + (0 if camera == "tripod" else rng.uniform(-0.03, 0.06)) * (time_M - 0.5)
    if camera == "pan":
        x_M = x_M + rng.choice([-1, 1]) * rng.uniform(*PAN_SPEEDS) * (time_M - 0.5)
    return Path(x_M, y_M, zoom_M, turn_M, np.zeros_like(time_M)).homographies()


def _wander(rng: np.random.Generator, time_M: np.ndarray) -> np.ndarray:
    """A smooth random curve around zero, about as far as 1."""
    waves = 1 + np.arange(SHAKE_WAVES)
    height_W, phase_W = rng.normal(size=SHAKE_WAVES) / waves, rng.uniform(0, 2 * np.pi, SHAKE_WAVES)
    return (height_W * np.sin(2 * np.pi * waves * time_M[:, None] + phase_W)).sum(axis=1)


def _stack(rows: list[list[np.ndarray]]) -> np.ndarray:
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
