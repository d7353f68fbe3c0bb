"""The README's lines for a notebook run as they stand, on a model and a video of the test's own."""

from __future__ import annotations

import re
from pathlib import Path

from tests.trained_models import GRID, save_autoencoder, write_videos

README = Path(__file__).resolve().parents[1] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_lines_that_take_features_of_a_video_run(tmp_path):
    (code,) = [block for block in python_blocks() if "load_encoder" in block]
    model = save_autoencoder(tmp_path / "model.safetensors")
    video, _ = write_videos(tmp_path / "set", num_videos=1)[0]
    assert code.count('"runs/k400"') == code.count('"clip.mp4"') == 1
    names = {}
    exec(code.replace('"runs/k400"', repr(model)).replace('"clip.mp4"', repr(str(video))), names)
    assert names["features"].shape == (1, 24)
    assert names["tokens"].tokens_BKD.shape == (1, GRID.num_tokens, 24)


def test_the_lines_that_select_tokens_run():
    (code,) = [block for block in python_blocks() if "select_tokens" in block]
    names = {}
    exec(code.replace("torch.randint(0, 256, (2, 16,", "torch.randint(0, 256, (1, 16,"), names)
    assert names["loss"].ndim == 0 and names["kept"].visible_BV.shape == (2, 156)
