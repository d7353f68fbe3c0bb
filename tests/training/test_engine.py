"""The DeepSpeed JSON files, and what is said about mistakes in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mats_ds.training.engine import precision_of, read_ds_config

FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"
SHIPPED = sorted(FOLDER.glob("*.json"))
LARGEST_BUCKET_ELEMENTS = 50_000_000  # a tenth of DeepSpeed's default, more than half of ViT-B


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_known_to_deepspeed_and_have_buckets_for_these_models(path):
    config = read_ds_config(path)
    zero = config["zero_optimization"]
    assert zero["reduce_bucket_size"] <= LARGEST_BUCKET_ELEMENTS
    assert "train_batch_size" not in config and "gradient_accumulation_steps" not in config
    assert config["optimizer"]["params"]["torch_adam"], "an optimizer that compiles nothing when it starts"


def test_the_promised_files_are_there_with_their_stage_and_precision():
    stages = {path.stem: read_ds_config(path)["zero_optimization"]["stage"] for path in SHIPPED}
    assert stages == {"zero1": 1, "zero2": 2, "zero2_offload": 2, "zero2_tiny": 2, "zero3": 3}
    assert precision_of(read_ds_config(FOLDER / "zero2.json")) == "bf16"
    assert precision_of(read_ds_config(FOLDER / "zero2_tiny.json")) == "fp32"


def write(path, **content):
    path.write_text(json.dumps(content))
    return path


def test_a_misspelt_key_is_not_ignored(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'zero_optimization'"):
        read_ds_config(write(tmp_path / "c.json", zero_optimisation={"stage": 2}))


def test_other_mistakes_are_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="try ds_configs/zero2.json"):
        read_ds_config(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_ds_config(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="enables fp16"):
        precision_of({"fp16": {"enabled": True}})
