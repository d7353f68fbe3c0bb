"""Checkpoints of VideoMAE's relatives give the outputs that their own model gives, which is written
out here a second time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mats_ds import TokenGrid, VideoClassifier, load_classifier, load_model
from mats_ds.models.weights.load import read_weights
from tests.models.weights.conftest import GRID, SIZES, clips, outputs, shake, videomae_names

CLIP = {"num_frames": 6, "height": 16, "width": 24}
HEADS, EPS = 3, 1e-6
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def table(num_tokens, width):
    """VideoMAE's positions, by its paper's formula."""
    rows = [[position / 10000 ** (2 * (channel // 2) / width) for channel in range(width)] for position in range(num_tokens)]
    angle = torch.tensor(rows, dtype=torch.float64)
    angle[:, 0::2], angle[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return angle.float()[None]


def reference(state, frames_BTHWC):
    """Logits of a fine-tuned model, with whatever a relative may have: a full qkv.bias, layer
    scale, positions of its own."""
    kernel = state["patch_embed.proj.weight"]
    pixels = ((frames_BTHWC / 255 - MEAN) / STD).permute(0, 4, 1, 2, 3)
    x = F.conv3d(pixels, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    width = x.shape[-1]
    x = x + state.get("pos_embed", table(x.shape[1], width))
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for block in range(depth):
        own = {
            name.removeprefix(f"blocks.{block}."): tensor for name, tensor in state.items() if name.startswith(f"blocks.{block}.")
        }
        zero = torch.zeros(width)
        bias = own.get("attn.qkv.bias", torch.cat([own.get("attn.q_bias", zero), zero, own.get("attn.v_bias", zero)]))
        y = F.layer_norm(x, (width,), own["norm1.weight"], own["norm1.bias"], EPS)
        q, k, v = F.linear(y, own["attn.qkv.weight"], bias).unflatten(-1, (3, HEADS, width // HEADS)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * (width // HEADS) ** -0.5
        y = F.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), own["attn.proj.weight"], own["attn.proj.bias"])
        x = x + own.get("gamma_1", 1.0) * y
        y = F.layer_norm(x, (width,), own["norm2.weight"], own["norm2.bias"], EPS)
        y = F.linear(F.gelu(F.linear(y, own["mlp.fc1.weight"], own["mlp.fc1.bias"])), own["mlp.fc2.weight"], own["mlp.fc2.bias"])
        x = x + own.get("gamma_2", 1.0) * y
    x = F.layer_norm(x.mean(1), (width,), state["fc_norm.weight"], state["fc_norm.bias"], EPS)
    return F.linear(x, state["head.weight"], state["head.bias"])


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def full_bias(state):
    """qkv.bias in the place of q_bias and v_bias, with a part for the keys that is anything but
    zero."""
    for block in range(SIZES["depth"]):
        stem = f"blocks.{block}.attn."
        parts = [state.pop(f"{stem}q_bias"), random(24, seed=block), state.pop(f"{stem}v_bias")]
        state[f"{stem}qkv.bias"] = torch.cat(parts)
    return state


def no_bias(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith(("q_bias", "v_bias"))}


def layer_scale(state):
    scales = {f"blocks.{block}.gamma_{layer}": random(24, seed=10 * block + layer) for block in range(2) for layer in (1, 2)}
    return state | scales


def positions(state):
    return state | {"pos_embed": table(GRID.num_tokens, 24)}


def counters(state):
    return state | {"total_ops": torch.zeros(1), "blocks.0.total_params": torch.zeros(1)}


MODELS = [full_bias, no_bias, layer_scale, positions, counters]


@pytest.fixture
def state(classifier):
    return {name: tensor.clone() for name, tensor in videomae_names(classifier).items()}


def logits(path, **hints):
    with torch.no_grad():
        return load_model(read_weights(path, **(hints or {**CLIP, "heads": 3})), keep_ratio=1.0)(clips())


def assert_equal(found, expected):
    assert float((found - expected).abs().max()) < 1e-5 < float(expected.abs().max())


@pytest.mark.parametrize("change", MODELS, ids=lambda change: change.__name__)
def test_what_videomae_has_not_is_folded_into_what_it_has(tmp_path, state, change):
    theirs = change(dict(state))
    torch.save({"model": theirs}, tmp_path / "c.pth")
    expected = reference(theirs, clips())
    assert_equal(logits(tmp_path / "c.pth"), expected)
    # these change outputs: the reference does not agree by chance
    if change in (no_bias, layer_scale):
        assert float((expected - reference(state, clips())).abs().max()) > 1e-3


def test_the_bias_of_keys_is_noted_as_left_out(tmp_path, state):
    torch.save(full_bias(state), tmp_path / "c.pth")
    assert any("keys are left out in 2 blocks" in note for note in read_weights(tmp_path / "c.pth", **CLIP, heads=3).notes)


@pytest.mark.parametrize(
    "keys", [["state_dict"], ["model_state_dict"], ["model_ema"], ["teacher"], ["target_encoder"], ["state_dict", "model"]]
)
@pytest.mark.parametrize("prefix", ["", "model.", "module.model.", "model.backbone.", "vision_encoder.", "net.encoder_q."])
def test_weights_are_found_wherever_they_lie(tmp_path, state, keys, prefix):
    content = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    for key in reversed(keys):
        content = {"net": {"name": "vit"}, key: content, "epoch": 3}
    torch.save(content, tmp_path / "c.pth")
    assert_equal(logits(tmp_path / "c.pth"), reference(state, clips()))


def test_the_choice_among_several_is_noted(tmp_path, state):
    other = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": other}, tmp_path / "c.pth")
    assert_equal(logits(tmp_path / "c.pth"), reference(state, clips()))
    assert any(
        "'model' are read" in note and "'model_ema'" in note for note in read_weights(tmp_path / "c.pth", **CLIP, heads=3).notes
    )
    both = {f"student.{name}": tensor for name, tensor in other.items()} | {
        f"teacher.{name}": tensor for name, tensor in state.items()
    }
    torch.save(both | {"text_encoder.layer": torch.zeros(2)}, tmp_path / "c.pth")
    assert_equal(logits(tmp_path / "c.pth"), reference(state, clips()))
    assert any("left out: student, text_encoder" in note for note in read_weights(tmp_path / "c.pth", **CLIP, heads=3).notes)


def test_a_description_is_no_dictionary_of_weights(tmp_path, state):
    torch.save({"model": {"name": "vit", "depth": 2}, "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "c.pth")
    assert_equal(logits(tmp_path / "c.pth"), reference(state, clips()))


def test_mmaction2s_names(tmp_path, state):
    names = {".mlp.fc1.": ".mlp.layers.0.0.", ".mlp.fc2.": ".mlp.layers.1.", "patch_embed.proj": "patch_embed.projection"}
    theirs = {}
    for name, tensor in state.items():
        for ours, other in names.items():
            name = name.replace(ours, other)
        theirs[f"cls_head.fc_cls{name.removeprefix('head')}" if name.startswith("head.") else f"backbone.{name}"] = tensor
    torch.save({"meta": {"epoch": 1}, "state_dict": theirs}, tmp_path / "c.pth")
    assert_equal(logits(tmp_path / "c.pth"), reference(state, clips()))


def test_separate_projections(tmp_path, state):
    theirs = dict(state)
    for block in range(2):
        stem = f"blocks.{block}.attn."
        biases = [theirs.pop(f"{stem}q_bias"), torch.zeros(24), theirs.pop(f"{stem}v_bias")]
        for part, weight, bias in zip("qkv", theirs.pop(f"{stem}qkv.weight").chunk(3), biases, strict=True):
            theirs |= {f"{stem}{part}.weight": weight.clone(), f"{stem}{part}.bias": bias.clone()}
    torch.save(theirs, tmp_path / "c.pth")
    assert_equal(logits(tmp_path / "c.pth"), reference(state, clips()))


def test_a_pretraining_checkpoint_with_everything_at_once(tmp_path, autoencoder):
    state = {name: tensor.clone() for name, tensor in videomae_names(autoencoder).items()}
    for stack, width, depth in (("encoder", 24, 2), ("decoder", 12, 2)):
        for block in range(depth):
            stem = f"{stack}.blocks.{block}.attn."
            state[f"{stem}qkv.bias"] = torch.cat([state.pop(f"{stem}q_bias"), random(width, seed=7), state.pop(f"{stem}v_bias")])
    state |= {"encoder.pos_embed": table(GRID.num_tokens, 24), "pos_embed": table(GRID.num_tokens, 12)}
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, tmp_path / "c.pth")
    weights = read_weights(tmp_path / "c.pth", **CLIP, heads=3, decoder_heads=2)
    loaded = load_model(weights, strategy="mats", keep_ratio=0.7, visible_ratio=0.3)
    torch.testing.assert_close(outputs(loaded), outputs(autoencoder), rtol=1e-5, atol=1e-6)


def test_unmasked_teachers_encoder(tmp_path):
    """Tubelets of one frame, a table of 8 frames, heads for CLIP's features, and no decoder."""
    grid = TokenGrid(8, 224, 224, (1, 16, 16))
    model = shake(VideoClassifier(grid=grid, **SIZES, num_classes=4, keep_ratio=1.0))
    state = {
        f"encoder.{name}": tensor for name, tensor in videomae_names(model).items() if not name.startswith(("head", "fc_norm"))
    }
    state |= {f"clip_decoder.{layer}.head.weight": torch.zeros(5, 24) for layer in range(3)}
    state |= {"encoder.norm.weight": torch.ones(24), "encoder.norm.bias": torch.zeros(24)}
    torch.save({"model": state}, tmp_path / "c.pth")
    weights = read_weights(tmp_path / "c.pth", heads=3)
    assert weights.spec.kind == "encoder" and weights.spec.grid == grid
    assert any("3 tensors left out: heads that predict CLIP" in note for note in weights.notes)
    started = load_classifier(weights, num_classes=4, keep_ratio=1.0)
    assert torch.equal(started.model.encoder.blocks[1].mlp.fc2.weight, model.encoder.blocks[1].mlp.fc2.weight)
    assert torch.equal(started.model.patch_embed.proj.weight, model.patch_embed.proj.weight)


def test_videomae_v2s_distilled_file(tmp_path):
    """Under `module`, in half precision, with a head of 710 classes and a published width."""
    model = shake(VideoClassifier.from_name("small", grid=TokenGrid(4, 32, 32), num_classes=710, keep_ratio=1.0)).half()
    state = videomae_names(model)
    torch.save({"module": state}, tmp_path / "vit_s_k710_dl_from_giant.pth")
    weights = read_weights(tmp_path / "vit_s_k710_dl_from_giant.pth", num_frames=4, height=32, width=32)
    assert (weights.spec.size_name, weights.spec.num_classes, weights.spec.heads) == ("small", 710, 6)
    save_file({f"model.{name}": tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    again = read_weights(tmp_path / "model.safetensors", num_frames=4, height=32, width=32)
    assert all(torch.equal(again.state[name], tensor) for name, tensor in weights.state.items())
    (tmp_path / "config.json").write_text('{"model_type": "VideoMAEv2_Small"}')
    with pytest.raises(ValueError, match=r"VideoMAEv2_Small.*give .*model\.safetensors"):
        read_weights(tmp_path)


def test_a_saved_table_tells_the_clip(tmp_path):
    model = shake(VideoClassifier(grid=TokenGrid(8, 64, 64, (2, 16, 16)), **SIZES, num_classes=4))
    state = videomae_names(model)
    for rows, hints, expected in [
        (8 * 196, {}, (16, 224, 224)),
        (4 * 196, {}, (8, 224, 224)),
        (8 * 400, {"num_frames": 16}, (16, 320, 320)),
        (4 * 16, {"height": 64, "width": 64}, (8, 64, 64)),
    ]:
        torch.save(state | {"pos_embed": table(rows, 24)}, tmp_path / "c.pth")
        grid = read_weights(tmp_path / "c.pth", heads=3, **hints).spec.grid
        assert (grid.num_frames, grid.height, grid.width) == expected
    torch.save(state | {"pos_embed": table(77, 24)}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="77 positions.*1,568 tokens.*convert .*c.pth .*--num_frames"):
        read_weights(tmp_path / "c.pth", heads=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_table_in_half_precision_is_the_table(tmp_path, state, dtype):
    torch.save(state | {"pos_embed": table(GRID.num_tokens, 24).to(dtype)}, tmp_path / "c.pth")
    assert_equal(logits(tmp_path / "c.pth"), reference(state, clips()))


@pytest.mark.parametrize(
    "extra, reason",
    [
        ({"cls_token": torch.zeros(1, 1, 24)}, "a class token"),
        ({"pos_embed": table(18, 24) + 0.01}, r"differ from VideoMAE's sine-cosine table by up to 0\.01"),
        ({"pos_embed_spatial": torch.zeros(1, 6, 24), "pos_embed_temporal": torch.zeros(1, 3, 24)}, "space and time apart"),
        ({"blocks.0.attn.relative_position_bias_table": torch.zeros(7, 3)}, "relative position biases"),
        ({"blocks.0.attn.q_norm.weight": torch.ones(8)}, "normalised queries"),
        ({"blocks.0.mlp.w12.weight": torch.ones(8)}, "SwiGLU"),
        ({"patch_embed.proj.weight": torch.ones(24, 3, 8, 8)}, "image model"),
    ],
)
def test_what_ours_cannot_be_is_refused_by_name(tmp_path, state, extra, reason):
    torch.save(state | extra, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=reason):
        read_weights(tmp_path / "c.pth", **CLIP, heads=3)


def test_rms_norm_is_refused(tmp_path, state):
    torch.save({name: tensor for name, tensor in state.items() if not name.endswith("norm1.bias")}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="RMSNorm"):
        read_weights(tmp_path / "c.pth", **CLIP, heads=3)


def test_a_table_that_is_spread_over_one_number_fills_no_memory(tmp_path, state):
    torch.save(state | {"pos_embed": torch.zeros(1).expand(1, 10**9, 24)}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="larger than what is stored"):
        read_weights(tmp_path / "c.pth", **CLIP, heads=3)
