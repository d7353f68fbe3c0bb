"""Memory by kind: the parts add up, and none is below nothing."""

from mats_ds.metering.device_memory import left_for_activations, name_kind, on_device, split_peak

STATIC = {"weights": 40, "gradients": 20, "master_weights": 10, "moments": 20, "buckets": 7}


def test_the_kinds_add_up_to_what_the_card_has_in_use():
    kinds = split_peak(STATIC, peak_allocated_bytes=300, peak_reserved_bytes=350, clip_bytes=3, used_bytes=410)
    assert kinds == STATIC | {"clips": 3, "activations": 200, "cache": 50, "outside": 60}
    assert sum(kinds.values()) == 410


def test_without_the_driver_there_is_nothing_outside():
    kinds = split_peak(STATIC, peak_allocated_bytes=300, peak_reserved_bytes=350)
    assert "outside" not in kinds
    assert sum(kinds.values()) == 350


def test_what_is_on_the_host_is_not_on_the_card():
    static = {"weights": 40, "host_moments": 1000}
    assert on_device(static) == {"weights": 40}
    assert left_for_activations(static, peak_allocated_bytes=100, clip_bytes=10) == 50
    assert name_kind("host_moments") == "AdamW moments (optimizer partition), on the host"


def test_a_peak_below_the_static_kinds_leaves_no_activations():
    kinds = split_peak(STATIC, peak_allocated_bytes=50, peak_reserved_bytes=60, used_bytes=55)
    assert (kinds["activations"], kinds["cache"], kinds["outside"]) == (0, 0, 0)


def test_an_unknown_kind_is_named_by_its_key():
    assert name_kind("lookup_tables") == "lookup tables"
