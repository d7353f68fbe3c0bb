"""FFmpeg opens the file of the manifest and nothing else, whatever that file or its name says."""

import os
import socket
import threading

import av
import pytest

from mats_ds.data.manifest import read_manifest
from mats_ds.data.video import containers
from mats_ds.data.video.containers import FORMATS, UnreadableVideo, open_container
from mats_ds.data.video.decode import decode_frames
from mats_ds.data.video.indexing import index_video

SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
DASH = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>secret.ts</BaseURL></Period></MPD>'


@pytest.fixture
def secret(write_video, tmp_path):
    """A sound video that nobody asked for, in two containers."""
    write_video(tmp_path / "secret.ts", num_frames=12)
    return write_video(tmp_path / "secret.mp4", num_frames=12)


@pytest.mark.parametrize("name", ["video.mp4", "video.m3u8", "video.ffconcat", "video.ts", "video.sdp", "video.mpd"])
@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "ffconcat version 1.0\nfile {folder}/secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n",
        SDP,
        DASH,
    ],
    ids=["concat", "concat-absolute", "hls", "sdp", "dash"],
)
def test_a_playlist_or_script_is_refused_and_what_it_names_is_not_opened(secret, tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content.format(folder=tmp_path))
    with pytest.raises(UnreadableVideo, match="never opened|not a video"):
        index_video(str(path))


def test_the_scripts_of_this_test_would_be_followed_otherwise(secret, tmp_path):
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n")
    for name in ("concat.mp4", "list.m3u8"):
        with av.open(str(tmp_path / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 12, name


def test_the_network_is_not_asked(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.5)
        asked = []

        def wait_for_a_caller():
            try:
                asked.append(listener.accept()[0])
            except TimeoutError:
                return

        waiting = threading.Thread(target=wait_for_a_caller)
        waiting.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.mp4"
        (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {url}\n")
        (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n")
        for path in (url, str(tmp_path / "list.mp4"), str(tmp_path / "list.m3u8")):
            with pytest.raises(UnreadableVideo):
                index_video(path)
            with pytest.raises((ValueError, OSError)):
                open_container(path)
        waiting.join()
    assert not asked


@pytest.mark.parametrize("prefix", ["concat:", "subfile:,,start,0,end,0,,:", "async:", "cache:", "crypto:", "data:", "pipe:0"])
def test_a_path_is_a_path_and_no_address(secret, monkeypatch, prefix):
    monkeypatch.chdir(secret.parent)
    with pytest.raises(UnreadableVideo, match="No such file"):
        index_video(prefix + "secret.mp4")
    with pytest.raises((ValueError, OSError)):
        open_container(prefix + "secret.mp4")


def test_a_file_that_bears_the_name_of_an_address_is_read_itself(secret, write_video, monkeypatch):
    monkeypatch.chdir(secret.parent)
    os.rename(write_video(secret.parent / "other.mp4", num_frames=7), "concat:secret.mp4")
    assert index_video("concat:secret.mp4").num_frames == 7
    (secret.parent / "list.csv").write_text("path,label\nconcat:secret.mp4,1\n")
    [path] = read_manifest("list.csv").paths
    assert index_video(path).num_frames == 7


def test_every_format_of_the_list_is_known_and_none_is_a_playlist():
    others = {"concat", "hls", "dash", "sdp", "rtsp", "image2", "lavfi", "imf", "applehttp", "tty", "webm_dash_manifest"}
    assert not others & set(FORMATS)
    known = {part for name in av.formats_available for part in name.split(",")}
    assert {"mov", "matroska", "avi", "mpeg", "mpegts", "asf", "flv", "ogg"} <= known & set(FORMATS)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "m4v", "3gp", "mkv", "avi", "mpg", "ts", "flv", "wmv", "webm", "ogv"])
def test_the_formats_of_videos_open(write_video, read_numbers, tmp_path, suffix):
    codec = {"webm": "libvpx-vp9", "mpg": "mpeg2video", "wmv": "mpeg4", "ogv": "libvpx", "avi": "mpeg4"}.get(suffix, "libx264")
    frame_rate = 25 if suffix == "mpg" else 20
    path = str(write_video(tmp_path / f"a.{suffix}", codec=codec, num_frames=12, frame_rate=frame_rate))
    assert index_video(path).num_frames == 12
    assert read_numbers(decode_frames(path, [3, 9])) == [3, 9]


def test_a_picture_that_would_take_gigabytes_is_refused(write_video, tmp_path, monkeypatch):
    path = str(write_video(tmp_path / "a.mp4", height=64, width=96))
    monkeypatch.setattr(containers, "MAX_PIXELS", 64 * 64)
    with pytest.raises(UnreadableVideo):
        index_video(path)
