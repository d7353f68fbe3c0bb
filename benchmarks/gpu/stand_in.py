"""A decoder as the loader knows it that needs no GPU: PyAV behind DALI's interface, and on request
with the faults that DALI has where it is given files that it should not get.

With no fault it gives PyAV's frames, which rehearses a comparison; with one, the comparison has to
see it.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace, VideoReformatter

from mats_ds.data.loading.reader import EncodedClip
from mats_ds.data.video.clip_frames import scale_pictures

# BT.601 whatever the file says; a kept decoder cuts out the picture size of its first file; rows of
# odd length run on into the next; frames that do not come are whatever lies in memory.
FAULTS = frozenset(("colours", "sizes", "odd", "end"))
MACROBLOCK = 16


class StandIn:
    """One decoder; arguments as GpuDecoder has them. refuses: true for a file, given with its
    codec, that this GPU does not decode. faults: of FAULTS."""

    def __init__(
        self,
        *,
        size: tuple[int, int],
        device: torch.device = torch.device("cpu"),  # noqa: B008 - frozen
        stream: object = None,
        num_threads: int = 1,
        whole_frames: bool = False,
        refuses: Callable[[EncodedClip], bool] = lambda clip: False,
        faults: frozenset[str] = frozenset(),
    ) -> None:
        assert faults <= FAULTS and not whole_frames
        self.busy = False
        self._size, self._device, self._refuses, self._faults = size, device, refuses, faults
        self._clips: list[EncodedClip] = []
        self._cut: dict[tuple[int, int], tuple[int, int]] = {}  # coded size -> picture size

    def start(self, clips: Sequence[EncodedClip]) -> None:
        """Take the clips over: a copy of each, since a reader writes to their memory again."""
        self.busy = True
        self._clips = copy.deepcopy(list(clips))

    def finish(self) -> torch.Tensor:
        """uint8 [B, T, height, width, 3]. Raises RuntimeError like DALI where a file is refused."""
        self.busy = False
        return torch.stack([self._decode(clip) for clip in self._clips]).to(self._device)

    def _decode(self, clip: EncodedClip) -> torch.Tensor:
        if self._refuses(clip):
            raise RuntimeError(f"... encountered: no decoder for {clip.codec} C++ context: ...")
        pictures = self._pictures(clip)
        top, left, bottom, right = clip.region.corners
        frames_THWC = scale_pictures(np.ascontiguousarray(pictures[:, top:bottom, left:right]), size=self._size)
        return torch.from_numpy(np.ascontiguousarray(frames_THWC[:, :, ::-1] if clip.region.flip else frames_THWC))

    def _pictures(self, clip: EncodedClip) -> np.ndarray:
        wanted, shown = clip.numbers_T.tolist(), {}
        try:
            with av.open(io.BytesIO(clip.encoded.tobytes())) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        shown[number] = self._convert(frame)
        except (av.error.FFmpegError, ValueError, IndexError) as error:
            if not shown or "end" not in self._faults:
                raise RuntimeError(f"... encountered: {error} C++ context: ...") from None
        if missing := [number for number in wanted if number not in shown]:
            if not shown or "end" not in self._faults:
                raise RuntimeError(f"... encountered: frame {missing[0]} is not there C++ context: ...")
            garbage = np.random.default_rng(0).integers(0, 255, next(iter(shown.values())).shape, np.uint8)
            shown |= dict.fromkeys(missing, garbage)
        return np.stack([shown[number] for number in wanted])

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        colours = {"src_colorspace": Colorspace.ITU601} if "colours" in self._faults else {}
        picture = VideoReformatter().reformat(frame, format="rgb24", **colours).to_ndarray()
        height, width = picture.shape[:2]
        if "sizes" in self._faults:
            coded = tuple(-(-side // MACROBLOCK) * MACROBLOCK for side in (height, width))
            cut = self._cut.setdefault(coded, (height, width))
            if cut != (height, width):  # the colour planes are looked for where those of the other size begin
                picture = np.roll(picture, (height - cut[0], width - cut[1]), axis=(0, 1))
        if "odd" in self._faults and width % 2:
            rows = np.arange(height)[:, None]
            picture = picture[rows, (np.arange(width) + rows) % width]
        return picture
