"""Weights of other people: read or refused, without running code, and without memory that the file
itself does not fill."""

import dataclasses
import json
import os
import pickle
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mats_ds import MaskedAutoencoder, TokenGrid
from mats_ds.evaluation.features.feature_store import load_features, read_shard
from mats_ds.models.model_spec import dump_spec
from mats_ds.models.weights.load import load_model, read_weights, weights_of
from mats_ds.models.weights.native import save_weights
from mats_ds.models.weights.origin import Origin, parse_origin
from tests.security.json_values import SCALARS, mutations, objects, values

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")
GRID = TokenGrid(num_frames=4, height=16, width=24, tubelet=(2, 8, 8))
SIZES = dict(width=12, depth=1, heads=3, decoder_width=6, decoder_depth=1, decoder_heads=1)
MODEL = MaskedAutoencoder(grid=GRID, keep_ratio=0.7, **SIZES)
SPEC = dump_spec(weights_of(MODEL, "a test").spec)
GRID_WORDS = ["num_frames", "height", "width", "tubelet"]
ORIGIN_WORDS = [field.name for field in dataclasses.fields(Origin)]
HUGE = st.sampled_from([0, -1, 1, 3, 10**6, 10**9, 2**62, 10**30, 1.5, "12", None, True, [], {}])
HEADER_WORDS = ["__metadata__", "dtype", "shape", "data_offsets", "format", "model", "patch_embed.proj.weight", "F32"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """One of our weight files."""
    return save_weights(tmp_path_factory.mktemp("weights") / "sound.safetensors", weights_of(MODEL, "").spec, MODEL.state_dict())


@st.composite
def edited_specs(draw):
    """The description of a model with some of its values replaced by others, mostly by absurd
    ones."""
    tree = json.loads(json.dumps(SPEC))
    for name in draw(st.lists(st.sampled_from(sorted(tree)), min_size=1, max_size=3)):
        if isinstance(tree[name], dict) and draw(st.booleans()):
            tree[name][draw(st.sampled_from(GRID_WORDS))] = draw(st.one_of(HUGE, st.lists(HUGE, min_size=3, max_size=3)))
        else:
            tree[name] = draw(st.one_of(HUGE, SCALARS, objects(GRID_WORDS)))
    return tree


def write_header(path, header: bytes, *, length: int | None = None, body: bytes = b"\0" * 64):
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


def load(path):
    return load_model(read_weights(path))


@given(
    header=objects(HEADER_WORDS).map(lambda tree: json.dumps(tree).encode()),
    length=st.sampled_from([None, 0, 7, 10**9, 2**63]),
)
@example(header=b"[" * 100_000, length=None)
@example(header=b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,64]}}', length=None)
def test_a_safetensors_header(tmp_path, read_or_refuse, header, length):
    path = write_header(tmp_path / "a.safetensors", header, length=length)
    assert read_or_refuse(load, path) is None
    assert load_features(path, key="k", needs_tokens=False) is None
    assert read_or_refuse(read_shard, path) is None


@given(data=st.data())
def test_a_damaged_weight_file(sound, tmp_path, read_or_refuse, data):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(data.draw(mutations(sound.read_bytes()[:4000])) + sound.read_bytes()[4000:])
    read_or_refuse(load, path)


@given(tree=st.one_of(edited_specs(), values(sorted(SPEC))))
@example(tree=SPEC | {"width": 10**6, "depth": 10**6})
@example(tree=SPEC | {"grid": SPEC["grid"] | {"num_frames": 2 * 10**9}})
@example(tree=SPEC | {"num_candidate_frames": 2 * 10**9})
@example(tree=SPEC | {"num_classes": 10**9, "kind": "classifier"})
@example(tree=SPEC | {"heads": 0})
@example(tree=SPEC | {"decoder_depth": 10**9})
def test_a_description_that_does_not_belong_to_the_weights(tmp_path, read_or_refuse, tree):
    path = tmp_path / "other.safetensors"
    metadata = {"format": "mats_ds", "format_version": "1", "model": json.dumps(tree), "note": ""}
    save_file(dict(MODEL.state_dict()), path, metadata=metadata)
    read_or_refuse(load, path)


@given(tree=st.one_of(objects([*ORIGIN_WORDS, "stride", "sampling", "clips", "crops"]), SCALARS, st.lists(SCALARS, max_size=2)))
@example(tree={"step": True})
@example(tree={"views": {"clips": "5"}})
@example(tree={"views": {"stride": 5}})
@example(tree={"clip": []})
@example(tree={"chosen_on": ["a"]})
def test_an_origin_of_any_content(read_or_refuse, tree):
    origin = read_or_refuse(parse_origin, tree)
    if origin is not None:
        assert isinstance(origin.describe(), str) and parse_origin(json.loads(json.dumps(origin.as_json()))) == origin
        assert all(type(number) is int for number in origin.views.values() if number is not None)


@pytest.mark.parametrize("others", [None, {}, {"format_version": "x"}, {"format_version": "1", "model": "["}])
def test_metadata_that_lacks_something(tmp_path, read_or_refuse, others):
    path = tmp_path / "a.safetensors"
    save_file(dict(MODEL.state_dict()), path, metadata={} if others is None else {"format": "mats_ds", **others})
    assert read_or_refuse(load, path) is None


class Evil:
    """Unpickled, it would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_runs_no_code(tmp_path, protocol):
    made = tmp_path / "made"
    torch.save({"model": {}, "args": Evil(made)}, tmp_path / "new.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Evil(made)}, protocol=protocol))
    torch.save({"model": Evil(made)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "plain.pth", "old.pth"):
        with pytest.raises(ValueError, match="would run code|cannot be read"):
            read_weights(tmp_path / name)
    assert not made.exists()


def test_neither_does_one_in_a_run_or_a_hugging_face_folder(tmp_path):
    from mats_ds.training.checkpoints.checkpoint import seal

    made = tmp_path / "made"
    step = tmp_path / "run" / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    torch.save({"module": {}, "step": 1, "recipe": Evil(made)}, step / "mp_rank_00_model_states.pt")
    seal(step, step=1, world_size=1)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "videomae"}')
    torch.save(Evil(made), folder / "pytorch_model.bin")
    for source in (tmp_path / "run", folder):
        with pytest.raises(ValueError, match="would run code"):
            load_model(source)
    assert not made.exists()


@pytest.mark.parametrize("is_zip", [True, False])
@given(data=st.data())
def test_a_damaged_pth(tmp_path, read_or_refuse, is_zip, data):
    path = tmp_path / "a.pth"
    torch.save({"model": {"encoder.norm.weight": torch.ones(3)}}, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    path.write_bytes(data.draw(mutations(whole)))
    assert read_or_refuse(load, path) is None


@given(content=st.one_of(values(["model", "module", "args", "mats_ds", "step", "recipe"]), st.binary(max_size=30)))
@example(content={"model": {"patch_embed.proj.weight": [1, 2]}})
@example(content={"model": {1: 2}})
@example(content={"args": 3, "model": {}})
def test_a_pth_of_something_else(tmp_path, read_or_refuse, content):
    torch.save(content, tmp_path / "a.pth")
    assert read_or_refuse(load, tmp_path / "a.pth") is None


def test_a_tensor_that_is_larger_than_its_bytes_is_refused(tmp_path):
    """Spread over one number: made contiguous, or converted, it would take 2 TiB."""
    torch.save({"model": {"patch_embed.proj.weight": torch.zeros(1, dtype=torch.half).expand(2**20, 2**20)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="larger than"):
        read_weights(tmp_path / "a.pth")


CONFIG_WORDS = ["model_type", "image_size", "patch_size", "num_frames", "tubelet_size", "hidden_size", "num_attention_heads"]
CONFIG_WORDS += ["decoder_num_attention_heads", "id2label", "layer_norm_eps", "use_mean_pooling", "mats_ds", "norm_pix_loss"]


@given(data=st.data())
def test_a_hugging_face_folder(tmp_path, read_or_refuse, data):
    from mats_ds.models.weights.hugging_face import write_hugging_face

    square = MaskedAutoencoder(grid=TokenGrid(4, 16, 16, (2, 8, 8)), keep_ratio=0.9, visible_ratio=0.3, **SIZES)
    folder = Path(tempfile.mkdtemp(dir=tmp_path))  # one that was changed is not written over
    write_hugging_face(folder, weights_of(square, ""))
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    for name in data.draw(st.lists(st.sampled_from(CONFIG_WORDS), min_size=1, max_size=3)):
        tree[name] = data.draw(st.one_of(HUGE, SCALARS, objects(CONFIG_WORDS)))
    path.write_text(data.draw(st.one_of(st.just(json.dumps(tree)), values(CONFIG_WORDS).map(json.dumps))))
    read_or_refuse(load, folder)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/hostname", "sub/a.safetensors", 3, "", "a\0.bin"])
def test_a_hugging_face_index_names_files_of_its_own_folder_only(tmp_path, name):
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "videomae", "num_attention_heads": 3}')
    save_file({"a": torch.ones(1)}, tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="names a file"):
        read_weights(folder)
