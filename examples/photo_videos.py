"""Write clips that look like video: cut-outs of photographs move before other photographs.

    python examples/photo_videos.py photo_clips --videos 20
    mats visualize photo_clips/001_walk_launch_pad_handheld.mp4 --out look.gif

Needs scikit-image (pip install 'mats-ds[examples]'), which ships the photographs;
photo_clips/SOURCES.txt names the author and the licence of each.
"""

from __future__ import annotations

import argparse
import sys

from mats_ds.data.photo_scenes.clips import write_photo_clips


def main() -> int:
    parser = argparse.ArgumentParser(description="Write clips that look like video, with a labelled manifest.")
    parser.add_argument("folder", help="a new or empty folder")
    parser.add_argument("--videos", type=int, default=20, help="how many (20); five actions in turn")
    parser.add_argument("--frames", type=int, default=48, help="of each, 25 a second (48)")
    parser.add_argument("--height", type=int, default=120, help="pixels (120)")
    parser.add_argument("--width", type=int, default=160, help="pixels (160)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other scenes (0)")
    options = parser.parse_args()
    try:
        manifest = write_photo_clips(
            options.folder,
            num_videos=options.videos,
            num_frames=options.frames,
            height=options.height,
            width=options.width,
            seed=options.seed,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {manifest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
