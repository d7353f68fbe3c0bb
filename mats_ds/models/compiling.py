"""Fewer and larger kernels: the transformer blocks compiled, and the passes of a micro-batch
captured as CUDA graphs.

`model.compile` is auto, true, false or graphs. A block is compiled once for every shape that it
meets in training (encoder, decoder, the decoder's last block), not once for every depth. What is
tested or drawn during training runs eagerly: its shapes may change.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_paths

import torch
import torch._dynamo.config
import torch._functorch.config
from torch import nn

from mats_ds.models.vit import Transformer, compute_block

# the variable and the programs that torch and Triton look for
COMPILERS = {"cpu": ("CXX", ("g++",)), "cuda": ("CC", ("gcc", "clang"))}
TRITON_CAPABILITY = (7, 0)  # of the oldest GPU that Triton compiles for
# In each of two stacks the blocks that drop paths, or are checkpointed, or both, or neither, and
# the last, with fewer queries; torch's own limit is 8, for all models of a process together.
MOST_GRAPHS = 64


def why_not_compiled(device: torch.device, *, zero_stage: int) -> str | None:
    """The reason that blocks cannot be compiled here, with what would mend it; None where they
    can."""
    if zero_stage == 3:
        return "ZeRO stage 3 gathers weights inside a block, which cannot be compiled: use stage 2"
    if device.type == "cuda":
        if find_spec("triton") is None:
            return "triton is not installed: pip install triton"
        if torch.cuda.get_device_capability(device) < TRITON_CAPABILITY:
            return f"{torch.cuda.get_device_name(device)} is older than what Triton compiles for (compute capability 7.0)"
        if not Path(get_paths()["include"], "Python.h").exists():
            return "Python's header files are missing: install them (on Debian or Ubuntu: sudo apt-get install python3-dev)"
    variable, names = COMPILERS["cuda" if device.type == "cuda" else "cpu"]
    if not (os.environ.get(variable) or any(map(shutil.which, names))):
        package = "gcc" if device.type == "cuda" else "g++"
        return (
            f"{' or '.join(names)} is not on the PATH: install it (on Debian or Ubuntu: sudo apt-get install {package}), or name "
            f"a compiler with {variable}"
        )
    return None


def why_not_captured(device: torch.device, *, zero_stage: int) -> str | None:
    """The reason that passes cannot be captured as CUDA graphs here; None where they can (see
    `capture_passes`)."""
    if device.type != "cuda":
        return "CUDA graphs need a GPU"
    if zero_stage != 2:
        return f"CUDA graphs go with ZeRO stage 2 alone, and the stage is {zero_stage}"
    return None


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> None:
    """Let torch compile the blocks of `model` in place, when the first batch of training comes. The
    names in its state dict stay as they are.

    Left alone, the compiler keeps what eager blocks keep at `recompute` "none". At the other levels
    it is told to compute again whatever is no matrix product, and then keeps less than they do.
    """
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(torch._dynamo.config, limit, max(MOST_GRAPHS, getattr(torch._dynamo.config, limit)))
    stacks = [module for module in model.modules() if isinstance(module, Transformer)]
    torch._functorch.config.aggressive_recomputation = any(stack.recompute != "none" for stack in stacks)
    compiled = torch.compile(compute_block, fullgraph=True, dynamic=False, backend=backend)
    for stack in stacks:
        stack.compute_in_training = compiled


def capture_passes(model: nn.Module, *, micro_batch: int) -> None:
    """Capture forward and backward of a micro-batch of `model`, a MaskedAutoencoder or
    VideoClassifier on a GPU, as two CUDA graphs, which its later calls in training replay.

    Before loading starts: no other thread may use the GPU meanwhile. After DeepSpeed has made its
    engine and loaded a checkpoint: graphs know weights by their address, which stays from then on.
    Gradients reach the hooks of ZeRO stage 2, which copies them away before the next replay; a
    stage that leaves them in `.grad` would add a buffer to itself.
    """
    device, grid = model.positions_ND.device, model.candidate_grid
    shape = (micro_batch, grid.num_frames, grid.height, grid.width, 3)
    samples = torch.zeros(shape, dtype=torch.uint8, device=device), torch.zeros(micro_batch, dtype=torch.int64, device=device)
    was_training = model.training
    whole = _WithoutHooks(model).train()
    state = torch.cuda.get_rng_state(device)
    torch.cuda.make_graphed_callables(whole, samples)
    torch.cuda.set_rng_state(state, device)
    model.train(was_training)
    eager = model.forward

    def forward(frames_BTHWC: torch.Tensor, seed_B: torch.Tensor | None = None) -> torch.Tensor:
        if seed_B is None or not (model.training and torch.is_grad_enabled() and frames_BTHWC.shape == shape):
            return eager(frames_BTHWC, seed_B)
        # a copy: the next replay writes where this one's result is
        return whole.forward(frames_BTHWC, seed_B).clone()

    model.forward = forward


class _WithoutHooks(nn.Module):
    """The model's forward pass alone: torch captures no module that has hooks, and DeepSpeed's are
    on the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor) -> torch.Tensor:
        return type(self.model).forward(self.model, frames_BTHWC, seed_B)
