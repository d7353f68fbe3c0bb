"""A file that the device refuses costs its own clip a detour, and no codec that it can decode."""

import logging
from itertools import islice

import numpy as np
import pytest
import torch

from benchmarks.gpu.stand_in import StandIn
from mats_ds.config.recipe import ClipSection
from mats_ds.data.clip_sampler import BatchSplit, ClipSampler
from mats_ds.data.loading import loader as pipeline
from mats_ds.data.loading.nvdec import refusals
from mats_ds.data.loading.nvdec.refusals import Refusals
from mats_ds.data.loading.prefetch import ReadOptions
from mats_ds.data.manifest import Manifest
from mats_ds.data.video.nvdec_support import NVDEC_LIMITS

CODECS = {name: NVDEC_LIMITS[name] for name in ("h264", "vp9")}
HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def paths(write_video, tmp_path_factory) -> list[str]:
    """Thirty-nine H.264 files and one VP9 file, for one in forty."""
    folder = tmp_path_factory.mktemp("mixed")
    paths = [write_video(folder / f"{number:02d}.mp4", num_frames=8 + number, height=64, width=96) for number in range(39)]
    vp9 = write_video(folder / "39.webm", num_frames=8, codec="libvpx-vp9", height=128, width=160)
    return [*map(str, paths), str(vp9)]


class Watched(StandIn):
    """Notes the chunks; `refuse` chooses what is refused."""

    chunks: list[list[str]]
    refuse = staticmethod(lambda clip: False)

    def __init__(self, **options) -> None:
        super().__init__(**options, refuses=lambda clip: type(self).refuse(clip))

    def start(self, clips):
        type(self).chunks.append([clip.codec for clip in clips])
        super().start(clips)


@pytest.fixture
def device(monkeypatch):
    """The loader's device decodes H.264 and VP9; what it is asked is in `chunks`."""
    decoder = type("Device", (Watched,), {"chunks": []})
    monkeypatch.setattr(pipeline, "device_codecs", lambda device: CODECS)
    monkeypatch.setattr(pipeline, "GpuDecoder", decoder)
    return decoder


def take(paths, count, *, batch=40):
    nan_S = np.full(len(paths), np.nan)
    manifest = Manifest(paths, np.arange(len(paths)), nan_S, nan_S.copy(), "set")
    clip = ClipSection(num_frames=4, stride=1, height=HEIGHT, width=WIDTH, flip=True)
    sampler = ClipSampler(manifest, recipe_clip=clip, num_frames=4, global_batch=batch, seed=3)
    options = ReadOptions(num_workers=2, num_graphs=2, prefetch=1)
    loader = pipeline.ClipLoader(
        sampler, BatchSplit(0, 1, batch), size=(HEIGHT, WIDTH), device=torch.device("cpu"), options=options
    )
    with loader:
        return list(islice(loader.micro_batches(0), count))


def by_pyav(paths, count, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "device_codecs", lambda device: {})
        return take(paths, count, **options)


def assert_alike(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.paths == other.paths and torch.equal(one.valid_B, other.valid_B) and not other.bad
        difference_B = (one.frames_BTHWC.float() - other.frames_BTHWC.float()).abs().flatten(1).mean(1)
        assert difference_B.max() < 2, difference_B


def test_one_file_in_forty_that_is_refused_leaves_its_codec_on_the_device(paths, device, monkeypatch, caplog):
    """An AV1 file on an H100, here VP9: refused in every epoch with the seven others of its
    chunk, it used to take H.264 off the device after three."""
    device.refuse = staticmethod(lambda clip: clip.codec == "vp9")
    batches = take(paths, 8)
    assert_alike(by_pyav(paths, 8, monkeypatch), batches)
    assert device.chunks[-1] == ["h264"] * len(device.chunks[-1]), "H.264 is still on the device"
    assert sum(codecs.count("h264") for codecs in device.chunks) >= 8 * 39
    refused = [record for record in caplog.records if "refused %s" in record.msg]
    assert [record.args[0] for record in refused] == [paths[-1]] and "goes to PyAV from now on" not in caplog.text
    # its chunk, alone, and in what was with the two decoders by then
    assert sum("vp9" in codecs for codecs in device.chunks) <= 2 + 2


def test_a_codec_of_which_nothing_is_ever_decoded_is_given_up(paths, device, monkeypatch, caplog):
    device.refuse = staticmethod(lambda clip: clip.codec == "h264")
    assert_alike(by_pyav(paths, 3, monkeypatch, batch=8), take(paths, 3, batch=8))
    assert "h264 goes to PyAV from now on" in caplog.text and "refused 3 files" in caplog.text


def test_a_refused_file_is_asked_for_once_and_remembered(paths, device, monkeypatch):
    """One bad H.264 file among good ones."""
    victim = np.fromfile(paths[3], np.uint8)
    device.refuse = staticmethod(lambda clip: np.array_equal(clip.encoded, victim))
    asked = []
    start = device.start

    def note(self, clips):
        asked.extend(np.array_equal(clip.encoded, victim) for clip in clips)
        start(self, clips)

    monkeypatch.setattr(device, "start", note)
    assert_alike(by_pyav(paths, 8, monkeypatch), take(paths, 8))
    assert 2 <= sum(asked) <= 4


def test_a_clip_alone_in_its_chunk_is_not_asked_for_again(paths, device, monkeypatch):
    device.refuse = staticmethod(lambda clip: clip.codec == "vp9")
    only = [paths[-1]]
    assert_alike(by_pyav(only, 2, monkeypatch, batch=1), take(only, 2, batch=1))
    assert all(len(codecs) == 1 for codecs in device.chunks) and len(device.chunks) <= 4


def test_a_decoder_that_fails_for_once_blames_no_file(paths, device, monkeypatch, caplog):
    """The chunk fails, each of its clips alone does not."""
    failing = [True]
    finish = device.finish

    def fail_once(self):
        if failing and len(self._clips) > 1:
            failing.clear()
            self.busy = False
            raise RuntimeError("... encountered: a hiccup C++ context: ...")
        return finish(self)

    monkeypatch.setattr(device, "finish", fail_once)
    assert_alike(by_pyav(paths, 2, monkeypatch), take(paths, 2))
    assert not failing and "refused" not in caplog.text


def test_what_is_remembered_and_logged_is_bounded(monkeypatch, caplog):
    monkeypatch.setattr(refusals, "MAX_FILES", 50)
    known = Refusals()
    known.note_success(["h264"])
    with caplog.at_level(logging.WARNING):
        given_up = [known.note(f"{number}.mp4", codec="h264", cause="?", is_sound=True) for number in range(150)]
    assert not any(given_up) and known.num_files == 150
    assert not known.has("0.mp4") and known.has("149.mp4") and known.has("100.mp4")
    assert len(caplog.records) == 5 + 2  # the first five, the 10th and the 100th
    assert not known.note("149.mp4", codec="h264", cause="?", is_sound=True) and known.num_files == 150


def test_files_that_nothing_decodes_say_nothing_of_their_codec():
    known = Refusals()
    assert not any(known.note(f"{number}.mp4", codec="av1", cause="?", is_sound=False) for number in range(9))
    assert [known.note(f"s{number}.mp4", codec="av1", cause="?", is_sound=True) for number in range(4)] == [
        False,
        False,
        True,
        False,
    ]
