"""Values go between processes with their large arrays in memory that both map."""

from __future__ import annotations

import errno
import os
import socket

import numpy as np
import pytest

from mats_ds.data.loading import channel
from mats_ds.data.loading.channel import Channel, lay_out, map_memory, open_memory, pack, unpack
from mats_ds.data.loading.reader import DecodedClip, EncodedClip, Region


@pytest.fixture
def ends():
    one, other = map(Channel, socket.socketpair())
    yield one, other
    one.close()
    other.close()


def forbid(*_):
    raise OSError(errno.ENOSYS, "not here")


@pytest.mark.parametrize("way", ["memfd", "forbidden", "missing"])
def test_pixels_are_not_pickled_and_arrive_without_a_copy(way, monkeypatch):
    if way == "forbidden":
        monkeypatch.setattr(os, "memfd_create", forbid, raising=False)
    if way == "missing":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    frames_THWC = np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), np.uint8)
    encoded = np.arange(3001, dtype=np.uint8)
    clips = [
        DecodedClip(frames_THWC),
        *(EncodedClip(encoded, np.int32([1, 2]), Region((0, 1, 2, 3), flip), "h264") for flip in (0, 1)),
    ]
    pickled, large = pack(clips)
    assert len(pickled) < 1500 and len(large) == 2, "the bytes of a file that two clips share are stored once"
    ranges, num_bytes = lay_out(large)
    assert frames_THWC.nbytes + encoded.nbytes <= num_bytes < frames_THWC.nbytes + encoded.nbytes + 128
    file = open_memory(num_bytes)
    theirs, ours = map_memory(os.dup(file), num_bytes), map_memory(file, num_bytes)
    for (begin, size), buffer in zip(ranges, large, strict=True):
        theirs[begin : begin + size] = buffer.raw()
    decoded, one, other = unpack(pickled, ours, ranges)
    np.testing.assert_array_equal(decoded.frames_THWC, frames_THWC)
    np.testing.assert_array_equal(one.encoded, encoded)
    assert one.encoded is other.encoded and (other.codec, other.region.flip, other.numbers_T.tolist()) == ("h264", 1, [1, 2])
    theirs[ranges[0][0]] = 255 - frames_THWC.flat[0]
    assert decoded.frames_THWC.flat[0] == 255 - frames_THWC.flat[0] and decoded.frames_THWC.flags.writeable


def test_messages_come_whole_and_in_order_with_their_files(ends, tmp_path):
    one, other = ends
    names = []
    for number in range(3):
        with open(tmp_path / str(number), "w+b") as file:
            file.write(b"%d" % number)
            file.flush()
            one.send(("named", number), files=[file.fileno()])
        one.send("plain")
    received = []
    while len(received) < 6:
        received += other.receive_some()
    for message, files in received:
        if message == "plain":
            assert files == []
            continue
        assert not os.get_inheritable(files[0])
        names.append(os.pread(files[0], 10, 0))
        os.close(files[0])
    assert names == [b"0", b"1", b"2"]
    one.connection.setblocking(True)
    other.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    one.send("x" * 100_000)
    received = []
    while not received:
        received = other.receive_some()
    assert received == [("x" * 100_000, [])]
    one.close()
    with pytest.raises(EOFError):
        other.receive_some()


def test_what_is_no_message_can_be_read_as_words(ends):
    one, other = ends
    one.connection.sendall(b"ImportError: no numpy here\n")
    assert other.receive_some() == [] and other.received_text() == "ImportError: no numpy here"
    assert channel.HEADER.unpack(b"Impor")[0] > 1 << 20, "words are never a whole message"
