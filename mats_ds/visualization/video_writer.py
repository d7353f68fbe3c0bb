"""A video or a still from finished pictures (uint8 RGB [H, W, 3]): .mp4, .gif or .png.

An .mp4 is H.264 (MPEG-4 part 2 where PyAV has no such encoder) with 4:2:0 pictures of even sides,
which every player takes. Files are written aside and renamed. A comment in each says that it is
ours, so that it may be replaced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from mats_ds.core.storage.files import replace_file

CRF = "16"  # text and edges of tokens stay sharp
SPARE_BIT_RATE = 4_000_000  # for encoders without constant quality
MAX_RATE_DENOMINATOR = 1000
GIF_MILLISECONDS = 10  # the resolution of a GIF's times
SUFFIXES = (".mp4", ".gif", ".png")
COMMENT = "drawn by mats_ds/visualize.py"


def check_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix, which chooses the format, in lower case. Raises ValueError for another than
    SUFFIXES."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        got = f"{path} ends in {suffix!r}" if suffix else f"{path} has no suffix"
        raise ValueError(f"{got}: give a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return suffix


def write_mp4(path: str | os.PathLike[str], pictures: Iterable[np.ndarray], *, frames_per_second: float) -> None:
    """Write one frame a picture; an odd side gains a line of the border's colour. Raises ValueError
    for no pictures."""
    import av

    from mats_ds.data.encode import REPEATABLE
    from mats_ds.data.video.containers import file_url, find_mp4_encoder

    encoder = find_mp4_encoder()
    options = {"crf": CRF, "preset": "medium", **REPEATABLE[encoder]} if encoder == "libx264" else {}
    rate = Fraction(frames_per_second).limit_denominator(MAX_RATE_DENOMINATOR)
    with (
        _written_aside(path) as aside,
        av.open(file_url(aside), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        container.metadata["comment"] = COMMENT
        stream = container.add_stream(encoder, rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        if encoder != "libx264":
            stream.codec_context.bit_rate = SPARE_BIT_RATE
        for number, picture_HWC in enumerate(map(_even_sides, _check_pictures(pictures))):
            if number == 0:
                stream.height, stream.width = picture_HWC.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: str | os.PathLike[str], pictures: Iterable[np.ndarray], *, frames_per_second: float) -> None:
    """Write an endless loop, 256 colours a picture. Raises ValueError for no pictures."""
    from PIL import Image

    reduced = [
        Image.fromarray(picture).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        for picture in _check_pictures(pictures)
    ]
    milliseconds = max(2, round(1000 / frames_per_second / GIF_MILLISECONDS)) * GIF_MILLISECONDS
    with _written_aside(path) as aside:
        times = dict(duration=milliseconds, loop=0)
        reduced[0].save(aside, format="GIF", save_all=True, append_images=reduced[1:], comment=COMMENT, **times)


def write_png(path: str | os.PathLike[str], picture_HWC: np.ndarray, *, comment: str = COMMENT) -> None:
    """Write one picture, uint8 RGB, without loss."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    (picture_HWC,) = _check_pictures([picture_HWC])
    about = PngInfo()
    about.add_text("Comment", comment)
    with _written_aside(path) as aside:
        Image.fromarray(picture_HWC).save(aside, format="PNG", optimize=True, pnginfo=about)


def is_our_picture(path: str | os.PathLike[str]) -> bool:
    """Whether `mats visualize` wrote the file, by its comment; files of version 0.1 have none."""
    from av.error import FFmpegError
    from PIL import Image

    from mats_ds.data.video.containers import open_container

    try:
        if check_suffix(path) == ".mp4":
            with open_container(os.fspath(path)) as container:
                return container.metadata.get("comment") == COMMENT
        with Image.open(path, formats=("PNG", "GIF")) as image:
            comment = image.info.get("Comment", image.info.get("comment"))
            return comment in (COMMENT, COMMENT.encode())
    except (FFmpegError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # another kind of file, or a torn one


def _check_pictures(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same pictures. Raises ValueError for one of another type or size than the first, and for
    no picture."""
    shape = None
    for picture in pictures:
        shape = shape or picture.shape
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8 or picture.shape != shape:
            raise ValueError(f"pictures are uint8 [H, W, 3], all of one size, got {picture.dtype} {list(picture.shape)}")
        yield np.ascontiguousarray(picture)
    if shape is None:
        raise ValueError("there is no picture to write")


def _even_sides(picture_HWC: np.ndarray) -> np.ndarray:
    height, width = picture_HWC.shape[:2]
    return np.pad(picture_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


@contextlib.contextmanager
def _written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, renamed to `path` when the block ends without an error; folders above it
    are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as aside:
        yield aside
