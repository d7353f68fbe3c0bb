"""What lies where weights should: each kind is refused in words of its own, and never with the
advice to load it otherwise."""

from __future__ import annotations

import argparse
import gzip
import io
import pathlib
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mats_ds import load_model
from mats_ds.models.weights.file_content import check_content
from mats_ds.models.weights.load import read_weights, weights_of
from mats_ds.models.weights.native import save_weights
from tests.models.weights.conftest import outputs, videomae_names

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 345678901\n"
UNSAFE = ("trust", "weights_only", "unsafe", "would run code")


def zipped(name):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, b"x" * 50)
    return stream.getvalue()


def tarred():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return stream.getvalue()


def saved(*, old=False):
    stream = io.BytesIO()
    torch.save({"model": {"weight": torch.zeros(500)}}, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


STRANGERS = {
    "lfs": (LFS, r"Git LFS pointer of 134 bytes.*345678901 bytes.*git lfs pull"),
    "page": (b"\n <!DOCTYPE html><html><title>Sign in", r"HTML page.*download it again, signed in"),
    "page in capitals": (b"<HTML><BODY>404", r"HTML page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', r"XML.*AccessDenied"),
    "json": (b'{"error":"Repository not found"}', r"JSON text.*Repository not found"),
    "words": (b"Entry not found", r"text and no weights.*Entry not found"),
    "empty": (b"", r"empty \(0 bytes\)"),
    "gzip": (gzip.compress(b"weights"), r"gzip archive: unpack it"),
    "tar": (tarred(), r"tar archive: unpack it"),
    "zip": (zipped("weights.pth"), r"zip archive of weights\.pth: unpack it"),
    "script": (zipped("model/code/__torch__.py"), r"TorchScript"),
    "exported program": (zipped("archive/models/model.json"), r"torch\.export.*give the run or the weights"),
    "old exported program": (zipped("serialized_exported_program.json"), r"torch\.export.*give the run or the weights"),
    "onnx": (b"\x08\x0a\x12\x07pytorch\x1a\x062.15.0:" + bytes(99), r"ONNX model.*give the run or the weights"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), r"HDF5.*Keras"),
    "tensorflow": (bytes(99) + struct.pack("<Q", 0xDB4775248B80FB57), r"TensorFlow"),
    "torn": (saved()[:-300], r"cut off or damaged, it may be torn \([\d,]+ bytes.*download it again"),
    "torn early": (saved()[:40], r"cut off or damaged"),
    "torn, of old torch": (saved(old=True)[:-300], r"cut off or damaged"),
    "torn early, of old torch": (saved(old=True)[:30], r"cut off or damaged"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content, words", STRANGERS.values(), ids=STRANGERS)
def test_every_other_kind_of_file_is_refused(tmp_path, content, words, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words if suffix == ".pth" or "cut off" not in words else "may be torn") as error:
        read_weights(path)
    assert not any(word in str(error.value) for word in UNSAFE) and str(path) in str(error.value)


def test_random_bytes_are_damage_and_no_code(tmp_path):
    (tmp_path / "c.pth").write_bytes(bytes(range(200, 256)) * 3)
    with pytest.raises(ValueError, match="cannot be read, it may be torn") as error:
        read_weights(tmp_path / "c.pth")
    assert not any(word in str(error.value) for word in UNSAFE)


def test_a_pointer_in_a_hugging_face_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "videomae"}')
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(LFS)
        with pytest.raises(ValueError, match=f"{name.replace('.', '.')} is a Git LFS pointer"):
            read_weights(tmp_path)
    (tmp_path / "config.json").write_bytes(LFS)
    with pytest.raises(ValueError, match=r"config\.json is a Git LFS pointer"):
        read_weights(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config\.json"):
        read_weights(tmp_path)


def test_names_that_say_another_format_do_not_matter(tmp_path, classifier):
    weights = weights_of(classifier, "a test")
    save_weights(tmp_path / "ours.safetensors", weights.spec, weights.state)
    (tmp_path / "ours.safetensors").rename(tmp_path / "ours.pth")
    torch.save({"model": videomae_names(classifier)}, tmp_path / "theirs.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in videomae_names(classifier).items()}, tmp_path / "theirs.pth")
    hints = {"num_frames": 6, "height": 16, "width": 24, "heads": 3}
    assert torch.equal(outputs(load_model(tmp_path / "ours.pth")), outputs(classifier))
    for name in ("theirs.safetensors", "theirs.pth"):
        assert torch.equal(outputs(load_model(read_weights(tmp_path / name, **hints), keep_ratio=0.5)), outputs(classifier))


def test_numbers_of_numpy_and_paths_are_harmless(tmp_path, classifier):
    arguments = argparse.Namespace(output_dir=pathlib.Path("/runs/1"), num_frames=6, input_size=16)
    extra = {"best": np.float64(81.5), "epoch": np.int64(7), "args": arguments}
    torch.save({"model": videomae_names(classifier), **extra}, tmp_path / "c.pth")
    assert read_weights(tmp_path / "c.pth", heads=3, width=24).spec.grid.num_frames == 6


def test_kinds_of_what_may_be_weights(tmp_path):
    kinds = {"new.pth": saved(), "old.pth": saved(old=True), "protocol-0.pth": b"(dp0\nVmodel\np1\nI1\ns."}
    for name, content in kinds.items():
        (tmp_path / name).write_bytes(content)
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert {path.name: check_content(path) for path in sorted(tmp_path.iterdir())} == {
        "a.safetensors": "safetensors",
        "new.pth": "zip",
        "old.pth": "other",
        "protocol-0.pth": "other",
    }
