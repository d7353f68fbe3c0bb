"""Calls that fill the memory are found wherever a file names them, and nothing else is."""

import io
import zipfile

import pytest
import torch

from mats_ds.core.storage.pickle_bombs import BLOCK_BYTES, INFLATING, InflatingPickle, refuse_inflating_calls


def zip_of(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"a/{name.replace('_', '.')}", content)
    return stream


@pytest.mark.parametrize("before", [0, 3, BLOCK_BYTES - 7, 2 * BLOCK_BYTES - 1])
@pytest.mark.parametrize("mark", INFLATING)
def test_a_call_is_found_in_a_zip_file_and_in_an_old_one(mark, before):
    content = b"x" * before + b"c" + mark + b"."
    for stream in (io.BytesIO(content), zip_of(version=b"3", data_pkl=content)):
        with pytest.raises(InflatingPickle, match=INFLATING[mark]):
            refuse_inflating_calls(stream)


def test_a_file_of_weights_that_speaks_of_them_is_read_from_its_beginning():
    stream = io.BytesIO()
    torch.save({"bytearray": torch.zeros(2, 3), "note": "builtins.bytearray"}, stream)
    refuse_inflating_calls(stream)
    assert stream.tell() == 0 and torch.load(stream)["bytearray"].shape == (2, 3)
