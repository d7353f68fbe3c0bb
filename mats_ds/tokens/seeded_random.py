"""Random numbers that are a pure function of a seed: seed_B int64 -> numbers [B, count].

Why not torch.Generator: a mask must be the same for the same clip on any rank, device and resumed
run, and one launch must serve the batch without the host waiting. A 64-bit mixer over (seed,
stream, counter) does that.
Source of the mixer: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014).
"""

from __future__ import annotations

import torch


def _signed(constant: int) -> int:
    """A 64-bit constant as torch's signed int64 holds it."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


_INCREMENT = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))
_SHIFTS = (30, 27, 31)


def _mix(state: torch.Tensor) -> torch.Tensor:
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        # torch's >> repeats the sign bit; the mask makes it a logical shift
        state = state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))
        state = state * multiplier
    return state


def random_bits(seed_B: torch.Tensor, count: int, *, stream: int = 0) -> torch.Tensor:
    """[B, count] int64, uniform over 0 ... 2**63 - 1. Different `stream` numbers give independent
    numbers for one seed.

    One operator to torch.compile, which so can neither change its bits nor break on it: the code
    that torch 2.15's compiler makes of these integer products for a CPU writes beyond its memory.
    """
    return _random_bits(seed_B, count, stream)


@torch.library.custom_op("mats_ds::random_bits", mutates_args=())
def _random_bits(seed_B: torch.Tensor, count: int, stream: int) -> torch.Tensor:
    counter = torch.arange(1, count + 1, device=seed_B.device, dtype=torch.int64)
    seed_B = _mix(_mix(seed_B.to(torch.int64)) + _signed((stream * 0xD1342543DE82EF95 + 1) % (1 << 64)))
    return _mix(seed_B[:, None] + counter * _INCREMENT) & ((1 << 63) - 1)


@_random_bits.register_fake
def _shape_of_random_bits(seed_B: torch.Tensor, count: int, stream: int) -> torch.Tensor:
    return seed_B.new_empty((len(seed_B), count), dtype=torch.int64)


def random_uniform(seed_B: torch.Tensor, count: int, *, stream: int = 0) -> torch.Tensor:
    """[B, count] float32, uniform over the open interval (0, 1)."""
    bits = random_bits(seed_B, count, stream=stream) >> (63 - 23)
    return (bits.to(torch.float32) + 0.5) * 2.0**-23


def random_order(seed_B: torch.Tensor, count: int, *, stream: int = 0) -> torch.Tensor:
    """[B, count] int64: a uniformly random permutation of 0 ... count - 1 for each seed."""
    return random_bits(seed_B, count, stream=stream).argsort(dim=1, stable=True)


def sample_seeds(batch: int, *, device: torch.device, generator: torch.Generator | None = None) -> torch.Tensor:
    """seed_B int64 from torch's own generator (the global one if None), for callers without
    seeds."""
    source = generator.device if generator is not None else torch.device("cpu")
    return torch.randint(0, 1 << 62, (batch,), generator=generator, device=source).to(device)
