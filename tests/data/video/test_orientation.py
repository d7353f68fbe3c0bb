"""Pictures stand as the display matrix says: the eight orientations that matrices of phones,
cameras and editors mean."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from mats_ds.core.clips import CropSpec
from mats_ds.data.prepare.checking.check_file import check_file
from mats_ds.data.prepare.copying.copy_settings import CopySettings
from mats_ds.data.prepare.copying.segment import segment_file
from mats_ds.data.prepare.copying.transcode import transcode_file
from mats_ds.data.video.clip_frames import ClipCropper
from mats_ds.data.video.decode import decode_frames, visit_frames
from mats_ds.data.video.frames import read_frames
from mats_ds.data.video.indexing import index_video
from mats_ds.data.video.orientation import Orientation, orientation_of, read_matrix
from tests.data.clip_files import KINDS, decode_in_order, write_clip
from tests.video_files import SHARED

# a, b, c, d of x' = a x + c y, y' = b x + d y, where y points down. Source: ISO/IEC 14496-12,
# 8.3.2.
MATRICES = {
    "as it is": (1, 0, 0, 1),
    "left to right": (-1, 0, 0, 1),
    "top to bottom": (1, 0, 0, -1),
    "half turn": (-1, 0, 0, -1),
    "clockwise": (0, 1, -1, 0),
    "counter-clockwise": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}
# bytes from the name of the box to its matrix. Source: ISO/IEC 14496-12, track header box, version
# 0
TKHD_MATRIX = 44
ONE, LAST = 1 << 16, 1 << 30
NUM_FRAMES = 9


def nine_numbers(a: float, b: float, c: float, d: float) -> list[int]:
    return [int(a * ONE), int(b * ONE), 0, int(c * ONE), int(d * ONE), 0, 0, 0, LAST]


def show(picture: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """What the matrix says: every pixel put where it goes, one by one."""
    height, width = picture.shape[:2]
    places = {(b * x + d * y, a * x + c * y): picture[y, x] for y in range(height) for x in range(width)}
    top, left = min(y for y, _ in places), min(x for _, x in places)
    shown = np.zeros((width, height, 3) if b else (height, width, 3), np.uint8)
    for (y, x), pixel in places.items():
        shown[y - top, x - left] = pixel
    return shown


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    [kind] = [kind for kind in KINDS if kind.name == "h264.mp4"]
    return write_clip(tmp_path_factory.mktemp("plain") / "a.mp4", kind, num_frames=NUM_FRAMES)


@pytest.fixture
def with_matrix(plain, tmp_path):
    """`with_matrix(a, b, c, d)`: the same file with this matrix in its track header."""

    def write(*matrix: float) -> str:
        data = bytearray(plain.read_bytes())
        place = data.index(b"tkhd") + TKHD_MATRIX
        data[place : place + 36] = struct.pack(">9i", *nine_numbers(*matrix))
        path = tmp_path / "turned.mp4"
        path.write_bytes(data)
        return str(path)

    return write


def through_matroska(path: str, target: Path) -> str:
    with av.open(path) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return str(target)


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_every_reader_shows_what_the_matrix_says(plain, with_matrix, matrix):
    path, coded = with_matrix(*matrix), decode_in_order(plain)
    expected = np.stack([show(coded[number], *matrix) for number in (2, 7)])
    np.testing.assert_array_equal(read_frames(path, [2, 7]), expected)
    index = index_video(path)
    assert index.upright_size == expected.shape[1:3] and index.orientation.odd_degrees == 0.0
    assert np.abs(decode_frames(path, [2, 7]).astype(int) - expected).mean() < 2
    for flip in (False, True):
        crop = CropSpec(height_scale=0.7, width_scale=0.6, top=0.2, left=0.9, flip=flip)
        top, left, height, width = crop.box(*index.upright_size)
        cropper = ClipCropper(np.array([2, 7]), crop, index=index, size=(height, width))
        visit_frames(path, [2, 7], index=index, take=cropper.take)
        cut = expected[:, top : top + height, left : left + width]
        assert np.abs(cropper.frames().astype(int) - (cut[:, :, ::-1] if flip else cut)).mean() < 2


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_copies_stand_upright_and_segments_keep_the_matrix(with_matrix, tmp_path, matrix):
    path = with_matrix(*matrix)
    original = read_frames(path, [5])
    done = transcode_file(path, tmp_path / "copy.mp4", settings=CopySettings(crf=8))
    assert index_video(done.target).orientation.is_plain
    copied = read_frames(done.target, [5])
    assert copied.shape == original.shape and np.abs(copied.astype(int) - original).mean() < 3
    [piece] = segment_file(path, tmp_path / "cut", seconds=5.0)
    np.testing.assert_array_equal(read_frames(piece.path, [5]), original)


def test_matroska_tells_a_turn_too(with_matrix, tmp_path):
    path = with_matrix(*MATRICES["clockwise"])
    other = through_matroska(path, tmp_path / "a.mkv")
    if index_video(other).orientation.is_plain:
        pytest.skip("this FFmpeg writes no orientation into Matroska")
    np.testing.assert_array_equal(read_frames(other, [3]), read_frames(path, [3]))


def test_a_check_names_mirrored_files_and_keeps_them_from_the_device(with_matrix):
    facts = check_file(with_matrix(*MATRICES["transposed"]))
    assert (facts.mirrored, facts.rotation, facts.height, facts.width, facts.cpu_reason) == (True, 90, 80, 48, "mirrored")
    facts = check_file(with_matrix(*MATRICES["clockwise"]))
    assert (facts.mirrored, facts.rotation, facts.cpu_reason) == (False, 270, "rotation")


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1)])
def test_a_matrix_without_width_or_height_means_nothing(plain, with_matrix, matrix):
    path = with_matrix(*matrix)
    assert index_video(path).orientation == Orientation()
    np.testing.assert_array_equal(read_frames(path, [4])[0], decode_in_order(plain)[4])


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize(("across", "down"), [(2, 0.5), (0.001, 0.001), (3, 7)])
def test_the_scale_of_a_matrix_does_not_matter(matrix, across, down):
    a, b, c, d = matrix
    assert read_matrix(nine_numbers(across * a, down * b, across * c, down * d)) == read_matrix(nine_numbers(*matrix))


@pytest.mark.parametrize(("degrees", "quarters", "odd"), [(5, 0, 5), (44, 0, 44), (85, 3, -5), (178, 2, -2), (272, 1, 2)])
def test_another_angle_is_brought_to_the_nearest_quarter_turn_and_told(with_matrix, degrees, quarters, odd):
    """Clockwise degrees."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    path = with_matrix(cosine, sine, -sine, cosine)
    orientation = index_video(path).orientation
    assert (orientation.quarters, orientation.mirrored, round(orientation.odd_degrees)) == (quarters, False, odd)
    assert any(f"{odd} degrees" in warning for warning in check_file(path).warnings)


def test_a_rounding_off_a_quarter_turn_is_none(with_matrix):
    cosine, sine = math.cos(math.radians(89.6)), math.sin(math.radians(89.6))
    path = with_matrix(cosine, sine, -sine, cosine)
    assert index_video(path).orientation == Orientation(3) and index_video(path).orientation.odd_degrees == 0.0
    assert not any("degrees" in warning for warning in check_file(path).warnings)


def test_a_message_in_the_video_stream_counts(plain, tmp_path):
    """H.264's display orientation message, as some cameras write it."""
    try:
        from av.bitstream import BitStreamFilterContext

        source = av.open(str(plain))
        turn = BitStreamFilterContext(
            "h264_metadata=display_orientation=insert:rotate=90:flip=horizontal", source.streams.video[0]
        )
    except (ImportError, ValueError, av.error.FFmpegError) as error:
        pytest.skip(f"this PyAV cannot write one: {error}")
    path = tmp_path / "a.mp4"
    with source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            for turned in turn.filter(packet if packet.size else None):
                turned.stream = stream
                target.mux(turned)
    with av.open(str(path)) as container:
        orientation = orientation_of(next(container.decode(video=0)))
    assert orientation.mirrored and orientation.swaps_sides
    coded = decode_in_order(plain)[4]
    assert read_frames(path, [4])[0].tobytes() == orientation.apply(coded, axes=(0, 1)).tobytes()


def test_a_front_camera_is_mirrored():
    path = SHARED / "hard_inputs" / "display_matrix_hflip.mp4"
    if not path.exists():
        pytest.skip("no folder of hard inputs beside this checkout")
    np.testing.assert_array_equal(read_frames(path, [7])[0], decode_in_order(path)[7][:, ::-1])
