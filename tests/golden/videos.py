"""The golden set's videos: lossless files from a fixed generator, the same pixels on every machine
and with every encoder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLASSES = ("left", "right", "up", "down")
STEPS = ((0, -1), (0, 1), (-1, 0), (1, 0))  # rows, columns a frame
NUM_FRAMES, HEIGHT, WIDTH = 22, 48, 80


def write_set(folder: Path, *, num_videos: int, first_number: int = 0) -> Path:
    """A manifest of `num_videos` videos of textures that move by 2 pixels a frame; the label is the
    direction."""
    folder.mkdir(parents=True)
    rows = ["path,label"]
    for number in range(first_number, first_number + num_videos):
        write_video(folder / f"{number:02d}.mkv", number)
        rows.append(f"{number:02d}.mkv,{number % len(CLASSES)}")
    (folder / "list.csv").write_text("\n".join([*rows, ""]))
    (folder / "list.classes.txt").write_text("\n".join([*CLASSES, ""]))
    return folder / "list.csv"


def write_video(path: Path, number: int) -> None:
    """FFV1 without sound, 22 frames of 48 x 80 at 25 frames/s."""
    random = np.random.RandomState(number)  # its streams never change between versions of numpy
    texture = random.randint(16, 236, size=(HEIGHT // 4, WIDTH // 4)).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    rows, columns = STEPS[number % len(STEPS)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(NUM_FRAMES):
            luma = np.roll(texture, (2 * index * rows, 2 * index * columns), axis=(0, 1))
            colour = np.full((HEIGHT // 2, WIDTH), 128, np.uint8)
            frame = av.VideoFrame.from_ndarray(np.concatenate([luma, colour]), format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
