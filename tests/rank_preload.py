"""Imported by the fork server of tests/ranks.py before the first rank: what DeepSpeed and torch do
late, and once a process.

Each rank inherits it. Without it a rank of one training step spends four fifths of its time on it:
it runs a compiler to learn which of DeepSpeed's operators could be built, imports setuptools for
that, and makes torch's table of traced functions.
"""

from pathlib import Path

import deepspeed
import torch

import deepspeed.runtime.zero.muon.muon_optimizer  # isort: skip
import mats_ds.training.run  # isort: skip  # what the programs import where their work begins
import mats_ds.visualization.render  # noqa: F401  # isort: skip

if not Path("/dev/nvidiactl").exists():  # it asks the GPUs, and CUDA does not outlive a fork
    deepspeed.ops.__compatible_ops__  # noqa: B018  # it looks when it is first read

torch.compiler.disable(lambda: None)()
