"""Host memory of long runs and of large manifests, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RESIDENT = """
def resident_bytes():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


def figures_of(code: str, *arguments: str) -> dict[str, float]:
    """What a program prints as JSON in its last line."""
    program = f"import json, sys, time\nsys.path.insert(0, {str(ROOT)!r})\n{RESIDENT}\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_three_thousand_batches_do_not_grow_the_process(tmp_path):
    figures = figures_of(
        """
        import itertools, torch
        torch.set_num_threads(1)
        from mats_ds.config.load import load_recipe
        from mats_ds.data.manifest import read_manifest
        from mats_ds.data.loading.loader import ClipLoader
        from mats_ds.data.loading.prefetch import ReadOptions
        from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
        from mats_ds.data.synthetic import write_synthetic_set

        clip = load_recipe("tiny").clip
        manifest = read_manifest(write_synthetic_set(sys.argv[1]))
        sampler = ClipSampler(manifest, recipe_clip=clip, num_frames=clip.num_frames, global_batch=2, seed=0)
        options = dict(size=(clip.height, clip.width), device=torch.device("cpu"), options=ReadOptions(num_workers=2))
        with ClipLoader(sampler, BatchSplit(0, 1, micro_batch=2), **options) as loader:
            batches = loader.micro_batches(0)
            for _ in itertools.islice(batches, 300):
                pass
            early = resident_bytes()
            for _ in itertools.islice(batches, 2700):
                pass
            print(json.dumps({"early": early, "late": resident_bytes()}))
        """,
        str(tmp_path / "set"),
    )
    assert figures["late"] < 1.03 * figures["early"], figures


def test_a_clip_of_a_long_file_takes_no_more_memory_than_one_of_a_short_file(tmp_path):
    from tests.data.prepare.copying.test_segment import write_heavy

    short, long = write_heavy(tmp_path / "short.mkv", 80), write_heavy(tmp_path / "long.mkv", 400)
    assert long.stat().st_size > 60e6
    figures = figures_of(
        """
        import resource
        from mats_ds.core.clips import ClipSpec
        from mats_ds.data.video.decode import decode_frames, frame_numbers
        from mats_ds.data.video.indexing import index_video

        peaks = []
        for path in sys.argv[1:]:
            spec, index = ClipSpec(path=path, sample=0, num_frames=16, stride=4, start=0.6), index_video(path)
            decode_frames(path, frame_numbers(spec, index=index), index=index)
            peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        print(json.dumps(dict(zip(("short", "long"), peaks))))
        """,
        str(short),
        str(long),
    )
    assert figures["long"] - figures["short"] < 20e6, figures


@pytest.mark.slow
def test_a_manifest_of_a_million_rows_loads_in_seconds_and_takes_less_than_300_mb(tmp_path):
    (tmp_path / "class_0").mkdir()
    (tmp_path / "class_0" / "a_video_with_an_ordinary_name_00000000.mp4").write_bytes(b"")
    with (tmp_path / "set.csv").open("w") as file:
        file.write("path,label\n")
        file.writelines(
            f"class_{row % 400}/a_video_with_an_ordinary_name_{row:08d}.mp4,{row % 400}\n" for row in range(1_000_000)
        )
    figures = figures_of(
        """
        from mats_ds.config.recipe import ClipSection
        from mats_ds.data.manifest import read_manifest
        from mats_ds.data.loading.prefetch import ReadOptions
        from mats_ds.data.clip_sampler import BatchSplit, ClipSampler

        before, begin = resident_bytes(), time.perf_counter()
        sampler = ClipSampler(read_manifest(sys.argv[1]), recipe_clip=ClipSection(), num_frames=16, global_batch=192, seed=0)
        rows = len({sampler.spec(position).sample for position in range(192)})
        figures = {"seconds": time.perf_counter() - begin, "bytes": resident_bytes() - before, "rows": rows}
        print(json.dumps(figures))
        """,
        str(tmp_path / "set.csv"),
    )
    assert figures["rows"] == 192
    assert figures["seconds"] < 30 and figures["bytes"] < 300e6, figures
