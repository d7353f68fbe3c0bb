"""Figures for many GPUs against what the engine does on two, and against the page that shows
them."""

from pathlib import Path

import pytest

from mats_ds.config.ds_config import read_ds_config
from mats_ds.config.load import load_recipe
from mats_ds.core.gpus import find_gpu
from mats_ds.planning.memory import padded_elements
from mats_ds.planning.scaling import Site, plan_scale
from mats_ds.planning.workload import Workload
from profiling.scaling import held_batch_rows, main

ROOT = Path(__file__).resolve().parents[2]
ZERO2 = read_ds_config(ROOT / "ds_configs" / "zero2.json")
TINY = read_ds_config(ROOT / "ds_configs" / "zero2_tiny.json")


def make_scale(world_size, model="base", ds_config=ZERO2):
    return plan_scale(model, world_size, gpu=find_gpu("a100-80g"), ds_config=ds_config, mfu=0.35, site=Site())


def test_the_page_shows_what_the_program_prints(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    page = (ROOT / "docs" / "explanation" / "scaling.md").read_text(encoding="utf-8")
    tables = printed.strip().split("\n\n### ")
    assert len(tables) == 6
    for table in tables:
        assert table.removeprefix("### ") in page, f"python profiling/scaling.py prints another table:\n{table}"


def test_what_a_gpu_sends_grows_by_a_seventh_at_most_and_what_it_keeps_shrinks():
    eight, many = make_scale(8), make_scale(1024)
    assert eight.sent_bytes < many.sent_bytes < 8 / 7 * eight.sent_bytes
    assert many.optimizer_bytes == pytest.approx(eight.optimizer_bytes / 128, rel=1e-3)
    assert many.checkpoint_bytes == pytest.approx(eight.checkpoint_bytes, rel=1e-3)
    assert many.planned.bytes_by_kind["moments"] < eight.planned.bytes_by_kind["moments"] / 100


def test_a_ring_within_one_machine_needs_no_network():
    eight, two_machines = make_scale(8), make_scale(16)
    assert eight.link_seconds(1.0) == eight.link_seconds(1e12)
    assert two_machines.link_seconds(12.5e9) == pytest.approx(16 * two_machines.link_seconds(200e9))


def test_seconds_of_computing_follow_the_card_and_not_the_number_of_machines():
    assert make_scale(8).time.step_seconds == pytest.approx(make_scale(1024).time.step_seconds)
    assert make_scale(8, "large").time.step_seconds > 3 * make_scale(8).time.step_seconds


@pytest.mark.parametrize(
    ("batch", "world_size", "cell"), [(192, 8, "24 x 1"), (1024, 8, "16 x 8"), (4096, 1024, "4 x 1"), (192, 1024, "no")]
)
def test_a_batch_that_stays_is_split_into_micro_batches_that_fit(batch, world_size, cell):
    (row,) = [row for row in held_batch_rows([world_size], micro_batch=24) if row[0] == f"{batch:,}"]
    assert row[1].startswith(cell)
    if cell != "no":
        micro, accumulation = map(int, cell.split(" x "))
        assert micro * accumulation * world_size == batch


def test_a_rank_writes_what_is_planned():
    """zero_pp_rank_1_mp_rank_00_optim_states.pt of the tiny recipe on clips of 4 x 32 x 48, 4
    ranks: 6,403,085 bytes."""
    recipe = load_recipe("tiny", ["clip.num_frames=4", "clip.height=32", "clip.width=48"])
    counts = Workload.from_recipe(recipe).parameters()
    planned = 12 * sum(padded_elements(part, 4) for part in (counts.matrices, counts.vectors)) // 4
    assert planned == pytest.approx(6_403_085, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--gpu", "a1000"], "no GPU 'a1000'"), (["--ds_config", "none.json"], "no DeepSpeed JSON at none.json")],
)
def test_a_mistake_is_one_error(capsys, arguments, words):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def count_elements_of_a_step():
    """(elements of the model, of each all-reduce, of each all-gather) in one step of two ranks,
    small ones left out."""
    import torch
    import torch.distributed as dist

    from mats_ds import MaskedAutoencoder, TokenGrid
    from mats_ds.config.batch_plan import plan_batch
    from mats_ds.distributed.ranks import start_distributed
    from mats_ds.training.engine import make_engine

    seen = {"all_reduce": [], "all_gather_into_tensor": []}

    def counted(name, function):
        def call(*tensors, **named):
            tensor = named.get("tensor", named.get("output_tensor", tensors[0] if tensors else None))
            if tensor.numel() > 1000:
                seen[name].append(tensor.numel())
            return function(*tensors, **named)

        return call

    for name in seen:  # before DeepSpeed looks them up
        setattr(dist, name, counted(name, getattr(dist, name)))
    start_distributed()
    config = read_ds_config(ROOT / "ds_configs" / "zero2_tiny.json")
    grid = TokenGrid(num_frames=4, height=32, width=48, tubelet=(2, 16, 16))
    torch.manual_seed(0)
    model = MaskedAutoencoder.from_name("tiny", grid=grid, keep_ratio=0.5, visible_ratio=0.25)
    engine = make_engine(model, [{"params": list(model.parameters())}], config, plan_batch(config, recipe_batch=4, world_size=2))
    for sizes in seen.values():
        sizes.clear()
    engine.backward(engine(torch.zeros(2, 4, 32, 48, 3, dtype=torch.uint8)))
    engine.step()
    return sum(parameter.numel() for parameter in model.parameters()), seen["all_reduce"], seen["all_gather_into_tensor"]


@pytest.mark.slow
def test_deepspeed_all_reduces_every_gradient_in_full_buckets_and_gathers_every_weight_once(ranks):
    bucket = TINY["zero_optimization"]["reduce_bucket_size"]
    for elements, reduced, gathered in ranks(count_elements_of_a_step, 2):
        assert sum(reduced) == elements, "an all-reduce of everything, not a reduce-scatter"
        assert max(reduced) <= bucket and len(reduced) == -(-elements // bucket)
        assert sum(gathered) == pytest.approx(elements, abs=8)
