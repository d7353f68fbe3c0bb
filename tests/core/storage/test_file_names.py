"""What may be a part of a path."""

import pytest

from mats_ds.core.storage.files import why_no_file_name


@pytest.mark.parametrize(
    "name",
    ["tiny", "ucf101-long_2.0", "my run (v2), 50% + a=b", "видео", "動画", "می‌خواهم", "é" * 100, "...a"[3:], "a..b", "#1 @home"],
)
def test_names_of_any_script_are_names(name):
    assert why_no_file_name(name) is None


@pytest.mark.parametrize(
    "name",
    ["", " ", " a", "a ", ".", "..", "../..", "a/b", "/etc", "a\\b", ".hidden", "-rf", "~root", "a.", "a\nb", "a\x1b[2J", "a\0b",
     "a\u202eb", "a\ud800", "c:a", "a*", "a" * 101, "動" * 67, "a\u2028b"],
)  # fmt: skip
def test_what_leads_elsewhere_or_cannot_be_seen_is_none(name):
    assert why_no_file_name(name)
