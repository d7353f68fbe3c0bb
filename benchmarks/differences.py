"""How far frames, crops and scaling are from VideoMAE's and EVEREST's, on one's own videos: the
figures of docs/explanation/differences.md.

    python benchmarks/differences.py LENGTHS_FOLDER [CLIPS_FOLDER ...] [--every 6]
        [--max_pixels 450000]

Frame rules are applied to the lengths of all videos of the first folder; pictures and tokens are
compared on clips of 16 frames at stride 4 from the middle of every n-th of them and of all videos
of the other folders that have 80 frames and are not larger. The other projects' rules are written
anew from what their public code does (github.com/MCG-NJU/VideoMAE: ssv2.py, kinetics.py,
transforms.py; github.com/sunilhoho/EVEREST: ucf.py). A level is 1/255 of white.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mats_ds.config.recipe import ClipSection
from mats_ds.core.clips import CropSpec
from mats_ds.core.token_grid import count_tokens
from mats_ds.data.clip_sampler import CROP_ANCHORS, CROP_RATIOS
from mats_ds.data.manifest import VIDEO_EXTENSIONS
from mats_ds.data.video.clip_frames import scale_pictures
from mats_ds.data.video.containers import UnreadableVideo
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video

NUM_FRAMES, STRIDE, SIDE = 16, 4, 224
SPAN = NUM_FRAMES * STRIDE
SHORT_LENGTHS = (32, 40, 56)
MIN_FRAMES = 80
TUBELET = (2, 16, 16)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as both projects normalise
SCALES = ClipSection().crop_scales


def finetune_numbers(length: int, begin: int = 0) -> np.ndarray:
    """Their dense clip in fine-tuning: ends included; a short video is cut at the stride and its
    last frame repeated."""
    if length <= SPAN:
        read = np.linspace(0, length, length // STRIDE)
        return np.clip(np.append(read, [length] * (NUM_FRAMES - len(read))), 0, length - 1).astype(int)
    return np.clip(np.linspace(begin, begin + SPAN, NUM_FRAMES), begin, begin + SPAN - 1).astype(int)


def pretrain_numbers(length: int, begin: int = 0) -> np.ndarray:
    """Their clip in pre-training: every fourth frame while there is one, then the same one
    again."""
    numbers = [begin]
    for _ in range(NUM_FRAMES - 1):
        following = numbers[-1] + STRIDE
        numbers.append(following if following < length - 1 else numbers[-1])
    return np.array(numbers)


def their_beginning(length: int, clip: int, *, stride: int, num_clips: int) -> int:
    """Where their dense test clip begins."""
    room = max(len(range(0, length, stride)) - NUM_FRAMES, 0)
    return stride * int(clip * room / (num_clips - 1))


def our_beginning(length: int, clip: int, *, stride: int, num_clips: int) -> int:
    return min(clip * (length - NUM_FRAMES * stride + 1) // (num_clips - 1), length - NUM_FRAMES * stride)


def multi_scale_box(picture: tuple[int, int], scales: tuple[float, float], anchor: tuple[int, int]) -> tuple[int, ...]:
    """(top, left, height, width) of their pre-training crop."""
    sides = [int(min(picture) * scale) for scale in scales]
    sides = [SIDE if abs(side - SIDE) < 3 else side for side in sides]
    return (*(quarter * ((length - side) // 4) for quarter, length, side in zip(anchor, picture, sides, strict=True)), *sides)


def compare_lengths(lengths: list[int]) -> dict[str, object]:
    """All that depends on the number of frames alone."""
    long = [length for length in lengths if length > SPAN]
    figures: dict[str, object] = {
        "videos, frames at least, median, at most": (len(lengths), min(lengths), float(np.median(lengths)), max(lengths)),
        "share shorter than 64 frames": np.mean([length < SPAN for length in lengths]),
        "fine-tuning, frame numbers beyond ours": (finetune_numbers(SPAN + 1) - STRIDE * np.arange(NUM_FRAMES)).tolist(),
        "last beginning, its share of all": np.mean([1 / (length - SPAN + 1) for length in long]),
        "uniform, frames never shown: mean, max": _spread([length % NUM_FRAMES / length for length in lengths]),
    }
    for stride, num_clips in ((4, 5), (2, 10)):
        how = dict(stride=stride, num_clips=num_clips)
        pairs = [(length, clip) for length in lengths if length >= NUM_FRAMES * stride for clip in range(num_clips)]
        gaps = np.array([our_beginning(*pair, **how) - their_beginning(*pair, **how) for pair in pairs])
        figures[f"test beginnings, {num_clips} clips of stride {stride}: mean, min, max, equal"] = (
            *(float(value) for value in (gaps.mean(), gaps.min(), gaps.max())),
            float(np.mean(gaps == 0)),
        )
    return figures


def compare_boxes(pictures: set[tuple[int, int]]) -> dict[str, object]:
    """Multi-scale crops at all anchors, in pixels."""
    gaps = [
        np.abs(
            np.array(multi_scale_box(picture, scales, anchor)) - CropSpec(*scales, *(part / 4 for part in anchor)).box(*picture)
        )
        for picture in sorted(pictures)
        for scales in [(a, b) for i, a in enumerate(SCALES) for j, b in enumerate(SCALES) if abs(i - j) <= 1]
        for anchor in CROP_ANCHORS
    ]
    equal = np.mean([not gap.any() for gap in gaps])
    return {"boxes: sizes, number, largest gap, equal": (len(pictures), len(gaps), int(np.max(gaps)), float(equal))}


class TokenScores:
    """Motion scores of a clip by a patch embedding of fresh weights."""

    def __init__(self, width: int = 768) -> None:
        torch.manual_seed(1)
        self._embed = torch.nn.Conv3d(3, width, TUBELET, TUBELET)
        torch.nn.init.xavier_uniform_(self._embed.weight.view(width, -1))

    @torch.no_grad()
    def __call__(self, frames_THWC: np.ndarray) -> torch.Tensor:
        """[tubelets, tokens of a frame] of frames in levels."""
        frames_THWC = (torch.as_tensor(frames_THWC).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
        tokens_ILD = self._embed(frames_THWC.permute(3, 0, 1, 2)[None])[0].flatten(2).permute(1, 2, 0)
        change_IL = (tokens_ILD[1:] - tokens_ILD[:-1]).norm(dim=-1)
        return torch.cat([change_IL[:1], change_IL])

    def other_kept(self, one: np.ndarray, other: np.ndarray, ratio: float) -> float:
        """The fraction of the kept tokens of `one` that `other` does not keep."""
        kept = []
        for frames_THWC in (one, other):
            scores = self(frames_THWC).flatten()
            kept.append(set(scores.topk(count_tokens(ratio, len(scores))).indices.tolist()))
        return 1 - len(kept[0] & kept[1]) / len(kept[0])


def compare_frames(path: str, scores: TokenScores) -> dict[str, float]:
    """Of one clip: the spacing in fine-tuning, a clip one frame later as the yardstick, and short
    videos."""
    begin = (index_video(path).num_frames - SPAN) // 2 - 1
    ours = begin + STRIDE * np.arange(NUM_FRAMES)
    wanted = {"ours": ours, "theirs": finetune_numbers(SPAN + 1) + begin, "later": ours + 1}
    for length in SHORT_LENGTHS:
        wanted[f"pre {length}"], wanted[f"fine {length}"] = pretrain_numbers(length), finetune_numbers(length)
        wanted[f"our {length}"] = np.arange(NUM_FRAMES) * length // NUM_FRAMES
    read = _middle_square(decode_frames(path, np.concatenate(list(wanted.values()))))
    clips = dict(zip(wanted, np.split(read, len(wanted)), strict=True))
    motion = {name: float(scores(clip)[1:].mean()) for name, clip in clips.items()}
    figures = {
        "spacing of fine-tuning: motion, theirs to ours": motion["theirs"] / motion["ours"],
        "spacing of fine-tuning: other tokens kept of 0.6": scores.other_kept(clips["ours"], clips["theirs"], 0.6),
        "yardstick, one frame later: other tokens kept of 0.6": scores.other_kept(clips["ours"], clips["later"], 0.6),
    }
    for length in SHORT_LENGTHS:
        for rule in ("pre", "fine"):
            name = f"{rule} {length}"
            figures[f"{length} frames, {rule}: still tubelets"] = sum(float(row.max()) < 1e-4 for row in scores(clips[name]))
            figures[f"{length} frames, {rule}: motion, ours to theirs"] = motion[f"our {length}"] / motion[name]
    return figures


def compare_scaling(path: str, scores: TokenScores, rng: np.random.Generator) -> dict[str, float]:
    """Of one clip: PIL in pre-training, the plain bilinear filter in fine-tuning and in tests."""
    begin = (index_video(path).num_frames - SPAN) // 2
    frames_THWC = decode_frames(path, begin + STRIDE * np.arange(NUM_FRAMES))
    height, width = frames_THWC.shape[1:3]
    figures: dict[str, float] = {}

    def add(name: str, ours: np.ndarray, theirs: np.ndarray, ratio: float) -> None:
        figures[f"{name}: levels"] = float(np.abs(ours.astype(np.float32) - theirs).mean())
        figures[f"{name}: other tokens kept of {ratio}"] = scores.other_kept(ours, theirs, ratio)

    cut = _cut(frames_THWC, [int(min(height, width) * SCALES[rng.integers(4)]) for _ in range(2)], rng)
    pil = np.stack([np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.BILINEAR)) for frame in cut])
    add("scaling, pre-training", scale_pictures(cut, size=(SIDE, SIDE)), pil, 0.3)
    sides = (height + 1, width + 1)
    while sides[0] > height or sides[1] > width:
        area, ratio = rng.uniform(0.08, 1) * height * width, math.exp(rng.uniform(*map(math.log, CROP_RATIOS)))
        sides = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
    cut = _cut(frames_THWC, sides, rng)
    add("scaling, fine-tuning", scale_pictures(cut, size=(SIDE, SIDE)), _scale_plainly(cut, (SIDE, SIDE)), 0.6)
    size = tuple(int(SIDE * side / min(height, width)) for side in (height, width))
    scaled = _scale_plainly(frames_THWC, size).round().clip(0, 255)
    for crop in range(3):
        begin = int(crop * (max(size) - SIDE) / 2)
        theirs = scaled[:, :, begin : begin + SIDE] if size[1] >= size[0] else scaled[:, begin : begin + SIDE]
        top, left, high, wide = CropSpec(top=crop / 2, left=crop / 2).box(height, width)
        part = np.ascontiguousarray(frames_THWC[:, top : top + high, left : left + wide])
        add(f"scaling, test crop {crop}", scale_pictures(part, size=(SIDE, SIDE)), theirs, 0.6)
    return figures


def _scale_plainly(pictures_THWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    pictures_TCHW = torch.from_numpy(pictures_THWC).permute(0, 3, 1, 2).float()
    return F.interpolate(pictures_TCHW, size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).numpy()


def _cut(frames_THWC: np.ndarray, sides: list[int] | tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    top, left = (int(rng.integers(room + 1)) for room in np.subtract(frames_THWC.shape[1:3], sides))
    return np.ascontiguousarray(frames_THWC[:, top : top + sides[0], left : left + sides[1]])


def _middle_square(frames_THWC: np.ndarray) -> np.ndarray:
    top, left, height, width = CropSpec().box(*frames_THWC.shape[1:3])
    return scale_pictures(np.ascontiguousarray(frames_THWC[:, top : top + height, left : left + width]), size=(SIDE, SIDE))


def _spread(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.max(values))


def _videos_in(folder: str) -> list[str]:
    paths = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in VIDEO_EXTENSIONS)
    videos = []
    for path in paths:
        try:
            index_video(path)
        except UnreadableVideo:
            continue
        videos.append(path)
    return videos


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="the first for lengths, all of them for clips")
    parser.add_argument("--every", type=int, default=6, help="take every n-th video of the first folder (%(default)s)")
    parser.add_argument("--max_pixels", type=int, default=450_000, help="leave larger pictures out (%(default)s)")
    options = parser.parse_args(arguments)
    first, *others = (_videos_in(folder) for folder in options.folders)
    for name, value in compare_lengths([index_video(path).num_frames for path in first]).items():
        print(f"{name}: {value}")
    paths = [path for path in (*first[:: options.every], *(path for folder in others for path in folder))]
    facts = {path: index_video(path) for path in paths}
    paths = [p for p in paths if facts[p].num_frames >= MIN_FRAMES and facts[p].height * facts[p].width <= options.max_pixels]
    for name, value in compare_boxes({facts[path].upright_size for path in paths}).items():
        print(f"{name}: {value}")
    scores, rng = TokenScores(), np.random.default_rng(0)
    rows = [compare_frames(path, scores) | compare_scaling(path, scores, rng) for path in paths]
    print(f"{len(rows)} clips: mean, min, max")
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        print(f"{name}: {np.mean(values):.5f}, {min(values):.5f}, {max(values):.5f}")


if __name__ == "__main__":
    main()
