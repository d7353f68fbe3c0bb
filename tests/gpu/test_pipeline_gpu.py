"""NVDEC must show the frames that PyAV shows: the right numbers, the right crop, nearly the right
colours."""

from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
import torch

from mats_ds.config.finetune_recipe import parse_rand_augment
from mats_ds.config.recipe import ClipSection
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading import batching, dali
from mats_ds.data.loading.dali import choose_num_graphs
from mats_ds.data.loading.loader import ClipLoader
from mats_ds.data.loading.prefetch import ReadOptions
from mats_ds.data.manifest import read_manifest

pytestmark = pytest.mark.gpu

NUM_FRAMES, HEIGHT, WIDTH = 8, 96, 128
# Colour conversion and filters of the two routes round differently, and NVDEC upsamples colour
# planes in its own way.
MAX_MEAN_DIFFERENCE = 4.0

FORMATS = {
    "h264.mp4": ("libx264", {"preset": "veryfast", "bf": "2", "crf": "12"}),
    "h264_open_gop.mp4": ("libx264", {"preset": "veryfast", "bf": "3", "crf": "12", "x264-params": "open-gop=1"}),
    "h264.mkv": ("libx264", {"preset": "veryfast", "bf": "2", "crf": "12"}),
    "hevc.mp4": ("libx265", {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b:v": "0"}),
    "mpeg4.avi": ("mpeg4", {"b": "3M"}),
    "av1.mp4": ("libsvtav1", {"preset": "12", "crf": "20"}),
}


def write_numbered(path, codec, options, *, num_frames=48, height=176, width=208) -> None:
    """Each frame shows its number as eight black or white columns, over a slope of colour."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 12
        slope = np.linspace(30, 220, height // 2)[:, None]
        for number in range(num_frames):
            picture = np.zeros((height, width, 3), np.uint8)
            bits = np.repeat([number >> bit & 1 for bit in range(8)], width // 8)
            picture[: height // 2] = (bits * 215 + 20)[None, :, None]
            picture[height // 2 :] = np.stack([slope, slope[::-1], np.full_like(slope, 128)], -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def loader_of(folder, device, *, micro_batch, num_graphs=None, rand_augment=None, **clip) -> ClipLoader:
    section = ClipSection(**{"num_frames": NUM_FRAMES, "stride": 3, "height": HEIGHT, "width": WIDTH, **clip})
    sampler = ClipSampler(
        read_manifest(folder),
        recipe_clip=section,
        num_frames=NUM_FRAMES,
        global_batch=micro_batch,
        seed=1,
        crop_areas=(0.08, 1.0) if rand_augment else None,
        rand_augment=parse_rand_augment(rand_augment) if rand_augment else None,
    )
    return ClipLoader(
        sampler,
        BatchSplit(0, 1, micro_batch),
        size=(HEIGHT, WIDTH),
        device=torch.device(device),
        options=ReadOptions(num_workers=2, num_graphs=num_graphs),
    )


def take(loader, count):
    with loader:
        return list(islice(loader.micro_batches(0), count))


@pytest.mark.parametrize("name", FORMATS)
def test_nvdec_shows_the_frames_that_pyav_shows(tmp_path, name, caplog):
    codec, options = FORMATS[name]
    try:
        write_numbered(tmp_path / name, codec, options)
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV cannot write {name}: {error}")
    on_cpu = take(loader_of(tmp_path, "cpu", micro_batch=4), 2)
    on_gpu = take(loader_of(tmp_path, "cuda:0", micro_batch=4), 2)
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert other.frames_BTHWC.is_cuda and not other.bad
        assert torch.equal(one.seed_B, other.seed_B.cpu()) and torch.equal(one.sample_B, other.sample_B.cpu())
        difference_BT = (one.frames_BTHWC.float() - other.frames_BTHWC.cpu().float()).abs().flatten(2).mean(2)
        # a wrong frame differs by tens
        assert difference_BT.max() < MAX_MEAN_DIFFERENCE, difference_BT
    if "refused" in caplog.text:
        pytest.skip(f"this GPU does not decode {codec}: PyAV did")


def test_mixed_files_of_mixed_sizes_keep_their_places(tmp_path):
    """More clips than a chunk, more chunks than graphs, some files for NVDEC and some for PyAV,
    some broken."""
    for number in range(40):
        codec, options = FORMATS["h264.mp4" if number % 3 else "mpeg4.avi"]
        size = {"height": 144 + 16 * (number % 4), "width": 176 + 32 * (number % 3)}
        write_numbered(tmp_path / f"{number:02d}.{'mp4' if number % 3 else 'avi'}", codec, options, num_frames=30, **size)
    (tmp_path / "40.mp4").write_bytes(b"")
    (tmp_path / "41.mp4").write_bytes((tmp_path / "01.mp4").read_bytes()[:2000])
    for one, other in zip(
        take(loader_of(tmp_path, "cpu", micro_batch=42), 2), take(loader_of(tmp_path, "cuda:0", micro_batch=42), 2), strict=True
    ):
        assert one.paths == other.paths and one.bad == other.bad and torch.equal(one.valid_B, other.valid_B.cpu())
        assert len(one.bad) == 2
        difference_B = (one.frames_BTHWC.float() - other.frames_BTHWC.cpu().float()).abs().flatten(1).mean(1)
        assert difference_B.max() < MAX_MEAN_DIFFERENCE, difference_B


def test_the_device_route_is_deterministic_and_batches_stay_whole(tmp_path):
    for number in range(6):
        write_numbered(tmp_path / f"{number}.mp4", *FORMATS["h264.mp4"], num_frames=30 + number)
    runs = []
    for _ in range(2):
        with loader_of(tmp_path, "cuda:0", micro_batch=3) as loader:
            kept = [(batch.frames_BTHWC, batch.frames_BTHWC.clone()) for batch in islice(loader.micro_batches(0), 8)]
        torch.cuda.synchronize()
        assert all(torch.equal(frames, copy) for frames, copy in kept)
        runs.append(torch.stack([frames for frames, _ in kept]))
    assert torch.equal(*runs)


def test_a_file_that_nvdec_refuses_goes_through_pyav(tmp_path, monkeypatch, caplog):
    """Refused in its chunk and alone; the others of the chunk stay on the device."""
    for number in range(3):
        write_numbered(tmp_path / f"{number}.mp4", *FORMATS["h264.mp4"], num_frames=48 + number)
    victim = (tmp_path / "1.mp4").stat().st_size
    expected = take(loader_of(tmp_path, "cpu", micro_batch=3), 2)
    start, finish = dali.GpuDecoder.start, dali.GpuDecoder.finish
    alone = []

    def note(self, clips):
        self.refuses = any(clip.num_bytes == victim for clip in clips)
        alone.append(len(clips) == 1 and not self.refuses)
        start(self, clips)

    def fail(self):
        output = finish(self)
        if self.refuses:
            raise RuntimeError("encountered: no such decoder")
        return output

    monkeypatch.setattr(dali.GpuDecoder, "start", note)
    monkeypatch.setattr(dali.GpuDecoder, "finish", fail)
    batches = take(loader_of(tmp_path, "cuda:0", micro_batch=3), 2)
    assert "1.mp4" in caplog.text and "no such decoder" in caplog.text and "goes to PyAV from now on:" not in caplog.text
    assert sum(alone) >= 2
    for batch, other in zip(batches, expected, strict=True):
        assert not batch.bad and batch.valid_B.all()
        difference_B = (batch.frames_BTHWC.cpu().float() - other.frames_BTHWC.float()).abs().flatten(1).mean(1)
        assert difference_B.max() < MAX_MEAN_DIFFERENCE


def test_there_are_as_many_pipelines_as_the_card_has_engines(tmp_path):
    for number in range(12):
        write_numbered(tmp_path / f"{number:02d}.mp4", *FORMATS["h264.mp4"], num_frames=30)
    made = []
    build = dali.GpuDecoder.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "MAX_CHUNK_CLIPS", 1)  # every clip asks for a graph of its own
        patch.setattr(dali.GpuDecoder, "__init__", lambda self, **sizes: (made.append(self), build(self, **sizes))[1])
        loader = loader_of(tmp_path, "cuda:0", micro_batch=12)
        take(loader, 2)
    assert 1 <= len(made) <= loader.num_graphs == choose_num_graphs(torch.device("cuda:0"))
    assert f"{loader.num_graphs} DALI pipelines" in loader.describe() and "page-locked memory at most" in loader.describe()


def test_the_number_of_pipelines_changes_no_bit(tmp_path):
    for number in range(9):
        write_numbered(tmp_path / f"{number}.mp4", *FORMATS["h264.mp4"], num_frames=30 + number)
    one, five = (take(loader_of(tmp_path, "cuda:0", micro_batch=9, num_graphs=count), 2) for count in (1, 5))
    for left, right in zip(one, five, strict=True):
        assert torch.equal(left.frames_BTHWC, right.frames_BTHWC) and torch.equal(left.seed_B, right.seed_B)


def test_what_pyav_decodes_for_a_gpu_is_what_it_decodes_for_a_cpu(tmp_path):
    """Time stamps of AVI with B-frames are not trusted, so these go to PyAV on either device: no
    bit may differ."""
    for number in range(4):
        write_numbered(tmp_path / f"{number}.avi", "mpeg4", {"b": "3M", "bf": "2"}, num_frames=36)
    for left, right in zip(
        take(loader_of(tmp_path, "cpu", micro_batch=4), 2), take(loader_of(tmp_path, "cuda:0", micro_batch=4), 2), strict=True
    ):
        assert torch.equal(left.frames_BTHWC, right.frames_BTHWC.cpu())


def test_whole_frames_are_augmented_on_the_gpu_as_on_the_host(tmp_path):
    """Files of several sizes in a chunk; the same clips whatever the number of graphs, and those of
    the host but for colours."""
    for number in range(12):
        size = {"height": 144 + 32 * (number % 3), "width": 176 + 32 * (number % 2)}
        write_numbered(tmp_path / f"{number:02d}.mp4", *FORMATS["h264.mp4"], num_frames=30, **size)
    options = dict(micro_batch=12, rand_augment="rand-m7-n4-mstd0.5-inc1")
    on_cpu = take(loader_of(tmp_path, "cpu", **options), 3)
    on_gpu = take(loader_of(tmp_path, "cuda:0", **options), 3)
    again = take(loader_of(tmp_path, "cuda:0", num_graphs=1, **options), 3)
    differences = []
    for one, other, third in zip(on_cpu, on_gpu, again, strict=True):
        assert other.frames_BTHWC.is_cuda and not other.bad and other.frames_BTHWC.shape == one.frames_BTHWC.shape
        assert torch.equal(one.seed_B, other.seed_B.cpu()) and torch.equal(other.frames_BTHWC, third.frames_BTHWC)
        differences.append((one.frames_BTHWC.float() - other.frames_BTHWC.cpu().float()).abs().flatten(1).mean(1))
    # Colours a level or two apart before a threshold or an equalization are further apart after it.
    differences = torch.cat(differences)
    assert differences.median() < MAX_MEAN_DIFFERENCE and (differences > 16).float().mean() < 0.1, differences
