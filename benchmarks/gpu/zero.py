"""DeepSpeed's ZeRO-2 with the real engine: save and resume bit by bit, rank 0 of 8 on one device,
plan against measurement.

torch's fake process group makes one process rank 0 of 8: its real partition, buckets and optimizer
steps, with nobody to talk to. Each piece runs in a process of its own (`zero_piece.py`), since
DeepSpeed keeps state.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from benchmarks.gpu.cells import TITLES  # noqa: E402
from benchmarks.gpu.part import MISSED, NEEDS_GPU, OK, Part, begin_part  # noqa: E402

MIB, GIB = 2**20, 2**30
GOAL_PLAN = 0.05


def main() -> int:
    part = begin_part("zero")
    if absent := part.lacks("torch", "timm", "einops", "deepspeed", "pydantic", "yaml"):
        part.add_line("ZeRO-2", f"not measured without {', '.join(absent)}")
        return part.finish()
    check_resume(part)
    check_ranks(part)
    return part.finish()


def run_piece(part: Part, **question: object) -> list[dict]:
    """The answers of a process, as far as it came."""
    environment = {**os.environ, "DS_LOG_LEVEL": "ERROR"}
    if not part.on_gpu:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).with_name("zero_piece.py")), json.dumps({"device": part.device, **question})]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as piece:
        answers, lines = [], []
        for line in piece.stdout:
            if line.startswith("ANSWER "):
                answers.append(part.add(**question, **json.loads(line.removeprefix("ANSWER "))))
            else:
                print(line, end="", flush=True)
                lines.append(line.strip())
    if piece.returncode:
        last = next((line for line in reversed(lines) if line), "it printed nothing")
        answers.append(part.add(**question, error=f"status {piece.returncode}: {last[:160]}"))
    return answers


def check_resume(part: Part) -> None:
    """Six steps in one go, and three, a checkpoint, a new engine, three more: equal in every bit of
    losses and weights."""
    name = "save and resume"
    with tempfile.TemporaryDirectory() as folder:
        size = "small" if part.on_gpu else "tiny"
        answers = run_piece(part, piece="resume", size=size, folder=folder, batch=8 if part.on_gpu else 2)
    answer = answers[-1] if answers else {"error": "it printed nothing"}
    if "error" in answer:
        part.add_line(name, answer["error"], MISSED)
        return
    part.add_line(
        name,
        f"{TITLES[size]}: losses {'equal' if answer['losses_equal'] else 'differ'}, weights "
        f"{'equal' if answer['weights_equal'] else 'differ'} bit by bit, step {answer['step_seconds'] * 1e3:.0f} ms "
        f"(optimizer {answer['optimizer_share']:.0%})",
        OK if answer["losses_equal"] and answer["weights_equal"] else MISSED,
    )


def check_ranks(part: Part) -> None:
    """Memory of rank 0 of 8 in four cells, beside the plan's figure."""
    base, large = ("base", "large") if part.on_gpu else ("tiny", "tiny")
    cells = [
        {"task": "pretrain", "model_name": base},
        {"task": "pretrain", "model_name": large, "recompute": "mlp"},
        {"task": "finetune", "model_name": base},
        {"task": "finetune", "model_name": large, "checkpoint_blocks": "all"},
    ]
    cells = cells[:2] if part.quick else cells
    batch, seconds = (24, part.seconds_left() - 10) if part.on_gpu else (2, part.seconds_left() - 2)
    answers = run_piece(part, piece="ranks", cells=cells, batch=batch, world_size=8, seconds=seconds)
    measured = [answer for answer in answers if "name" in answer]
    for answer in answers:
        if "error" in answer:
            part.add_line("rank 0 of 8", answer["error"], MISSED)
    for answer in measured:
        report_rank(part, answer)
    if not part.on_gpu:
        same = sum(answer["static_equal"] for answer in measured)
        text = f"{same} of {len(measured)} engines hold the static bytes that are planned"
        part.add_line("rank 0 of 8", text, OK if same == len(measured) > 0 else MISSED)
        part.add_line("plan against peak", "allocator's peak", NEEDS_GPU)
        return
    off = {answer["name"]: answer["planned_bytes"] / answer["peak_bytes"] - 1 for answer in measured}
    if off:
        worst = max(off, key=lambda name: abs(off[name]))
        good = sum(abs(value) <= GOAL_PLAN for value in off.values())
        text = f"{good} of {len(off)} cells within 5%, the worst {off[worst]:+.1%} ({worst})"
        part.judge("plan against peak", text, holds=good == len(off))
        explain_nvml(part, measured[-1])


def report_rank(part: Part, answer: dict) -> None:
    if part.on_gpu:
        text = f"peak {answer['peak_bytes'] / GIB:.2f} GiB, planned {answer['planned_bytes'] / GIB:.2f}"
        part.add_line(f"rank 0 of 8, {answer['name']}", f"{text}, step {answer['step_seconds'] * 1e3:.0f} ms")


def explain_nvml(part: Part, answer: dict) -> None:
    """What of the memory that NVML shows is not torch's tensors."""
    if answer.get("nvml_bytes") is None:
        part.add_line("NVML's figure", "nvidia-ml-py is missing, or this driver does not count it")
        return
    context, reserved, allocated = (
        answer["context_bytes"],
        answer["reserved_bytes"],
        answer["peak_bytes"] + answer["before_bytes"],
    )
    rest = answer["nvml_bytes"] - context - reserved
    part.add_line(
        "NVML's figure",
        f"{answer['nvml_bytes'] / GIB:.2f} GiB = tensors {allocated / GIB:.2f} + torch's cache and fragments "
        f"{(reserved - allocated) / GIB:.2f} + CUDA context {context / GIB:.2f} + libraries {rest / GIB:.2f} ({answer['name']})",
    )


if __name__ == "__main__":
    raise SystemExit(main())
