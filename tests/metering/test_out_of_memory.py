"""A module that runs out of memory in the middle of a run on the real loop and engine: what is left
for the report."""

from __future__ import annotations

import pytest
import torch

from mats_ds.core.run_dir import read_outcome, read_run
from mats_ds.metering.record_reader import read_records
from mats_ds.metering.recorder import Recorder
from mats_ds.models.mae import MaskedAutoencoder
from tests.training.test_fit import train

BUDGET_BYTES = 30 * 4 * 16 * 24 * 3  # of clips; the module below keeps all it has seen


class HoardingModel(MaskedAutoencoder):
    """Keeps every clip, and says what CUDA's allocator says when a small budget is used up. A CPU's
    allocator has none."""

    kept_bytes = 0

    def forward(self, frames_BTHWC, seed_B=None):
        self.kept_bytes += frames_BTHWC.nbytes
        if self.kept_bytes > BUDGET_BYTES:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB"
            )
        return super().forward(frames_BTHWC, seed_B)


def train_until_memory_runs_out(run_dir):
    train(model_class=HoardingModel, num_steps=6, log=Recorder(run_dir, torch.device("cpu")))


@pytest.mark.slow
def test_the_steps_before_it_are_kept_and_the_outcome_says_what_to_lower(ranks, tmp_path):
    [text] = ranks(train_until_memory_runs_out, 1, tmp_path, expect_errors=True)
    assert "CUDA out of memory" in text
    records = list(read_records(tmp_path))
    # 16 clips a step: the second one does not fit
    assert [record.step for record in records] == [1]
    assert records[0].clip_bytes == 2 * 4 * 16 * 24 * 3
    outcome = read_outcome(tmp_path)
    assert outcome.outcome.startswith("OutOfMemoryError: CUDA out of memory")
    # a CPU has no such allocator, so no snapshot of it
    assert (outcome.last_step, outcome.snapshot) == (1, "")
    assert outcome.advice.startswith("lower train_micro_batch_size_per_gpu in the DeepSpeed JSON (now 2, try 1")
    assert read_run(tmp_path).info.micro_batch == 2
