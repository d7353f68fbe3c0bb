"""The comparison of a device's frames with PyAV's sees each fault that it is made for, here with a
decoder that has them on request."""

import pytest

from benchmarks.gpu import compare
from benchmarks.gpu.compare import CASES, Case, compare_broken, compare_case
from benchmarks.gpu.stand_in import FAULTS, StandIn
from benchmarks.gpu.video_files import BROKEN, FORMATS, write_broken, write_format
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.nvdec_support import why_on_cpu

FAULTY = {case.name: case for case in CASES if case.fault}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


def test_there_is_a_case_for_every_fault():
    assert {case.fault for case in FAULTY.values()} | {"end"} == FAULTS


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_seen_and_a_sound_decoder_passes(folder, name):
    case = FAULTY[name]
    sound = compare_case(case, folder, lambda size: StandIn(size=size))
    assert all(one.is_equal for one in sound), sound
    faulty = compare_case(case, folder, lambda size: StandIn(size=size, faults=frozenset([case.fault])))
    assert not faulty[-1].is_equal, faulty
    assert all(one.is_equal for one in faulty[:-1]), "only the last file of a case is spoilt"


@pytest.mark.parametrize("name", FAULTY)
def test_the_loader_gives_nvdec_no_file_that_such_a_fault_spoils(folder, name):
    """But for 352 x 256: only a 340 x 256 before it would spoil it, and that does not go there."""
    case = FAULTY[name]
    reasons = {one.format: one.reason for one in compare_case(case, folder, lambda size: StandIn(size=size))}
    assert [format for format, reason in reasons.items() if not reason] == [format for format in reasons if format == "352 x 256"]


def test_a_refused_codec_leaves_the_other_of_its_chunk(folder):
    """AV1 beside H.264; here VP9 where PyAV writes no AV1."""
    case = Case("two", ("h264", "vp9"), together=True)
    vp9 = write_format(folder / FORMATS["vp9"].file, FORMATS["vp9"]).read_bytes()
    h264, refused = compare_case(
        case, folder, lambda size: StandIn(size=size, refuses=lambda clip: clip.encoded.tobytes() == vp9)
    )
    assert h264.is_equal and refused.psnr is None and not refused.is_equal and "no decoder" in refused.error


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files(folder, tmp_path, kind, monkeypatch):
    good = folder / "good.mp4"
    if not good.exists():
        write_format(good, FORMATS["h264"])
    path = write_broken(tmp_path / f"{kind}.mp4", kind, good)
    decoder = StandIn(size=(176, 208), faults=frozenset(["end"]))
    seen = compare_broken(kind, path, good, decoder, (176, 208))
    assert seen.goes_on and seen.kind == kind
    # what is broken inside of a packet is known once a file is decoded: `prepare check` does
    assert bool(seen.reason) == (kind != "bits"), seen


def test_made_up_frames_at_a_torn_end_are_seen(folder, tmp_path, monkeypatch):
    """With an index that believes the header, as DALI's, and a judgement that lets it pass."""
    good = folder / "good.mp4"
    if not good.exists():
        write_format(good, FORMATS["h264"])
    torn = write_broken(tmp_path / "torn.mp4", "torn", good)
    held, whole = index_video(str(torn)).num_frames, index_video(str(good))
    assert why_on_cpu(index_video(str(torn))) == "ends before its header says" and 10 < held < whole.num_frames == 50
    monkeypatch.setattr(compare, "NUM_COMPARED", 50)
    monkeypatch.setattr(compare, "why_on_cpu", lambda index: "")
    monkeypatch.setattr(compare, "index_video", lambda path: whole)
    monkeypatch.setattr(compare, "decode_frames", lambda path, numbers: decode_frames(str(good), numbers))
    seen = compare_broken("torn", torn, good, StandIn(size=(176, 208), faults=frozenset(["end"])), (176, 208))
    assert seen.is_silent and seen.goes_on and 50 - held <= seen.num_other <= 50 - held + 3
    assert f"{seen.num_other} wrong frames, NVDEC gets it" in seen.describe()
