"""From a video and a model to an .mp4, .gif or .png of what the model sees: plan the clips, look at
each, draw, write.

Also the picture at the end of a pre-training, with the same panels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mats_ds.core.clips import ClipSpec
from mats_ds.core.format import format_count
from mats_ds.core.storage.file_kind import why_no_video
from mats_ds.core.token_grid import TokenGrid
from mats_ds.data.video.index import VideoIndex
from mats_ds.data.video.indexing import UnreadableVideo, index_video
from mats_ds.distributed.ranks import find_device
from mats_ds.models.mae import Reconstruction
from mats_ds.models.weights.model_weights import Weights
from mats_ds.visualization.clip_view import ClipView, look_with_decoder, look_without_decoder, view_reconstruction
from mats_ds.visualization.excerpt import Excerpt, plan_excerpts, read_excerpt
from mats_ds.visualization.page import Page, Strip, draw_page
from mats_ds.visualization.panels import draw_panels
from mats_ds.visualization.render_options import RenderOptions
from mats_ds.visualization.video_writer import check_suffix, write_gif, write_mp4, write_png
from mats_ds.visualization.viewer import Viewer, classify, open_viewer

PNG_ROWS = 12  # of all clips together
MAX_ROWS, MIN_ROWS = 4, 2  # of one clip in a still picture
MIN_FRAMES_PER_SECOND, MAX_FRAMES_PER_SECOND = 1.0, 30.0
RUN_COMMENT = "drawn at the end of a pre-training of mats_ds"


def render(options: RenderOptions, weights: Weights | None) -> str:
    """Write the file; returns one line on what it shows.

    Raises ValueError for options that do not go together, UnreadableVideo, and OSError where the
    file cannot be written.
    """
    suffix = check_suffix(options.out)
    indices = [_index(video) for video in options.videos]
    device = find_device(options.device)
    viewer = open_viewer(options.weights, weights, named=options.recipe, selection=options.selection, seed=options.seed)
    viewer.model.to(device).eval()
    specs = {
        video: plan_excerpts(
            index,
            section=viewer.clip_section(options.stride),
            num_frames=viewer.model.candidate_grid.num_frames,
            num_clips=options.num_clips,
            start_seconds=options.start_seconds,
        )
        for video, index in zip(options.videos, indices, strict=True)
    }
    pages = chain.from_iterable(
        make_pages(viewer, specs[video], video=video, seed=options.seed, panels=options.panels) for video in options.videos
    )
    write_pages(options.out, suffix, pages, frames_per_second=options.frames_per_second)
    fewest = min(map(len, specs.values()))
    clips = (
        f" ({format_count(fewest, 'clip')}: the video is too short for {options.num_clips})" if fewest < options.num_clips else ""
    )
    return f"wrote {options.out}{clips}: {viewer.note}"


@contextmanager
def _naming(video: str) -> Iterator[None]:
    """An UnreadableVideo of this block begins with the video's name."""
    try:
        yield
    except UnreadableVideo as error:
        raise UnreadableVideo(why_no_video(video, error.reason)) from error


def _index(video: str) -> VideoIndex:
    with _naming(video):
        return index_video(video)


def make_pages(
    viewer: Viewer, specs: Sequence[ClipSpec], *, video: str, seed: int, panels: Sequence[str] | None = None
) -> Iterator[Page]:
    """One page a clip, decoded and computed when it is asked for: hours of video need no more
    memory than one clip."""
    model, candidates = viewer.model, viewer.model.candidate_grid
    look = look_with_decoder if viewer.decodes else look_without_decoder
    for number, spec in enumerate(specs):
        with _naming(video):
            excerpt = read_excerpt(video, spec, height=candidates.height, width=candidates.width)
        frames_CHWC = torch.from_numpy(excerpt.frames_THWC).to(model.positions_ND.device)
        view = look(model, frames_CHWC, seed=seed + number)
        count = f", clip {number + 1} of {len(specs)}" if len(specs) > 1 else ""
        note = viewer.note + (f"; prediction: {classify(model, frames_CHWC)}" if viewer.names_classes else "")
        yield make_page(view, excerpt, model, title=f"{Path(video).name}{count}", note=note, panels=panels)


def make_page(
    view: ClipView, excerpt: Excerpt, model: nn.Module, *, title: str, note: str, panels: Sequence[str] | None = None
) -> Page:
    """The page of one clip; with adaptive frames it has a strip of the candidates."""
    step = model.grid.tubelet[0]
    tubelet_T = view.frame_T // step
    strip = None
    if model.candidate_grid.tau > model.grid.tau:
        taken_K = np.zeros(model.candidate_grid.tau, bool)
        taken_K[tubelet_T] = True
        strip = Strip(excerpt.frames_THWC[::step], taken_K)
    seconds_T = excerpt.seconds_T[view.frame_T]
    return Page(title, draw_panels(view, panels), tubelet_T=tubelet_T, seconds_T=seconds_T, strip=strip, note=note)


def write_pages(out: str, suffix: str, pages: Iterator[Page], *, frames_per_second: float | None) -> None:
    """A video of all frames of all clips, or a still picture of a few frames of each, one clip
    below the other."""
    if suffix == ".png":
        clips = list(pages)
        num_rows = max(MIN_ROWS, min(MAX_ROWS, PNG_ROWS // len(clips)))
        write_png(out, np.concatenate([draw_page(page, spread_frames(page.num_frames, num_rows)) for page in clips]))
        return
    first = next(pages)
    pictures = (draw_page(page, [frame]) for page in chain([first], pages) for frame in range(page.num_frames))
    write = write_mp4 if suffix == ".mp4" else write_gif
    write(out, pictures, frames_per_second=frames_per_second or play_rate(first.seconds_T))


def draw_reconstruction(seen: Reconstruction, grid: TokenGrid, path: Path, *, clip: int = 0, title: str = "") -> None:
    """Write a PNG of clip number `clip` of a model's reconstruction, with the panels of a page and
    one row a shown frame."""
    view = view_reconstruction(seen, grid, clip=clip)
    page = Page(title, draw_panels(view), tubelet_T=view.frame_T // grid.tubelet[0])
    write_png(path, draw_page(page, spread_frames(page.num_frames, MAX_ROWS)), comment=RUN_COMMENT)


def play_rate(seconds_T: np.ndarray) -> float:
    """Frames a second at which these frames last as long as in the video, within MIN and
    MAX_FRAMES_PER_SECOND."""
    steps = np.diff(seconds_T)
    mean = float(steps.mean()) if len(steps) and steps.mean() > 0 else 1.0
    return min(MAX_FRAMES_PER_SECOND, max(MIN_FRAMES_PER_SECOND, 1 / mean))


def spread_frames(num_frames: int, num_rows: int) -> list[int]:
    """Frames from the middle of equal parts of a clip."""
    num_rows = min(num_rows, num_frames)
    return [(2 * row + 1) * num_frames // (2 * num_rows) for row in range(num_rows)]
