"""Finds where a training step makes the host wait for the device, on a machine without one.

Every tensor of the thread that trains counts as one of the device. What would wait for it is
counted: a value read by Python, a result whose size depends on values, a copy from the host that is
not one from pinned memory, DeepSpeed's `synchronize`, and an event or a number of a step that is
still running.
"""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mats_ds.core import events

HERE = Path(__file__)
# of the dispatcher: what reads values, or has a size that depends on them
OPERATORS = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "argwhere", "masked_select", "unique_consecutive", "unique_dim",
        "_unique2", "bincount", "histc", "repeat_interleave", "_pin_memory",
    )
}  # fmt: skip
# of Python: what the dispatcher does not see on a CPU
METHODS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__contains__}
MAKERS = {torch.tensor, torch.as_tensor, torch.asarray}
MOVERS = {torch.Tensor.to, torch.Tensor.cuda}
# On CUDA it leaves the check of its values to the kernel (aten/src/ATen/native/Onehot.cpp).
UNCHECKED = {torch.nn.functional.one_hot}


@dataclass
class HostWaits:
    """`found`: (steps done, what, where) of every wait. `late`: steps done when the numbers of an
    earlier step were read."""

    found: list[tuple[int, str, str]] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    num_operators: dict[int, int] = field(default_factory=dict)
    done: int = 0
    paused: int = 0

    def note(self, what: str) -> None:
        if self.paused:
            return
        frames = [frame for frame in traceback.extract_stack() if frame.filename != str(HERE)]
        ours = [frame for frame in frames if "/torch/" not in frame.filename]
        self.found.append((self.done, what, f"{ours[-1].filename}:{ours[-1].lineno}"))

    def between(self, first: int, last: int) -> list[tuple[str, str]]:
        """The waits after `first` steps were done and before `last` were."""
        return [(what, where) for done, what, where in self.found if first <= done < last]

    def replace_device(self) -> None:
        """Put something to count with in place of CUDA's events and DeepSpeed's accelerator, for
        the rest of this process."""
        from deepspeed.accelerator import get_accelerator

        from mats_ds.training import loop

        accelerator, stream = get_accelerator(), Stream()
        accelerator.synchronize = lambda *_: self.note("synchronize")
        # as CUDA: streams have to wait for each other
        accelerator.resolves_data_dependency = accelerator.is_synchronized_device = lambda: False
        for name in ("current_stream", "default_stream"):
            setattr(accelerator, name, lambda *_: stream)
        type(accelerator).Stream = Stream
        type(accelerator).Event = torch.cuda.Event = lambda *_, **__: Event(self, self.done)
        torch.from_numpy, torch.Tensor.record_stream = _from_numpy, lambda *_: None
        loop.StepNumbers = lambda numbers_X: Numbers(self, numbers_X)

    @contextlib.contextmanager
    def watch(self):
        """Count in this thread."""
        with _Functions(self), _Operators(self):
            yield self


class Stream:
    """A CUDA stream, on which nothing is ever late."""

    def wait_stream(self, other: Stream) -> None:
        """The device's matter."""

    def wait_event(self, event: Event) -> None:
        """The device's matter."""


@dataclass
class Event:
    """A CUDA event that has come when the step after it is running."""

    waits: HostWaits
    step: int

    def record(self, stream: Stream | None = None) -> None:
        self.step = self.waits.done

    def synchronize(self) -> None:
        if self.step == self.waits.done:
            self.waits.note("event of the running step")

    def elapsed_time(self, other: Event) -> float:
        return 1.0


class Numbers(events.StepNumbers):
    """The numbers of a step, which have come when the next one's are on their way."""

    def __init__(self, waits: HostWaits, numbers_X: torch.Tensor) -> None:
        super().__init__(numbers_X)
        waits.done += 1
        self.waits, self.step = waits, waits.done

    def read(self) -> list[float]:
        if self.step == self.waits.done:
            self.waits.note("numbers of the running step")
        else:
            self.waits.late.append(self.waits.done)
        with _pause(self.waits):
            return super().read()


@contextlib.contextmanager
def _pause(waits: HostWaits):
    waits.paused += 1
    try:
        yield
    finally:
        waits.paused -= 1


class _Operators(TorchDispatchMode):
    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits, kwargs = self.waits, kwargs or {}
        name = func._schema.name
        waits.num_operators[waits.done] = waits.num_operators.get(waits.done, 0) + 1
        sized = name == "aten::repeat_interleave" and kwargs.get("output_size") is not None
        if name in OPERATORS and not sized:
            waits.note(name)
        if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                waits.note(f"{name} with a mask")
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in METHODS:
            self.waits.note(func.__name__)
        elif func in MAKERS and kwargs.get("device") is not None:
            self.waits.note(f"{func.__name__} of values of the host")
        elif func in MOVERS and getattr(args[0], "is_of_host", False) and not kwargs.get("non_blocking"):
            self.waits.note(f"{func.__name__} of a tensor of the host")
        with _pause(self.waits) if func in UNCHECKED else contextlib.nullcontext():
            result = func(*args, **kwargs)
        if func in MAKERS and kwargs.get("device") is None:
            result.is_of_host = True
        return result


def _from_numpy(array, make=torch.from_numpy):
    """torch.from_numpy, which no mode sees, with a mark."""
    tensor = make(array)
    tensor.is_of_host = True
    return tensor
