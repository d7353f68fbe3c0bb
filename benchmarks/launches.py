"""How many kernels a training step launches: eager, with compiled blocks, and with captured passes.

    python benchmarks/launches.py [--model base]

On a machine without a GPU, launches are operators that compute (views and empty tensors do not):
those that torch dispatches, and in compiled blocks those that the generated code calls, which takes
minutes to make. With a GPU `benchmarks/gpu/step.py` counts the launches themselves. One rank with
ds_configs/zero2.json (bf16), one micro-batch; shapes are small, since they change no count, and
depths and parameters are the model's.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from mats_ds import MaskedAutoencoder, TokenGrid  # noqa: E402
from mats_ds.config.batch_plan import MICRO_BATCH_KEY, plan_batch  # noqa: E402
from mats_ds.config.ds_config import read_ds_config  # noqa: E402
from mats_ds.config.recipe import OptimSection  # noqa: E402
from mats_ds.distributed.ranks import start_distributed  # noqa: E402
from mats_ds.models.compiling import compile_blocks  # noqa: E402
from mats_ds.training.engine import make_engine  # noqa: E402
from mats_ds.training.optim import parameter_groups  # noqa: E402

GRID = TokenGrid(num_frames=4, height=32, width=48, tubelet=(2, 8, 8))
MICRO_BATCH = 2
# compute nothing on the device
FREE = re.compile(r"empty|detach|_local_scalar|is_pinned|record_|set_|resize|lift|_unsafe_view")
# calls of generated code that compute
CALLS = re.compile(r"^\s+(?:\S.* = )?(?:cpp_fused\w*|\w*_fused_\w+|extern_kernels\.\w+|torch\.ops\.\w+\.\w+\.\w+)\(")


# Of two replays: the batch (two tensors), the graph and the copy of its result; then the gradient
# of the result and the graph.
CAPTURED = (4, 2)


class CountLaunches(TorchDispatchMode):
    """`num` operators that compute were dispatched inside."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and not FREE.search(func.__name__):
            self.num += 1
        return func(*args, **(kwargs or {}))


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    shape = (MICRO_BATCH, GRID.num_frames, GRID.height, GRID.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8), torch.arange(MICRO_BATCH)


def make_model(model_name: str) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder.from_name(model_name, grid=GRID).train()


def count_step(model: MaskedAutoencoder) -> dict[str, int]:
    """Launches by phase of the second step under ZeRO-2; the hooks of ZeRO are in "backward"."""
    config = read_ds_config(Path(__file__).resolve().parents[1] / "ds_configs" / "zero2.json")
    plan = plan_batch({**config, MICRO_BATCH_KEY: MICRO_BATCH}, recipe_batch=MICRO_BATCH, world_size=1)
    engine = make_engine(model, parameter_groups(model, OptimSection()), config, plan)
    engine.train()
    counts = {}
    for _ in range(2):
        with CountLaunches() as forward:
            loss = engine(*make_batch())
        with CountLaunches() as backward:
            engine.backward(loss)
        with CountLaunches() as optimizer:
            engine.step()
        counts = {"forward": forward.num, "backward": backward.num, "optimizer": optimizer.num}
    return counts


def count_passes(model: MaskedAutoencoder) -> tuple[int, int]:
    """Launches of forward and backward without an engine."""
    with CountLaunches() as forward:
        loss = model(*make_batch())
    with CountLaunches() as backward:
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return forward.num, backward.num


def leave_out_block(block, tokens_BND, num_queries, branch_scales, keeps_input_only):
    """Stands in for `compute_block`: no operator but a view."""
    return tokens_BND if num_queries is None else tokens_BND[:, -num_queries:]


def count_generated(model: MaskedAutoencoder) -> list[int]:
    """Calls in the generated code of every graph of the blocks, in the order of making."""
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    codes: list[str] = []
    config.force_disable_caches = True
    GraphLowering.save_output_code = staticmethod(codes.append)
    compile_blocks(model)
    model(*make_batch()).backward()
    return [sum(bool(CALLS.match(line)) for line in code[code.index("def call(") :].splitlines()) for code in codes]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="base", help="size of the model (default: %(default)s)")
    options = parser.parse_args()
    start_distributed()
    model = make_model(options.model).to(torch.bfloat16)
    eager = count_passes(model)
    depths = [len(model.encoder.blocks), len(model.decoder.blocks) - 1, 1]
    model.encoder.compute_in_training = model.decoder.compute_in_training = leave_out_block
    rest = count_passes(model)
    step = count_step(make_model(options.model))
    hooks = step["backward"] - eager[1]
    print(f"parameters: {len(list(model.parameters()))}; outside of the blocks: {rest[0]} and {rest[1]}", flush=True)
    forward, backward = (codes := count_generated(make_model(options.model)))[:3], codes[:2:-1]
    print(f"calls of a block (encoder, decoder, its last): forward {forward}, backward {backward}")
    compiled = [
        own + sum(depth * calls for depth, calls in zip(depths, part, strict=True))
        for own, part in zip(rest, (forward, backward), strict=True)
    ]
    print(f"{'':12}{'forward':>9}{'backward':>9}{'ZeRO hooks':>12}{'optimizer':>11}{'in all':>8}{'of eager':>10}")
    whole = sum(eager) + hooks + step["optimizer"]
    for name, passes in (("eager", eager), ("compiled", compiled), ("captured", CAPTURED)):
        total = sum(passes) + hooks + step["optimizer"]
        print(f"{name:12}{passes[0]:9}{passes[1]:9}{hooks:12}{step['optimizer']:11}{total:8}{total / whole:10.0%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
