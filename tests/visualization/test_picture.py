"""The picture at the end of a pre-training: whatever the video and the recipe are called."""

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.visualization.picture import draw_reconstruction

GRID = TokenGrid(num_frames=4, height=16, width=24, tubelet=(2, 8, 8))


@pytest.mark.parametrize("title", [r"$\frac{$.mp4: $x", "日本\n" * 100, "n" * 10_000, ""])
def test_any_title_is_text(tmp_path, title):
    torch.manual_seed(1)
    model = MaskedAutoencoder(
        grid=GRID,
        width=24,
        depth=1,
        heads=3,
        decoder_width=12,
        decoder_depth=1,
        decoder_heads=2,
        keep_ratio=0.75,
        visible_ratio=0.5,
    )
    frames_BTHWC = torch.randint(0, 256, (1, 4, 16, 24, 3), dtype=torch.uint8)
    with torch.no_grad():
        seen = model.eval().reconstruct(frames_BTHWC, torch.zeros(1, dtype=torch.int64))
    draw_reconstruction(seen, GRID, tmp_path / "a.png", title=title)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
