"""Hosts that do not run the same thing are told so before the first step; those that do lose no
time."""

from __future__ import annotations

import dataclasses
import socket
import time

import numpy as np
import pytest

from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import load_recipe
from mats_ds.data.manifest import Manifest
from mats_ds.distributed.consistency import check_consistent, describe_inputs, hash_code, hash_videos, shared_keys

DS_CONFIG = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 2}}
HOSTS = ("alpha", "alpha", "beta")


def make_manifest(root="/disk/videos", num_videos=5, **changes):
    unknown = np.full(num_videos, np.nan)
    paths = [f"{root}/class{index % 2}/{index}.mp4" for index in range(num_videos)]
    return dataclasses.replace(Manifest(paths, np.arange(num_videos), unknown, unknown), **changes)


def open_on_three_ranks(overrides, json_of_rank, errors, num_videos):
    """What each rank gets, with one value of each list a rank: the number of videos, or the
    error."""
    from mats_ds.distributed.ranks import start_distributed

    ranks = start_distributed()
    socket.gethostname = lambda: HOSTS[ranks.rank]

    def open_videos():
        if errors[ranks.rank]:
            raise ValueError(errors[ranks.rank])
        return make_manifest(root=f"/disk{ranks.rank}", num_videos=num_videos[ranks.rank])

    recipe = load_recipe("tiny", [*overrides[ranks.rank], f"data.root=/disk{ranks.rank}"])
    try:
        return len(check_consistent(open_videos, ranks, recipe=recipe, ds_config=json_of_rank[ranks.rank]))
    except ValueError as error:
        return str(error)


def three(value):
    return [value] * 3


def test_hosts_with_their_own_disks_get_what_they_opened(ranks):
    assert ranks(open_on_three_ranks, 3, three([]), three(DS_CONFIG), three(None), three(7)) == [7, 7, 7]


def test_what_differs_is_named_with_both_values_and_their_hosts_on_all_ranks(ranks):
    overrides = [[], [], ["optim.base_lr=0.5", "run.seed=3"]]
    jsons = [DS_CONFIG, DS_CONFIG, DS_CONFIG | {"zero_optimization": {"stage": 1}}]
    texts = ranks(open_on_three_ranks, 3, overrides, jsons, three(None), [7, 7, 6])
    assert texts[0] == texts[1] == texts[2]
    base_lr = load_recipe("tiny").optim.base_lr
    assert f"the recipe: optim.base_lr: {base_lr} on alpha; 0.5 on beta\n" in texts[0]
    assert "the recipe: run.seed: 0 on alpha; 3 on beta\n" in texts[0]
    assert "the DeepSpeed JSON: zero_optimization.stage: 2 on alpha; 1 on beta\n" in texts[0]
    assert "the videos: 7 (" in texts[0] and "; 6 (" in texts[0] and texts[0].count("data.root") == 1


def test_one_rank_of_a_host_is_named_by_its_number(ranks):
    texts = ranks(open_on_three_ranks, 3, [[], ["run.seed=3"], []], three(DS_CONFIG), three(None), three(7))
    assert "run.seed: 0 on alpha (rank 0), beta; 3 on alpha (rank 1)" in texts[0]


def test_videos_that_only_one_host_cannot_open_are_told_on_all(ranks):
    """Rank 0 would wait for a rank that has ended."""
    texts = ranks(open_on_three_ranks, 3, three([]), three(DS_CONFIG), [None, None, "no manifest at x.csv"], three(7))
    assert texts == three("on beta: no manifest at x.csv")


def test_a_mistake_of_all_hosts_is_told_as_on_one(ranks):
    texts = ranks(open_on_three_ranks, 3, three([]), three(DS_CONFIG), three("no manifest at x.csv"), three(7))
    assert texts == three("no manifest at x.csv")


class TestVideos:
    def test_may_lie_on_different_disks(self):
        assert hash_videos(make_manifest("/a")) == hash_videos(make_manifest("/mnt/some/where/else"))

    @pytest.mark.parametrize(
        "changes",
        [
            {"paths": [f"/disk/videos/{index}.mp4" for index in (1, 0, 2, 3, 4)]},
            {"label_S": np.array([0, 1, 2, 3, 5])},
            {"first_seconds_S": np.array([0.0, 0, 0, 0, 1])},
            {"last_seconds_S": np.array([9.0, 9, 9, 9, 8])},
        ],
        ids=["order", "label", "start", "end"],
    )
    def test_must_be_the_same_in_every_column(self, changes):
        assert hash_videos(make_manifest(**changes)) != hash_videos(make_manifest())

    def test_of_two_lengths_differ_even_where_their_texts_run_together(self):
        one = make_manifest(num_videos=2, paths=["/a/b", "/a/cd"])
        other = make_manifest(num_videos=2, paths=["/a/bc", "/a/d"])
        assert hash_videos(one) != hash_videos(other)


class TestRecipes:
    def test_may_differ_in_where_and_how_videos_are_read(self):
        here = ["data.manifest=/a/x.csv", "data.root=/a", "data.num_workers=3", "evaluation.manifest=/a/y.csv"]
        there = ["data.manifest=/b/x.csv", "data.root=/b", "data.num_workers=4", "evaluation.manifest=/b/y.csv"]
        recipes = [load_recipe("finetune_tiny", overrides, schema=FinetuneRecipe) for overrides in (here, there)]
        assert shared_keys(recipes[0]) == shared_keys(recipes[1])

    def test_of_fine_tuning_count_whole(self):
        keys = shared_keys(load_recipe("finetune_tiny", schema=FinetuneRecipe))
        assert {"finetune.weights", "augment.mixup", "data.manifest", "optim.base_lr"} - keys.keys() == {"data.manifest"}


def test_versions_count_and_what_only_measures_does_not():
    facts = describe_inputs(make_manifest(), recipe=load_recipe("tiny"), ds_config=DS_CONFIG)
    assert {"torch", "deepspeed", "Python", "the code of mats_ds", "av"} <= facts.keys()
    assert "nvidia-ml-py" not in facts and facts["nvidia-dali-cuda120"] != ""


def test_code_that_was_changed_and_not_committed_counts(tmp_path, monkeypatch):
    from mats_ds.distributed import consistency

    for name in ("training/x.py", "y.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    monkeypatch.setattr(consistency, "__file__", str(tmp_path / "training" / "x.py"))
    before = hash_code()
    (tmp_path / "y.py").write_text("a = 2\n")
    assert hash_code() != before


def test_a_large_manifest_costs_no_time():
    """Kinetics-400 has 240 000 videos."""
    many = make_manifest(num_videos=240_000)
    recipe = load_recipe("tiny")
    begun = time.process_time()
    describe_inputs(many, recipe=recipe, ds_config=DS_CONFIG)
    assert time.process_time() - begun < 3.0
