"""The DeepSpeed JSON files, and what is said about mistakes in them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from mats_ds.config.ds_config import precision_of, read_ds_config
from mats_ds.training.engine import choose_compiled

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
    twos = dict.fromkeys(("zero2", "zero2_8x24g", "zero2_8x80g", "zero2_finetune", "zero2_offload", "zero2_tiny"), 2)
    assert stages == {"zero1": 1, **twos, "zero3": 3}
    assert precision_of(read_ds_config(FOLDER / "zero2.json")) == "bf16"
    assert precision_of(read_ds_config(FOLDER / "zero2_tiny.json")) == "fp32"


def write(path, **content):
    path.write_text(json.dumps(content))
    return path


def test_a_misspelt_key_is_not_ignored(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'zero_optimization'"):
        read_ds_config(write(tmp_path / "c.json", zero_optimisation={"stage": 2}))


def test_other_mistakes_are_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="none.json: give a JSON file or one of zero1, zero2"):
        read_ds_config(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_ds_config(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="enables fp16"):
        precision_of({"fp16": {"enabled": True}})


def waits_of_all_groups():
    """Seconds that each group of ranks waits for the others, after an engine has made its own."""
    import torch.distributed as dist

    from mats_ds import MaskedAutoencoder, TokenGrid
    from mats_ds.config.batch_plan import plan_batch
    from mats_ds.distributed.ranks import start_distributed
    from mats_ds.training.engine import make_engine

    start_distributed(timeout_seconds=3700.0)
    config = read_ds_config(FOLDER / "zero2_tiny.json")
    grid = TokenGrid(num_frames=4, height=32, width=48, tubelet=(2, 16, 16))
    model = MaskedAutoencoder.from_name("tiny", grid=grid, keep_ratio=0.5, visible_ratio=0.25)
    make_engine(model, [{"params": list(model.parameters())}], config, plan_batch(config, recipe_batch=4, world_size=2))
    groups = dist.distributed_c10d._world.pg_map
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]


def test_no_group_of_ranks_waits_longer_than_the_run_allows(ranks):
    """DeepSpeed's own group kept torch's limit of 30 minutes: that was how long a run hung after a
    host was cut off."""
    for waits in ranks(waits_of_all_groups, 2):
        assert len(waits) >= 2 and set(waits) == {3700.0}, waits


def losses_of_three_steps(how, accumulation=1):
    """Of a model that is "eager", "compiled", or "captured" in graphs that a CPU can replay; and
    whether its weights have the names of a plain model's."""
    import torch

    from mats_ds import MaskedAutoencoder, TokenGrid
    from mats_ds.config.batch_plan import plan_batch
    from mats_ds.distributed.ranks import start_distributed
    from mats_ds.models.compiling import capture_passes
    from mats_ds.training.engine import make_engine
    from tests.models.test_compiling import no_gpu

    start_distributed()
    config = read_ds_config(FOLDER / "zero2_tiny.json")
    micro = config["train_micro_batch_size_per_gpu"]
    plan = plan_batch(config, recipe_batch=micro * accumulation, world_size=1)
    torch.manual_seed(0)
    grid = TokenGrid(num_frames=6, height=32, width=48, tubelet=(2, 8, 8))
    model = MaskedAutoencoder.from_name("tiny", grid=grid, recompute="pointwise")
    names = list(model.state_dict())
    groups = [{"params": list(model.parameters()), "lr": 1e-3}]
    engine = make_engine(model, groups, config, plan, compiled=how == "compiled")
    if how == "captured":
        no_gpu(pytest.MonkeyPatch())
        capture_passes(model, micro_batch=micro)
    engine.train()
    losses = []
    for step in range(3 * accumulation):
        frames = torch.randint(0, 256, (2, 6, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
        loss = engine(frames, torch.tensor([step, step + 100]))
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist(), list(engine.module.state_dict()) == names


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_model_trains_under_deepspeed_with_the_same_losses_and_names(ranks):
    (eager, _), (compiled, same_names) = (ranks(losses_of_three_steps, 1, how)[0] for how in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert same_names


@pytest.mark.parametrize("accumulation", [1, 2])
def test_zero_2_takes_gradients_that_lie_in_the_buffers_of_a_graph(ranks, accumulation):
    """It copies them into its buckets and lets go of them before the next micro-batch overwrites
    them, on two ranks as on one."""
    for world_size in (1, 2):
        eager, captured = (ranks(losses_of_three_steps, world_size, how, accumulation)[0] for how in ("eager", "captured"))
        assert captured == eager
        assert len(set(captured[0])) == 3 * accumulation


def test_what_cannot_be_compiled_is_an_error_if_asked_for_and_one_line_with_auto(monkeypatch, caplog):
    from mats_ds.distributed.ranks import RankInfo

    on_cpu, on_gpu = (RankInfo(0, 0, 1, 1, torch.device(device)) for device in ("cpu", "cuda"))
    assert choose_compiled(False, on_gpu, zero_stage=2) == choose_compiled("auto", on_cpu, zero_stage=2) == ""
    monkeypatch.setenv("CXX", "/opt/own/compiler")
    assert choose_compiled(True, on_cpu, zero_stage=2) == "blocks"
    with pytest.raises(ValueError, match="model.compile=true is not possible: ZeRO stage 3 .*: use stage 2; or .*compile=false"):
        choose_compiled(True, on_cpu, zero_stage=3)
    with pytest.raises(ValueError, match="model.compile=graphs is not possible: CUDA graphs need a GPU"):
        choose_compiled("graphs", on_cpu, zero_stage=2)
    caplog.clear()
    assert choose_compiled("auto", on_gpu, zero_stage=3) == ""
    [line] = caplog.messages
    assert "without torch.compile" in line and "stage 3" in line


def join_alone(join_seconds):
    """Rank 0 of two, the other of which never comes."""
    os.environ["WORLD_SIZE"] = "2"
    from mats_ds.distributed import ranks as engine
    from mats_ds.distributed.exits import RanksLost

    engine.JOIN_SECONDS = join_seconds
    begun = time.monotonic()
    try:
        engine.start_distributed()
    except RanksLost as error:
        return str(error), time.monotonic() - begun
    return "joined", 0.0


def test_a_host_that_never_joins_is_waited_for_a_limited_time_and_named_by_its_absence(ranks):
    [(said, seconds)] = ranks(join_alone, 1, 2.0)
    assert "not all 2 ranks have come to 127.0.0.1:" in said and "within 2 s" in said
    assert seconds < 60
