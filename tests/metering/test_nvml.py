"""Energy from samples: the counter where there is one, power times time elsewhere, and no step with
less than nothing."""

import pytest

from mats_ds.metering.nvml import EnergyMeter


def test_the_counter_wins_over_the_power():
    meter = EnergyMeter()
    meter.add(10.0, watts=900.0, joules_total=5_000.0)
    meter.add(12.0, watts=900.0, joules_total=5_500.0)
    assert meter.read(12.0) == 500.0


def test_without_a_counter_power_is_summed_over_time():
    meter = EnergyMeter()
    meter.add(10.0, watts=100.0, joules_total=None)
    meter.add(12.0, watts=300.0, joules_total=None)
    assert meter.read(12.0) == pytest.approx(400.0)


def test_between_samples_the_newest_rate_goes_on():
    meter = EnergyMeter()
    meter.add(0.0, watts=None, joules_total=0.0)
    meter.add(1.0, watts=None, joules_total=250.0)
    assert meter.read(1.4) == pytest.approx(350.0)


def test_readings_never_fall_and_their_differences_add_up_to_the_counter():
    meter = EnergyMeter()
    meter.add(0.0, watts=None, joules_total=0.0)
    meter.add(1.0, watts=None, joules_total=400.0)
    readings = [meter.read(1.0), meter.read(1.9)]
    meter.add(2.0, watts=None, joules_total=500.0)  # it went on slower than was assumed
    readings += [meter.read(2.0), meter.read(2.5)]
    meter.add(5.0, watts=None, joules_total=1_500.0)
    readings.append(meter.read(5.0))
    steps = [later - earlier for earlier, later in zip(readings, readings[1:], strict=False)]
    assert readings[1] == pytest.approx(760.0)
    assert min(steps) == 0.0
    assert readings[-1] == 1_500.0


def test_a_counter_that_went_back_falls_back_to_power():
    meter = EnergyMeter()
    meter.add(0.0, watts=100.0, joules_total=9_000.0)
    meter.add(1.0, watts=100.0, joules_total=10.0)
    assert meter.read(1.0) == pytest.approx(100.0)


def test_nothing_measured_is_none_and_not_zero():
    meter = EnergyMeter()
    meter.add(0.0, watts=None, joules_total=None)
    assert meter.read(1.0) is None
