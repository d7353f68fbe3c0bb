"""Equal frames are equal bytes, in one process and in another."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mats_ds.data.encode import encode_frames
from mats_ds.data.video.containers import find_mp4_encoder

ROOT = Path(__file__).resolve().parents[2]
FILM = """
import sys
from mats_ds.data.photo_scenes.clips import write_photo_clips
write_photo_clips(sys.argv[1], num_videos=1, num_frames=6, height=120, width=160)
"""


def test_equal_frames_are_equal_bytes_whatever_lies_in_memory(tmp_path):
    """libx264's macroblock tree, on by default, gave other bytes from the third file on."""
    y, x = np.mgrid[:120, :160]
    frames = [np.uint8(128 + 60 * np.sin((x + 5 * t) / 9) * np.cos(y / (7 + t)))[..., None].repeat(3, -1) for t in range(6)]
    written = []
    for number in range(8):
        path = tmp_path / f"{number}.mp4"
        encode_frames(path, frames, encoder=find_mp4_encoder(), options={"crf": "20", "preset": "veryfast"}, gop_frames=12)
        written.append(path.read_bytes())
        if find_mp4_encoder() == "libx264":
            assert b"mbtree=0" in written[-1]  # the encoder notes its settings in the stream
    assert len(set(written)) == 1


@pytest.mark.slow
def test_a_set_of_photo_clips_is_the_same_bytes_from_every_process(tmp_path):
    pytest.importorskip("skimage")
    clips = []
    for hash_seed in ("1", "2", "3"):
        folder = tmp_path / hash_seed
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": hash_seed}
        subprocess.run([sys.executable, "-c", FILM, str(folder)], env=environment, check=True, timeout=300)
        clips.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert clips[0] == clips[1] == clips[2] and any(name.endswith(".mp4") for name in clips[0])
