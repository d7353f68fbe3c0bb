"""Model and main job on an NVIDIA GPU: what the CPU cannot show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, select_frames, select_tokens

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]
GRID = TokenGrid(num_frames=8, height=64, width=96, tubelet=(2, 16, 16))  # 4 x 24 = 96 tokens
KEYS = torch.tensor([3, 4, 5])


def make_model(**options):
    torch.manual_seed(0)
    return MaskedAutoencoder.from_name("tiny", grid=GRID, **options)


def random_frames(batch=3, grid=GRID):
    shape = (batch, grid.num_frames, grid.height, grid.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("strategy", ["mats", "random_drop", "tube", "random", "running_cell"])
def test_the_same_key_picks_the_same_tokens_on_both_devices(strategy):
    motion = torch.rand(3, 96, generator=torch.Generator().manual_seed(1))
    here = select_tokens(motion, strategy=strategy, grid=GRID, seed_B=KEYS)
    there = select_tokens(motion.cuda(), strategy=strategy, grid=GRID, seed_B=KEYS.cuda())
    assert torch.equal(here.visible_BV, there.visible_BV.cpu())
    assert torch.equal(here.target_BM, there.target_BM.cpu())


def test_the_same_key_draws_the_same_tubelets_on_both_devices():
    motion = torch.rand(3, 96, generator=torch.Generator().manual_seed(1))
    here = select_frames(motion, GRID, num_tubelets=2, seed_B=KEYS)
    assert torch.equal(here, select_frames(motion.cuda(), GRID, num_tubelets=2, seed_B=KEYS.cuda()).cpu())


def test_float32_loss_and_gradients_agree_with_the_cpu():
    # random_drop: with mats, two nearly equal scores may rank differently after another order of
    # summation
    here, there = make_model(strategy="random_drop"), make_model(strategy="random_drop").cuda()
    frames = random_frames()
    loss, gpu_loss = here(frames, KEYS), there(frames.cuda(), KEYS.cuda())
    loss.backward()
    gpu_loss.backward()
    torch.testing.assert_close(gpu_loss.cpu(), loss, rtol=1e-3, atol=1e-4)
    for (name, one), other in zip(here.named_parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(
            other.grad.cpu(), one.grad, rtol=2e-2, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_bf16_forward_and_backward_take_flash_attention_and_never_wait_for_the_device():
    model = make_model(checkpoint_blocks="all").cuda().to(torch.bfloat16)
    frames, keys = random_frames().cuda(), KEYS.cuda()
    model(frames, keys).backward()  # libraries initialise themselves in the first call
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            loss = model(frames, keys)
            loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


class SyncDebug:
    """Makes every wait of the host an error from the end of the second step to that of the last
    but one."""

    def on_start(self, run):
        self.last = run.total_steps - 1

    def on_step(self, event):
        if event.step == 2:
            torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if 2 <= event.step < self.last else "default")

    def on_end(self, outcome):
        torch.cuda.set_sync_debug_mode("default")


def train_without_waiting(*options):
    from tests.training.test_host_waits import make_fit

    train, recorder = make_fit(*options, SyncDebug())
    train()
    return recorder.latest.step, recorder.latest.loss


@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_a_whole_step_of_the_engine_and_its_observers_never_waits(ranks, tmp_path, task):
    """Beside the CPU's count in tests/training/test_host_waits.py. (Waiting for the event of the
    step before is none to CUDA's debug mode.)"""
    from tests.training.test_host_waits import FINETUNING, NOT_OVERLAPPED, NUM_STEPS

    pytest.importorskip("deepspeed")
    pruning = FINETUNING if task == "finetune" else {}
    [(step, loss)] = ranks(train_without_waiting, 1, tmp_path, task, "zero2", NOT_OVERLAPPED, pruning, "none")
    assert step == NUM_STEPS and loss > 0


def test_the_guard_leaves_a_step_out_inside_adamws_kernel():
    from mats_ds.training.optim import StepGuard

    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    norms = iter(torch.tensor([1.0, float("nan"), float("inf"), 1.0], device="cuda"))
    guard = StepGuard(optimizer, lambda: next(norms))
    seen = []
    for step in range(4):
        weight.grad = torch.full_like(weight, float("nan") if step in (1, 2) else 1.0)
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen.append((weight.detach().clone().cpu(), guard.left_out.item()))
    assert [left_out for _, left_out in seen] == [0, 1, 1, 0]
    assert seen[0][0].equal(seen[2][0]) and seen[3][0].isfinite().all() and not seen[3][0].equal(seen[2][0])
    assert optimizer.state[weight]["step"] == 2


def test_dropped_tokens_take_no_memory_for_backward():
    def peak_bytes(grid):
        model = MaskedAutoencoder.from_name(
            "tiny", grid=grid, keep_ratio=0.4 / grid.tau, visible_ratio=0.1 / grid.tau, strategy="random_drop"
        ).cuda()
        frames, keys = random_frames(8, grid).cuda(), torch.arange(8).cuda()
        model(frames, keys).backward()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(frames, keys).backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    assert peak_bytes(GRID.with_tau(16)) < 1.5 * peak_bytes(GRID.with_tau(4)) + (8 << 20)


def test_the_main_job_on_one_gpu_decodes_trains_records_and_passes(tmp_path):
    pytest.importorskip("deepspeed")
    pytest.importorskip("nvidia.dali")
    overrides = ["run.max_steps=6", "model.name=small", "clip.height=128", "clip.width=128"]
    command = [sys.executable, ROOT / "mats_ds" / "pretrain.py", "--recipe", "default", "--ds_config"]
    run_dir = tmp_path / "run"
    done = subprocess.run(
        [*command, ROOT / "ds_configs" / "zero2.json", "--out", run_dir, *overrides],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (run_dir / "records" / "rank-00000.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 7))
    assert all(record["peak_reserved_bytes"] >= record["peak_allocated_bytes"] > 0 for record in records)
    assert all(record["nvml_used_bytes"] >= record["reserved_bytes"] for record in records if record["nvml_used_bytes"])
    report = subprocess.run([sys.executable, ROOT / "profiling" / "report.py", run_dir], capture_output=True, text=True)
    assert report.returncode == 0 and "GPU" in report.stdout, report.stdout
