"""The picture at the end of a pre-training: the panels of its clip, whatever the video and the
recipe are called."""

import numpy as np
import pytest
import torch
from PIL import Image

from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.visualization.clip_view import view_reconstruction
from mats_ds.visualization.page import GAP, GUTTER, LINE, MARGIN, choose_scale
from mats_ds.visualization.panels import draw_panels
from mats_ds.visualization.render import draw_reconstruction
from mats_ds.visualization.video_writer import is_our_picture

GRID = TokenGrid(num_frames=4, height=16, width=24, tubelet=(2, 8, 8))


@pytest.fixture(scope="module")
def seen():
    torch.manual_seed(1)
    sizes = dict(width=24, depth=1, heads=3, decoder_width=12, decoder_depth=1, decoder_heads=2)
    model = MaskedAutoencoder(grid=GRID, **sizes, keep_ratio=0.75, visible_ratio=0.5)
    frames_BTHWC = torch.randint(0, 256, (2, 4, 16, 24, 3), dtype=torch.uint8)
    with torch.no_grad():
        return model.eval().reconstruct(frames_BTHWC, torch.arange(2))


@pytest.mark.parametrize("title", [r"$\frac{$.mp4: $x", "日本\n" * 100, "n" * 10_000, ""])
def test_any_title_is_text(tmp_path, seen, title):
    draw_reconstruction(seen, GRID, tmp_path / "a.png", title=title)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_it_shows_the_panels_of_the_clip_that_is_asked_for(tmp_path, seen):
    draw_reconstruction(seen, GRID, tmp_path / "a.png", clip=1)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    panels = draw_panels(view_reconstruction(seen, GRID, clip=1))
    assert [panel.name.split()[0] for panel in panels] == ["original", "motion", "kept:", "visible", "reconstruction"]
    assert panels[-1].name == "reconstruction"  # the loss is of both clips
    scale = choose_scale(16, 24)
    for number, panel in enumerate(panels):
        left = MARGIN + GUTTER + number * (24 * scale + GAP)
        for frame in range(4):
            top = MARGIN + 2 * LINE + frame * (16 * scale + GAP)
            shown = picture[top : top + 16 * scale : scale, left : left + 24 * scale : scale]
            assert np.array_equal(shown, panel.frames_THWC[frame]), (panel.name, frame)


def test_visualize_does_not_take_it_for_one_of_its_own(tmp_path, seen):
    draw_reconstruction(seen, GRID, tmp_path / "a.png")
    assert not is_our_picture(tmp_path / "a.png")
