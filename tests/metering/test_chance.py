"""No advice from noise, also where a slow step is followed by slow ones; and none kept back that is
plain to see."""

from __future__ import annotations

import numpy as np
import pytest

from mats_ds.metering.chance import LEVEL, MIN_STEPS, differ_beyond_chance, exceeds_chance, tail

NUM_TRIALS = 400


def make_noise(generator, num_steps, *, correlation):
    """A series whose neighbours resemble each other (autoregressive), of mean 0."""
    noise_S = generator.standard_normal(num_steps)
    noise_S[0] /= np.sqrt(1 - correlation**2)
    for step in range(1, num_steps):
        noise_S[step] += correlation * noise_S[step - 1]
    return noise_S


@pytest.mark.parametrize(
    ("t", "degrees", "p"), [(2.262, 9, 0.025), (3.250, 9, 0.005), (63.66, 1, 0.005), (0.0, 4, 0.5), (-2.262, 9, 0.975)]
)
def test_the_tail_is_that_of_the_tables(t, degrees, p):
    assert tail(t, degrees=degrees) == pytest.approx(p, rel=1e-3)


@pytest.mark.parametrize(("num_steps", "correlation"), [(MIN_STEPS, 0.0), (100, 0.5), (300, 0.9)])
def test_noise_is_hardly_ever_taken_for_a_finding(num_steps, correlation):
    generator = np.random.default_rng(0)
    trials = [make_noise(generator, num_steps, correlation=correlation) for _ in range(NUM_TRIALS)]
    # the worse of two ranks is looked at, so the sign is chosen after the fact
    alarms = sum(exceeds_chance(np.sign(trial.mean()) * trial, num_compared=2) for trial in trials)
    assert alarms <= 4 * LEVEL * NUM_TRIALS


def test_a_test_that_takes_steps_for_independent_would_raise_alarms_here():
    """The trials above are hard: the plain t-test of all steps fails them."""
    generator = np.random.default_rng(0)
    trials = [make_noise(generator, 300, correlation=0.9) for _ in range(NUM_TRIALS)]
    plain = [abs(trial.mean()) / trial.std(ddof=1) * np.sqrt(len(trial)) for trial in trials]
    assert sum(tail(t, degrees=299) < LEVEL / 2 for t in plain) > 0.3 * NUM_TRIALS


def test_what_is_plain_is_found():
    generator = np.random.default_rng(0)
    found = [exceeds_chance(1 + generator.standard_normal(100), num_compared=8) for _ in range(50)]
    assert sum(found) > 35 and exceeds_chance([1.0] * MIN_STEPS) and not exceeds_chance([0.0] * MIN_STEPS)


def test_one_slow_stretch_is_no_finding():
    values = np.zeros(100)
    values[40:50] = 10.0
    assert not exceeds_chance(values)


def test_of_too_few_steps_nothing_is_said():
    assert not exceeds_chance([1.0] * (MIN_STEPS - 1))
    assert differ_beyond_chance([1.0] * (MIN_STEPS - 1), [2.0] * 100) is None


def test_two_runs_alike_and_two_that_differ():
    generator = np.random.default_rng(0)
    alike = [differ_beyond_chance(*(10 + make_noise(generator, 120, correlation=0.5) for _ in "ab")) for _ in range(200)]
    assert sum(alike) <= 8
    apart = [differ_beyond_chance(*(mean + generator.standard_normal(120) for mean in (10, 11))) for _ in range(50)]
    assert sum(apart) > 40
    assert differ_beyond_chance([1.0] * 40, [1.0] * 50) is False and differ_beyond_chance([1.0] * 40, [1.1] * 50) is True
