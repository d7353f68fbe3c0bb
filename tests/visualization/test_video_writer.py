"""What is written is what was drawn: sizes, colours, times; and every player can play it."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

from mats_ds.data.video import containers
from mats_ds.visualization import video_writer
from mats_ds.visualization.video_writer import check_suffix, is_our_picture, write_gif, write_mp4, write_png


def draw_pictures(num_pictures=5, height=37, width=51) -> np.ndarray:
    """uint8 [T, H, W, 3]: red above, blue below, and a white bar that moves right."""
    pictures = np.zeros((num_pictures, height, width, 3), np.uint8)
    pictures[:, : height // 2, :, 0] = 220
    pictures[:, height // 2 :, :, 2] = 200
    for number in range(num_pictures):
        pictures[number, :, 6 * number : 6 * number + 8] = 250
    return pictures


def test_mp4_has_even_sides_the_rate_asked_for_and_the_pictures(tmp_path):
    pictures = draw_pictures()
    write_mp4(tmp_path / "new" / "a.mp4", pictures, frames_per_second=6.25)
    with av.open(str(tmp_path / "new" / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width, float(stream.average_rate)) == (38, 52, 6.25)
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert len(read) == 5
    difference = np.abs(read[:, :37, :51].astype(int) - pictures)
    assert difference.mean() < 6  # colours at half the resolution blur at edges
    assert np.abs(read[2, 4:14, 30:48].astype(int) - pictures[2, 4:14, 30:48]).mean() < 3


def test_mp4_falls_back_where_there_is_no_h264(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "H264_ENCODERS", ("no_such_encoder",))
    write_mp4(tmp_path / "a.mp4", draw_pictures(), frames_per_second=5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
        assert sum(1 for _ in container.decode(video=0)) == 5


def test_gif_loops_with_its_times_and_colours(tmp_path):
    pictures = draw_pictures()
    write_gif(tmp_path / "a.gif", pictures, frames_per_second=6.25)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size, image.info["loop"], image.info["duration"]) == (5, (51, 37), 0, 160)
        for number in range(5):
            image.seek(number)
            assert np.array_equal(np.asarray(image.convert("RGB")), pictures[number])


def test_png_is_exact(tmp_path):
    picture = draw_pictures()[3]
    write_png(tmp_path / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), picture)


@pytest.mark.parametrize(
    ("bad", "facts"),
    [
        ([], "no picture to write"),
        (np.zeros((2, 4, 6), np.uint8), r"pictures are uint8 \[H, W, 3\]"),
        (np.zeros((2, 4, 6, 3)), "got float64"),
        ([np.zeros((4, 6, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)], r"all of one size, got uint8 \[4, 8, 3\]"),
    ],
)
def test_what_is_no_picture_is_refused_and_leaves_no_file(tmp_path, bad, facts):
    for write in (write_mp4, write_gif):
        with pytest.raises(ValueError, match=facts):
            write(tmp_path / "a.mp4", bad, frames_per_second=5)
    assert list(tmp_path.iterdir()) == []


def test_mp4_takes_pictures_as_they_come(tmp_path):
    held = []

    def draw():
        for picture in draw_pictures():
            held.append(picture)
            yield picture

    write_mp4(tmp_path / "a.mp4", draw(), frames_per_second=5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(held) == 5


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", draw_pictures()[0])
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(Image.Image, "save", lambda self, path, **_: (path.write_text("half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        write_png(tmp_path / "a.png", draw_pictures()[1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_the_suffix_tells_the_format():
    assert [check_suffix(name) for name in ("a.mp4", "b.GIF", "c/d.png")] == [".mp4", ".gif", ".png"]
    with pytest.raises(ValueError, match=r"x\.avi ends in '\.avi': give a name that ends in \.mp4, \.gif or \.png"):
        check_suffix("x.avi")
    with pytest.raises(ValueError, match="has no suffix"):
        check_suffix("x")


def test_a_film_says_whose_it_is_and_no_other_file_does(tmp_path):
    pictures = draw_pictures()
    write_mp4(tmp_path / "a.mp4", pictures, frames_per_second=5)
    write_gif(tmp_path / "a.gif", pictures, frames_per_second=5)
    write_png(tmp_path / "a.png", pictures[0])
    assert all(is_our_picture(tmp_path / f"a{suffix}") for suffix in video_writer.SUFFIXES)
    for suffix in (".png", ".gif"):
        Image.fromarray(pictures[0]).save(tmp_path / f"b{suffix}")
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "b.mp4"), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    assert not any(is_our_picture(tmp_path / f"b{suffix}") for suffix in video_writer.SUFFIXES)
    for suffix in video_writer.SUFFIXES:
        (tmp_path / f"c{suffix}").write_text(video_writer.COMMENT)  # text
        (tmp_path / f"d{suffix}").write_bytes((tmp_path / f"a{suffix}").read_bytes()[:40])  # torn
        assert not is_our_picture(tmp_path / f"c{suffix}") and not is_our_picture(tmp_path / f"d{suffix}")
    # names ours
    (tmp_path / "e.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n")
    assert not is_our_picture(tmp_path / "e.mp4")


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_link_or_a_folder_is_not_replaced(tmp_path, kind):
    (tmp_path / "precious").mkdir()
    if kind == "link":
        (tmp_path / "a.png").symlink_to(tmp_path / "precious")
    else:
        (tmp_path / "precious").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match=kind):
        write_png(tmp_path / "a.png", draw_pictures()[0])
