"""The folder of a run: where it is, that it can be written, and what changed since the run
began."""

from __future__ import annotations

import logging

from mats_ds.training.run_folder import choose_run_folder, name_changes, write_inputs


def choose(out):
    from mats_ds.distributed.ranks import start_distributed

    return choose_run_folder(out, start_distributed(), recipe_name="test", task="pretrain", resume=False)


def test_a_folder_that_cannot_be_written_is_one_error_on_all_ranks(ranks, tmp_path):
    (tmp_path / "file").write_text("")
    for text in ranks(choose, 2, str(tmp_path / "file" / "run"), expect_errors=True):
        assert (
            "ValueError: the run folder cannot be written: [Errno 20] Not a directory" in text and "choose another --out" in text
        )


def test_what_changed_since_the_run_began_is_said(tmp_path, caplog):
    write_inputs(tmp_path, recipe="optim: {base_lr: 1.0, steps: 3}\nname: a\n", ds_config={})
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        write_inputs(tmp_path, recipe="optim: {base_lr: 2.0, steps: 3}\nname: a\ndata: {root: x}\n", ds_config={})
    assert 'going on with other settings than before: optim.base_lr 1.0 -> 2.0; data null -> {"root":"x"}' in caplog.text


def test_another_deepspeed_json_than_before_is_said(tmp_path, caplog):
    """A run that was begun when a silent JSON meant clipping at 1 goes on without."""
    before = {"bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 24}
    write_inputs(tmp_path, recipe="name: a\n", ds_config=before)
    with caplog.at_level(logging.WARNING):
        write_inputs(tmp_path, recipe="name: a\n", ds_config=before)
        assert caplog.text == ""
        write_inputs(tmp_path, recipe="name: a\n", ds_config={"gradient_clipping": 0.0, **before})
    assert "another DeepSpeed JSON than before: gradient_clipping null -> 0.0" in caplog.text


def test_keys_of_one_side_count():
    assert name_changes({"a": 1, "b": {"c": 2}}, {"b": {"c": 2, "d": 3}}) == ["b.d null -> 3", "a 1 -> null"]
