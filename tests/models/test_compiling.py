"""The compiled blocks of a model, and its captured passes: how many graphs, the same numbers, the
same names.

Most tests let torch trace and differentiate the blocks without making code of them (`aot_eager`),
which takes seconds and computes the same to the bit; tests/models/test_compile.py makes the code.
"""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier
from mats_ds.models import compiling
from mats_ds.models.compiling import capture_passes, compile_blocks, why_not_captured, why_not_compiled

GRID = TokenGrid(num_frames=6, height=32, width=48, tubelet=(2, 8, 8))
FRAMES = torch.randint(0, 256, (2, 6, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SEEDS = torch.tensor([5, 6])
CPU = torch.device("cpu")


def make_pair(kind=MaskedAutoencoder, **options):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(kind.from_name("tiny", grid=GRID, **options).train())
    return models


def train(model, seed, frames=FRAMES):
    """The loss, and the gradient of every parameter."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss = model(frames, SEEDS).square().mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.fixture
def num_graphs():
    """`num_graphs()`: how many graphs torch has compiled since the test began."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    torch._functorch.config.aggressive_recomputation = False


def test_one_graph_serves_all_depths_and_nothing_is_compiled_after_the_first_step(num_graphs):
    """Encoder, decoder and the decoder's last block, which has fewer queries: whatever the seeds,
    and whatever is tested in between."""
    eager, compiled = make_pair(decoder_depth=3)
    compile_blocks(compiled, backend="aot_eager")
    for step in range(3):
        for one, other in zip(train(eager, step), train(compiled, step), strict=True):
            assert torch.equal(one, other)
        assert num_graphs() == 3
        compiled.eval()
        compiled.reconstruct(FRAMES[:1], SEEDS[:1])
        compiled.train()
        with torch.no_grad():
            compiled(FRAMES[:1], SEEDS[:1])
    assert num_graphs() == 3
    assert list(compiled.state_dict()) == list(eager.state_dict())


def test_paths_are_dropped_alike_and_checkpointing_lies_inside_what_is_compiled(num_graphs):
    """The blocks of one stack differ in their rate and in whether they are checkpointed: neither
    number is in the graphs."""
    eager, compiled = make_pair(VideoClassifier, num_classes=7, drop_path=0.6, checkpoint_blocks=2, recompute="mlp")
    compile_blocks(compiled, backend="aot_eager")
    for seed in range(2):
        for one, other in zip(train(eager, seed), train(compiled, seed), strict=True):
            assert torch.equal(one, other)
    assert num_graphs() == 3  # the first block drops nothing; the others, checkpointed or not
    assert not torch.equal(train(compiled, 0)[0], train(compiled, 1)[0]), "the seed decides which paths are dropped"


def test_other_fractions_of_the_tokens_are_tested_without_compiling(num_graphs):
    _, compiled = make_pair(VideoClassifier, num_classes=7)
    compile_blocks(compiled, backend="aot_eager")
    train(compiled, 0)
    before = num_graphs()
    compiled.eval()
    with torch.no_grad():
        for ratio in (0.3, 0.6, 1.0):
            compiled.with_keep_ratio(ratio)(FRAMES)
    assert num_graphs() == before == 1


def bytes_kept(model):
    """Kept for backward by one forward pass, parameters, buffers and the batch apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), FRAMES, SEEDS)}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # holding it keeps its address taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(FRAMES, SEEDS)
    del loss
    return sum(size for size, _ in kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("policy", [{}, {"recompute": "pointwise"}, {"recompute": "mlp"}, {"checkpoint_blocks": "all"}])
def test_compiled_blocks_keep_no_more_than_the_plan_counts_for_eager_ones(num_graphs, policy):
    """The backend divides forward and backward as the real one does, and makes no code."""
    eager, compiled = make_pair(**policy)
    compile_blocks(compiled, backend="aot_eager_decomp_partition")
    train(compiled, 0)
    # torch 2.11 keeps a sixth more of checkpointed blocks than torch 2.15, which keeps as much
    slack = 1.2 if "checkpoint_blocks" in policy else 1.0
    assert bytes_kept(compiled) <= slack * bytes_kept(eager)
    assert num_graphs() == 3
    for one, other in zip(train(eager, 0), train(compiled, 0), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device, variable, names", [("cpu", "CXX", ["g++"]), ("cuda", "CC", ["gcc", "clang"])])
def test_a_missing_compiler_is_named_with_its_cure(device, variable, names, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    monkeypatch.setattr(compiling, "get_paths", lambda: {"include": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    device = torch.device(device)
    why = why_not_compiled(device, zero_stage=2)
    assert all(name in why for name in (*names, variable, "apt-get install"))
    monkeypatch.setenv(variable, "/opt/own/compiler")
    assert why_not_compiled(device, zero_stage=2) is None
    monkeypatch.delenv(variable)
    (tmp_path / names[-1]).touch(mode=0o755)
    assert why_not_compiled(device, zero_stage=2) is None


def test_what_else_a_gpu_needs_is_named(monkeypatch, tmp_path):
    cuda = torch.device("cuda", 0)
    monkeypatch.setenv("CC", "/opt/own/compiler")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA TITAN Xp")
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    assert "pip install triton" in why_not_compiled(cuda, zero_stage=2)
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    assert "NVIDIA TITAN Xp" in why_not_compiled(cuda, zero_stage=2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(compiling, "get_paths", lambda: {"include": str(tmp_path)})
    assert "python3-dev" in why_not_compiled(cuda, zero_stage=2)
    assert "use stage 2" in why_not_compiled(cuda, zero_stage=3)
    assert "need a GPU" in why_not_captured(CPU, zero_stage=2)
    assert "the stage is 1" in why_not_captured(cuda, zero_stage=1)
    assert why_not_captured(cuda, zero_stage=2) is None


class Replayed(torch.autograd.Function):
    """What a captured module does, on a CPU: results and gradients lie in buffers that every replay
    overwrites (torch/cuda/graphs.py)."""

    @staticmethod
    def forward(ctx, graph, *inputs):
        ctx.graph = graph
        with torch.enable_grad():
            graph.fresh = graph.run(*inputs[:2])
        graph.result.copy_(graph.fresh.detach())
        return graph.result.detach()

    @staticmethod
    def backward(ctx, gradient):
        graph = ctx.graph
        parameters = list(graph.module.parameters())
        for buffer, fresh in zip(graph.gradients, torch.autograd.grad(graph.fresh, parameters, gradient), strict=True):
            buffer.copy_(fresh)
        return None, None, None, *(buffer.detach() for buffer in graph.gradients)


class Graph:
    def __init__(self, module, samples):
        self.module, self.run = module, module.forward
        self.result = module.forward(*samples).detach().clone()
        self.gradients = [torch.zeros_like(parameter) for parameter in module.parameters()]


def capture_on_cpu(module, samples):
    """Stands in for torch.cuda.make_graphed_callables, with its conditions on the module."""
    assert module.training and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    assert not any(buffer.requires_grad for buffer in module.buffers())
    graph = Graph(module, samples)
    module.forward = lambda *inputs: Replayed.apply(graph, *inputs, *module.parameters())
    return module


def no_gpu(patch):
    """Let `capture_passes` work on a CPU."""
    patch.setattr(torch.cuda, "make_graphed_callables", capture_on_cpu)
    patch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    patch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))


def test_captured_passes_keep_their_results_apart_and_let_tests_run_eagerly(monkeypatch):
    no_gpu(monkeypatch)
    eager, captured = make_pair(drop_path=0.3)
    captured.register_forward_hook(lambda *_: None)  # as DeepSpeed does
    torch.manual_seed(3)
    before = torch.get_rng_state()
    capture_passes(captured, micro_batch=2)
    assert torch.equal(torch.get_rng_state(), before), "the paths that are dropped do not depend on having captured"
    other_frames = FRAMES.flip(1)
    losses = [captured(frames, SEEDS).detach() for frames in (FRAMES, other_frames)]
    torch.manual_seed(3)
    assert torch.equal(torch.stack(losses), torch.stack([eager(frames, SEEDS).detach() for frames in (FRAMES, other_frames)]))
    for one, other in zip(train(eager, 1), train(captured, 1), strict=True):
        assert torch.equal(one, other)
    captured.eval(), eager.eval()
    with torch.no_grad():  # another number of clips
        assert torch.equal(captured(FRAMES[:1], SEEDS[:1]), eager(FRAMES[:1], SEEDS[:1]))
    assert list(captured.state_dict()) == list(eager.state_dict())
