"""The model side by side with Hugging Face's VideoMAE, in one run: bytes kept for backward,
multiply-adds, step time.

    python benchmarks/model.py [--sizes small base] [--tasks pretrain finetune]
        [--threads 1 2] [--out benchmarks/results]

Pre-training: this project's masked autoencoder (156 visible tokens and 314 targets of 1568) against
VideoMAEForPreTraining with its published tube mask (160 visible, 1408 targets). Fine-tuning: 940
tokens kept against all 1568. Clips of 16 x 224 x 224; the same batch for all; forward and backward
of a batch; models take turns in every round, and what is shown is the best of the rounds and the
median over rounds of the ratio. On a CPU: float32; the time is CPU time with one thread, the
clock's with more (waiting threads spin); on a GPU (`--device cuda`): bfloat16 and the clock.
`--compile` adds rows of torch.compile. Peers that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import nn

from benchmarks.model_page import PEER, PLAIN, Row, judge, table_of
from mats_ds import MaskedAutoencoder, TokenGrid, step_flops
from mats_ds.core.storage.files import write_text
from mats_ds.models.classifier import VideoClassifier
from mats_ds.models.sizes import MODEL_SIZES, RECOMPUTE_LEVELS

GRID = TokenGrid()
NUM_CLASSES = 400
DEFAULT_BATCH = {"pretrain": 4, "finetune": 2}


class PeerPretraining(nn.Module):
    """VideoMAEForPreTraining with a tube mask of its own published ratio."""

    def __init__(self, name: str, batch: int) -> None:
        super().__init__()
        from transformers import VideoMAEConfig, VideoMAEForPreTraining

        size = MODEL_SIZES[name]
        config = VideoMAEConfig(
            **peer_sizes(name),
            decoder_hidden_size=size.decoder_width,
            decoder_num_attention_heads=size.decoder_heads,
            decoder_num_hidden_layers=size.decoder_depth,
            decoder_intermediate_size=4 * size.decoder_width,
            norm_pix_loss=True,
            use_mean_pooling=False,
        )
        self.model = VideoMAEForPreTraining(config)
        shown = GRID.tokens_per_tubelet - int(0.9 * GRID.tokens_per_tubelet)
        mask = torch.ones(GRID.tokens_per_tubelet, dtype=torch.bool)
        mask[torch.randperm(GRID.tokens_per_tubelet, generator=torch.Generator().manual_seed(0))[:shown]] = False
        self.register_buffer("mask_BN", mask.repeat(GRID.tau).expand(batch, -1))

    def forward(self, pixels_BTCHW: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels_BTCHW, bool_masked_pos=self.mask_BN).loss


class PeerClassification(nn.Module):
    """VideoMAEForVideoClassification on all tokens."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from transformers import VideoMAEConfig, VideoMAEForVideoClassification

        self.model = VideoMAEForVideoClassification(VideoMAEConfig(**peer_sizes(name), num_labels=NUM_CLASSES))

    def forward(self, pixels_BTCHW: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels_BTCHW).logits.float().square().mean()


class Classification(nn.Module):
    """This project's classifier with the same stand-in for a loss."""

    def __init__(self, name: str, **options: str) -> None:
        super().__init__()
        self.model = VideoClassifier.from_name(name, num_classes=NUM_CLASSES, **options)

    def forward(self, frames_BTHWC: torch.Tensor, seed_B: torch.Tensor) -> torch.Tensor:
        return self.model(frames_BTHWC, seed_B).float().square().mean()


def peer_sizes(name: str) -> dict[str, int]:
    size = MODEL_SIZES[name]
    return dict(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
    )


def build(task: str, name: str, **options: str) -> nn.Module:
    if task == "pretrain":
        return MaskedAutoencoder.from_name(name, **options)
    return Classification(name, **options)


def build_peer(task: str, name: str, batch: int) -> nn.Module:
    return PeerPretraining(name, batch) if task == "pretrain" else PeerClassification(name)


def kept_bytes(step: Callable[[], torch.Tensor], device: torch.device) -> int:
    """Bytes that are alive because of a forward pass until its backward pass, whoever holds
    them."""
    step().backward()  # gradients and lazily made constants are there from now on
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        loss = step()
        torch.cuda.synchronize()
        kept = torch.cuda.memory_allocated() - before
    else:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
            loss = step()
        kept = sum(event.self_cpu_memory_usage for event in events.key_averages())
    del loss
    return kept


def time_rounds(steps: dict[str, Callable[[], torch.Tensor]], *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of a step by name; all take turns in every round."""
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = clock()
            step().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seconds[name].append(clock() - begin)
    return seconds


def measure(task: str, name: str, arguments: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    """The rows of one task and size, and the fractions of a step that scoring and selection
    take."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch = arguments.batch or DEFAULT_BATCH[task]
    generator = torch.Generator().manual_seed(0)
    frames_BTHWC = torch.randint(0, 256, (batch, 16, 224, 224, 3), dtype=torch.uint8, generator=generator).to(device)
    pixels_BTCHW = torch.randn(batch, 16, 3, 224, 224, generator=generator).to(device, dtype)
    seed_B = torch.arange(batch, device=device)
    rows: dict[str, Row] = {}
    steps: dict[str, Callable[[], torch.Tensor]] = {}

    def add(title: str, model: nn.Module, flops: dict[str, str] | None, *inputs: torch.Tensor) -> None:
        rows[title], steps[title] = Row(title), lambda: model(*inputs)
        if flops is not None:
            ratios = (0.3, 0.1) if task == "pretrain" else (0.6,)
            count = step_flops(name, GRID, *ratios, task=task, num_classes=NUM_CLASSES, **flops)
            rows[title].forward_macs, rows[title].hardware_macs = count.forward_macs, count.hardware_macs
            rows[title].useful_macs = count.training_macs
        rows[title].kept_bytes = kept_bytes(steps[title], device) / batch

    if "transformers" not in missing_packages():
        add(PEER, build_peer(task, name, batch).to(device, dtype), None, pixels_BTCHW)
        rows[PEER].forward_macs = count_macs(steps[PEER]) // batch
        rows[PEER].hardware_macs = count_macs(lambda: steps[PEER]().backward()) // batch
    for level in RECOMPUTE_LEVELS:
        model = build(task, name, recompute=level).to(device, dtype)
        add(f"mats_ds, recompute {level}", model, {"recompute": level}, frames_BTHWC, seed_B)
    model = build(task, name, checkpoint_blocks="all").to(device, dtype)
    add("mats_ds, checkpoint_blocks all", model, {"checkpoint_blocks": "all"}, frames_BTHWC, seed_B)
    if arguments.compile:
        model = build(task, name, recompute="pointwise").to(device, dtype)
        model.forward = torch.compile(model.forward, fullgraph=True, dynamic=False)
        add("mats_ds, compiled", model, {}, frames_BTHWC, seed_B)

    chooser = build(task, name).to(device, dtype)
    chooser = chooser if task == "pretrain" else chooser.model
    extra = {
        "choose": lambda: chooser.choose(frames_BTHWC, seed_B).motion_BN.sum().requires_grad_(),
        "embed": lambda: embed_all(chooser, frames_BTHWC),
    }
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        seconds = time_rounds({**steps, **extra}, rounds=arguments.rounds, device=device)
        for title, row in rows.items():
            row.seconds[str(threads)] = [value / batch for value in seconds[title]]
        if threads == arguments.threads[0]:
            total = min(seconds[PLAIN])
            scoring = {
                "scoring and selection": min(seconds["choose"]) / total,
                "embedding for it": min(seconds["embed"]) / total,
            }
    gc.collect()
    return list(rows.values()), scoring


@torch.no_grad()
def embed_all(model: MaskedAutoencoder | VideoClassifier, frames_BTHWC: torch.Tensor) -> torch.Tensor:
    """The patch embedding of all tokens, which scoring needs, and nothing else."""
    from mats_ds.models.vit import split_patches

    with torch.no_grad():
        total = model.patch_embed(split_patches(frames_BTHWC, GRID)).sum()
    return total.detach().requires_grad_()


def count_macs(run: Callable[[], object]) -> int:
    """Multiply-adds of what `run` does, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops() // 2


def missing_packages() -> list[str]:
    """Which of the peers' packages are not installed."""
    missing = []
    for name in ("transformers",):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    return missing


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["small", "base"], choices=list(MODEL_SIZES))
    parser.add_argument("--tasks", nargs="+", default=["pretrain", "finetune"], choices=["pretrain", "finetune"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="CPU threads, one column each (default: 1 2)")
    parser.add_argument("--batch", type=int, help="clips a step (default: 4 in pre-training, 2 in fine-tuning)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after one that does not (default: 3)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="add a row of torch.compile (a minute of compiling each)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda, but torch finds no GPU here")
        arguments.threads = arguments.threads[:1]
    on_gpu = arguments.device == "cuda"
    device_name = torch.cuda.get_device_name() if on_gpu else platform.machine()
    stem = f"model-{device_name.lower().replace(' ', '-') if on_gpu else 'cpu'}-{time.strftime('%Y-%m-%d')}"
    missing = missing_packages()
    packages = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers") if name not in missing]
    flags = ["--rounds", str(arguments.rounds), "--threads", *map(str, arguments.threads), "--device", arguments.device]
    command_options = " ".join(flags + ["--compile"] * arguments.compile)
    batches = ", ".join(f"{arguments.batch or DEFAULT_BATCH[task]} in {task}" for task in arguments.tasks)
    lines = [
        f"# Model against Hugging Face's VideoMAE, {time.strftime('%Y-%m-%d')}",
        "",
        f"`python benchmarks/model.py {command_options}`; {device_name}, {'bfloat16' if on_gpu else 'float32'}, Python "
        f"{platform.python_version()}, {', '.join(packages)}. Best of {arguments.rounds} rounds in turn, ratios as medians over "
        f"them; clips a step: {batches}. The page is written by the program.",
    ]
    figures = {}
    for task in arguments.tasks:
        for name in arguments.sizes:
            rows, scoring = measure(task, name, arguments)
            figures[f"{task} {name}"] = {"rows": [asdict(row) for row in rows], "shares": scoring}
            title = "Pre-training" if task == "pretrain" else "Fine-tuning"
            verdicts = judge(task, name, rows, scoring, on_gpu=on_gpu)
            part = ["", f"## {title}, ViT-{name[0].upper()}", "", *table_of(rows, device_name), "", *verdicts]
            print("\n".join(part), flush=True)
            lines += part
    if missing:
        lines += ["", f"Left out: {', '.join(missing)} (not installed)."]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / f"{stem}.md", "\n".join([*lines, ""]))
    write_text(arguments.out / f"{stem}.json", json.dumps(figures, indent=1) + "\n")
    print(f"\nwritten: {arguments.out / stem}.md and .json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
