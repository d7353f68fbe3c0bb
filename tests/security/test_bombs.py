"""Small files that unfold to gigabytes: refused in one line, by a process that hardly grows.

Each file is read by a process of its own, forked from one that has imported everything, and the
growth of its peak of resident memory is measured. A file has a few megabytes at most; without the
bounds each takes more than LIMIT_BYTES, or hours.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import re
import resource
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mats_ds import TokenGrid, VideoClassifier
from mats_ds.evaluation.features.feature_store import load_features, read_shard
from mats_ds.models.model_spec import dump_spec
from mats_ds.models.weights.hugging_face import write_hugging_face
from mats_ds.models.weights.load import load_encoder, load_model, read_weights, weights_of
from mats_ds.models.weights.run import read_recipe_beside

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it")
MEBIBYTE = 1 << 20
LIMIT_BYTES = 96 * MEBIBYTE
# so that a bomb that goes off takes the test down, and not the machine
ADDRESS_ROOM_BYTES = 6 << 30
ANSWER_SECONDS = 120
NUM_ZEROS = 1 << 25  # 128 MiB of float32, more than the limit
GRID = TokenGrid(num_frames=4, height=16, width=24, tubelet=(2, 8, 8))
SQUARE = TokenGrid(num_frames=4, height=16, width=16, tubelet=(2, 8, 8))
SIZES = dict(width=12, depth=1, heads=3, num_classes=5, keep_ratio=0.7)


def rezip(path, change=lambda name, content: content, compression=zipfile.ZIP_STORED):
    """Pack the members of a zip file again, changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def npz_of_zeros(path):
    np.savez_compressed(path, features=np.zeros(NUM_ZEROS, np.float32))


def npz_that_claims(path):
    np.savez(path, features=np.zeros(7, np.float32))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (500_000_000,)})
    rezip(path, lambda name, content: header.getvalue() + bytes(28))


def npz_over_itself(path):
    with zipfile.ZipFile(path, "w") as archive:
        content = io.BytesIO()
        np.save(content, np.zeros(MEBIBYTE, np.float32))
        archive.writestr("features.npy", content.getvalue())
        archive.filelist += archive.filelist * 80


def npz_of_thousands(path):
    np.savez(path, **{f"a{number}": np.zeros(1, np.int8) for number in range(3000)})


def shard_header(path):
    write_header(path)


def write_header(path, *, num_tensors=250_000):
    """A safetensors file of nothing but the names of empty tensors."""
    entries = ",".join(f'"{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(num_tensors))
    header = f"{{{entries}}}".encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def pth_of_zeros(path):
    torch.save({"model": {"patch_embed.proj.weight": torch.zeros(NUM_ZEROS)}}, path)
    rezip(path, compression=zipfile.ZIP_DEFLATED)


CLAIM = b"\x8a\x05\0\0\0\0\1"  # 2^32, where a pickle of torch says 16


def pth_that_claims(path):
    torch.save({"model": {"a": torch.zeros(16)}}, path)
    rezip(path, lambda name, content: content.replace(b"K\x10t", CLAIM + b"t") if name.endswith("data.pkl") else content)


def old_pth_that_claims(path):
    torch.save({"model": {"a": torch.zeros(16)}}, path, _use_new_zipfile_serialization=False)
    # 2^28 + 2^27 float32, 1.5 GiB
    path.write_bytes(path.read_bytes().replace(b"K\x10N", b"J\0\0\0\x18N"))


def pth_over_itself(path):
    torch.save({"model": {"a": torch.zeros(1 << 18)}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist += [info for info in archive.filelist if "data/" in info.filename] * 300
        archive._didModify = True


def pth_of_one_number(path):
    torch.save({"model": {"patch_embed.proj.weight": torch.zeros(1, dtype=torch.half).expand(20_000, 20_000)}}, path)


def pth_of_shared_bytes(path):
    """512 tensors in the same two megabytes: each becomes four of its own in float32."""
    shared = torch.zeros(1 << 20, dtype=torch.half)
    names = [f"blocks.{number}.mlp.fc1.weight" for number in range(512)]

    views = {name: shared.view(1024, 1024)[:, :] for name in names}
    torch.save({"model": {"patch_embed.proj.weight": torch.zeros(4, 3, 2, 2, 2), **views}}, path)


class Made:
    """Pickled as a call of something that torch lets every file call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pth_that_makes_tensors(path):
    torch.save({"model": {"blocks.0.mlp.fc1.weight": Made(torch.Tensor, 20_000, 20_000)}}, path)


def pth_of_wide_products(path):
    """A layer scale of N numbers times N weights without columns: N x N."""
    scale = {name: torch.ones(20_000) for name in ("gamma_1", "attn.proj.weight", "attn.proj.bias")}
    tensors = {f"blocks.0.{name}": tensor for name, tensor in scale.items()}
    torch.save({"model": {"patch_embed.proj.weight": torch.zeros(4, 3, 2, 2, 2), **tensors}}, path)


def pth_of_empty_tensors(path):
    """Attention without biases gets zeros, as many as the weight has columns: of no rows, that
    costs nothing to say."""
    tensors = {"patch_embed.proj.weight": torch.zeros(4, 3, 2, 2, 2), "blocks.0.attn.qkv.weight": torch.zeros(0, 200_000_000)}
    torch.save({"model": tensors}, path)


def pth_of_a_long_word(path):
    args = {"num_frames": "a", "num_segments": 1_500_000_000}
    state = VideoClassifier(grid=GRID, **SIZES).state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].reshape(12, 2, 8, 8, 3).movedim(-1, 1).contiguous()
    renamed = {re.sub(r"attn.qkv.([qv]_bias)", r"attn.\1", name.removeprefix("encoder.")): state[name] for name in state}
    renamed = {name.replace("class_head", "head"): tensor for name, tensor in renamed.items()}
    torch.save({"model": renamed, "args": args}, path)


def pth_of_dictionaries_in_each_other(path):
    level = {}
    for _ in range(4):
        level = dict.fromkeys(map(str, range(3000)), level)
    torch.save({"model": level}, path)


def ours(path, tensors, **changes):
    spec = dump_spec(weights_of(VideoClassifier(grid=GRID, **SIZES), "a test").spec) | {"class_names": ()} | changes
    metadata = {"format": "mats_ds", "format_version": "1", "model": json.dumps(spec), "note": ""}
    save_file(tensors, path, metadata=metadata)


def ours_of_a_trillion(path):
    """The sizes are read off tensors that are thin: 3 + 4 numbers for each of 120 thousand columns,
    and a model of 1.7e11."""
    width = 120_000
    tensors = {"patch_embed.proj.weight": torch.zeros(width, 3), "encoder.blocks.0.mlp.fc1.weight": torch.zeros(4 * width, 1)}
    tensors["class_head.weight"] = torch.zeros(5, 1)
    grid = {"num_frames": 4, "height": 16, "width": 24, "tubelet": [1, 1, 1]}
    ours(path, tensors, width=width, grid=grid, position_grid=grid)


def ours_of_many_blocks(path):
    state = VideoClassifier(grid=GRID, **SIZES).state_dict()
    bias = {f"encoder.blocks.{number}.norm1.bias": torch.zeros(12) for number in range(1, 5_000)}
    ours(path, {**state, **bias}, depth=5_000)


def ours_of_a_long_film(path):
    grid = {"num_frames": 2_000_000, "height": 16, "width": 24, "tubelet": [2, 8, 8]}
    ours(path, VideoClassifier(grid=GRID, **SIZES).state_dict(), grid=grid, position_grid=grid)


def hugging_face(folder, **changes):
    write_hugging_face(folder, weights_of(VideoClassifier(grid=SQUARE, **SIZES), "a test"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def hf_of_large_pictures(folder):
    hugging_face(folder, image_size=16_000)


def hf_of_a_long_config(folder):
    hugging_face(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.rstrip("\n}") + ', "more": [' + "[]," * 4_000_000 + "0]}")


def hf_of_many_classes(folder):
    hugging_face(folder, id2label={"0": "a"})
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors") | {"classifier.weight": torch.zeros(20_000_000, 0)}
    save_file(tensors, folder / "model.safetensors")


def recipe_of_brackets(folder):
    folder.mkdir()
    (folder / "recipe.yaml").write_text("more: [" + "[]," * 400_000 + "0]\n")


def run_with_a_long_list(folder):
    step = folder / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    (step / "complete.json").write_text('{"files": [' + "[]," * 4_000_000 + "0]}")


def pickle_that(content):
    """A pickle of protocol 2 in a zip file of torch."""

    def make(path):
        torch.save({}, path)
        rezip(path, lambda name, old: b"\x80\x02" + content + b"." if name.endswith("data.pkl") else old)

    return make


NUM_BYTES = struct.pack("<i", 1 << 30)


def pth_of_zero_bytes(path):
    pickle_that(b"cbuiltins\nbytearray\nJ" + NUM_BYTES + b"\x85R")(path)


def old_pth_of_zero_bytes(path):
    torch.save({}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    path.write_bytes(old.replace(b"}q", b"}(X\1\0\0\0ac__builtin__\nbytearray\nJ" + NUM_BYTES + b"\x85Ruq", 1))


def pth_of_a_number_of_a_gigabyte(path):
    dtype = b"cnumpy\ndtype\nX\x0b\0\0\0V1000000000\x85R"
    module = np.float64(0).__reduce__()[0].__module__
    pickle_that(b"c" + module.encode() + b"\nscalar\n" + dtype + b"\x85R")(path)


def pth_that_copies_one_number(path):
    """`torch.zeros(1).expand(2**28)`, made a tensor of float64 by a function that is meant for
    other devices."""
    torch.save({"a": torch.zeros(1).expand(1 << 28)}, path)

    def change(name, old):
        if not name.endswith("data.pkl"):
            return old
        begin, end = old.index(b"ctorch._utils"), old.rindex(b"s.")
        call = b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n("
        return old[:begin] + call + old[begin:end] + b"ctorch\nfloat64\nX\3\0\0\0cpu\x89tR" + old[end:]

    rezip(path, change)


def load_with_heads(path):
    return load_model(read_weights(path, heads=3))


def load_nothing(path):
    assert load_features(path, key="k", needs_tokens=False) is None
    raise ValueError("nothing is taken from it")


BOMBS = {
    npz_of_zeros: (read_shard, "a.npz", r"unfold to 134,2\d\d,\d+"),
    npz_that_claims: (read_shard, "a.npz", r"features.npy claims 2e\+09 bytes, and \d+ are stored"),
    npz_over_itself: (read_shard, "a.npz", r"unfold to 339,\d+,\d+"),
    npz_of_thousands: (read_shard, "a.npz", r"3,000 arrays, expected 100"),
    shard_header: (read_shard, "a.safetensors", r"header .*1\d,\d+,\d+ bytes, expected 10,000,000"),
    write_header: (load_nothing, "a.safetensors", r"nothing is taken"),
    pth_of_zeros: (load_model, "a.pth", r"unfold to 134,2\d\d,\d+"),
    pth_that_claims: (load_model, "a.pth", r"17,?179,?869,?184 bytes"),
    old_pth_that_claims: (load_model, "a.pth", r"a\.pth (is cut off or damaged|cannot be read).*torn"),
    pth_over_itself: (load_model, "a.pth", r"unfold to 3\d\d,\d+,\d+"),
    pth_of_one_number: (load_model, "a.pth", r"larger than what is stored"),
    pth_of_shared_bytes: (load_model, "a.pth", r"513 tensors of 1,073,\d+,\d+ bytes share 2,097,\d+"),
    pth_that_makes_tensors: (load_model, "a.pth", r"claims 1,600,000,000 bytes"),
    pth_of_wide_products: (load_model, "a.pth", r"gamma_1"),
    pth_of_empty_tensors: (load_model, "a.pth", r"qkv.weight \[0, 200000000\] is empty"),
    pth_of_a_long_word: (load_with_heads, "a.pth", r"num_frames.*from 1 to 100,000.*got a"),
    pth_of_dictionaries_in_each_other: (load_model, "a.pth", r"holds no weights|no patch embedding"),
    pth_of_zero_bytes: (load_model, "a.pth", r"calls bytearray"),
    old_pth_of_zero_bytes: (load_model, "a.pth", r"calls bytearray"),
    pth_of_a_number_of_a_gigabyte: (load_model, "a.pth", r"a\.pth cannot be read"),
    pth_that_copies_one_number: (load_model, "a.pth", r"calls _rebuild_device_tensor_from_cpu_tensor"),
    ours_of_a_trillion: (load_encoder, "a.safetensors", r"more than 172,8\d\d,\d+,\d+ values"),
    ours_of_many_blocks: (load_model, "a.safetensors", r"5,000 blocks, expected 1,000"),
    ours_of_a_long_film: (load_model, "a.safetensors", r"6e\+06 tokens a clip, expected 262,144"),
    hf_of_large_pictures: (load_model, "folder", r"8e\+06 tokens a clip, expected 262,144"),
    hf_of_a_long_config: (load_model, "folder", r"config.json has 12,\d+,\d+ bytes, expected 8,000,000"),
    hf_of_many_classes: (load_model, "folder", r"class_head.weight \[20000000, 0\] is empty"),
    recipe_of_brackets: (read_recipe_beside, "folder", r"recipe.yaml is longer than 200,000"),
    run_with_a_long_list: (load_model, "folder", r"complete.json is longer than 8,000,000"),
}


def read_status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def read_and_measure(pipe, read, path):
    torch.set_num_threads(1)
    limit = read_status("VmSize") + ADDRESS_ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = read_status("VmHWM")
    try:
        answer = f"it was read: {type(read(path)).__name__}"
    except ValueError as error:
        answer = f"ValueError: {error}"
    except BaseException as error:
        answer = f"{type(error).__name__}: {str(error)[:300]}"
    pipe.send((answer, read_status("VmHWM") - before))
    pipe.close()


@pytest.mark.parametrize(
    ("make", "read", "name", "words"),
    [(make, *rest) for make, rest in BOMBS.items()],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bomb_is_refused_in_a_line_and_without_its_memory(tmp_path, make, read, name, words):
    path = tmp_path / name
    make(path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "mats_ds.models.weights.load", __name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=read_and_measure, args=(sender, read, path))
    process.start()
    sender.close()
    assert receiver.poll(ANSWER_SECONDS), "no answer"
    answer, grown = receiver.recv()
    process.join()
    assert answer.startswith("ValueError: ") and re.search(words, answer), answer[:500]
    assert len(answer) < 1000 and answer.count("\n") <= 1, answer[:2000]
    assert grown < LIMIT_BYTES, f"{grown / MEBIBYTE:.0f} MiB"


@pytest.mark.parametrize("make", [pth_of_zeros, npz_of_zeros])
def test_what_is_hardly_compressed_is_read_as_before(tmp_path, make):
    """Packed again by a zip program: floats do not shrink, and labels shrink little."""
    generator = torch.Generator().manual_seed(0)
    if make is npz_of_zeros:
        from mats_ds.evaluation.features.feature_store import Shard, write_shard

        arrays = {"features": torch.rand(20, 8, generator=generator).numpy(), "sample": np.arange(20)}
        write_shard(tmp_path / "a.npz", Shard(arrays, "s", ()))
        rezip(tmp_path / "a.npz", compression=zipfile.ZIP_DEFLATED)
        assert np.array_equal(read_shard(tmp_path / "a.npz").arrays["features"], arrays["features"])
        return
    from mats_ds.models.weights.file_content import unpickle

    torch.save({"a": torch.rand(100_000, generator=generator)}, tmp_path / "a.pth")
    rezip(tmp_path / "a.pth", compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.pth").stat().st_size < 380_000
    assert len(unpickle(tmp_path / "a.pth")["a"]) == 100_000


# what each takes, and what is said: python -m tests.security.test_bombs FOLDER
if __name__ == "__main__":
    for make, (_, name, _) in BOMBS.items():
        folder = Path(sys.argv[1]) / make.__name__
        folder.mkdir(parents=True)
        make(folder / name)
