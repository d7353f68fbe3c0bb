"""Recipes, overrides, DeepSpeed's JSON and budgets of any content are read or refused."""

import json
import time

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import RECIPE_FOLDER, load_recipe
from mats_ds.config.recipe import Recipe
from mats_ds.reporting.budget import load_budget
from tests.security.json_values import NUMBERS, SCALARS, objects

SECTIONS = sorted(set(Recipe.model_fields) | set(FinetuneRecipe.model_fields))
WORDS = sorted(
    {name for schema in (Recipe, FinetuneRecipe) for field in schema.model_fields.values()
     for name in getattr(field.annotation, "model_fields", {})} | set(SECTIONS)
)  # fmt: skip
WHOLE = {name: yaml.safe_load((RECIPE_FOLDER / f"{name}.yaml").read_text()) for name in ("default", "finetune_ucf101")}
YAML_BITS = st.sampled_from(
    ["name: x", "clip:", "  num_frames: 16", "  tubelet: [2, 16, 16]", "data: {", "}", "[", "]", "&a ", "*a", "<<: *a"]
    + ["? [1, 2]", ": 3", "- ", "2020-99-99", "1:60", "0b", "0x", "!!int a", "!!timestamp x", "!!binary x", "!!set", "!!python/x"]
    + ["---", "%YAML 9.9", "\t", "...", "|"]
)
RAW = st.one_of(st.lists(YAML_BITS, max_size=10).map("\n".join), st.text(max_size=40))
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]\n" for n in range(1, 12)
)
OVERRIDES = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.tuples(st.sampled_from(WORDS), st.sampled_from(WORDS), st.one_of(NUMBERS.map(str), RAW)).map(
            lambda parts: f"{parts[0]}.{parts[1]}={parts[2]}"
        ),
    ),
    max_size=3,
)


@st.composite
def edited_recipes(draw, whole):
    """A sound recipe with some of its values, or whole sections, replaced."""
    tree = {name: dict(part) if isinstance(part, dict) else part for name, part in whole.items()}
    for _ in range(draw(st.integers(0, 3))):
        section = draw(st.sampled_from(sorted(tree)))
        if isinstance(tree[section], dict) and tree[section] and draw(st.booleans()):
            key = draw(st.one_of(st.sampled_from(sorted(tree[section])), st.sampled_from(WORDS)))
            tree[section][key] = draw(st.one_of(SCALARS, st.lists(SCALARS, max_size=3)))
        else:
            tree[section] = draw(objects(WORDS))
    return yaml.safe_dump(tree, allow_unicode=True)


@pytest.mark.parametrize(("schema", "whole"), [(Recipe, "default"), (FinetuneRecipe, "finetune_ucf101")])
@given(data=st.data())
def test_a_recipe_and_its_overrides(tmp_path, read_or_refuse, schema, whole, data):
    path = tmp_path / "recipe.yaml"
    text = data.draw(st.one_of(edited_recipes(WHOLE[whole]), objects(SECTIONS).map(yaml.safe_dump), RAW))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    read_or_refuse(load_recipe, path, data.draw(OVERRIDES), schema=schema)


@pytest.mark.parametrize("text", [BOMB, f"name: {'[' * 20_000}", BOMB + "name: *a11\n", f"name: {'{a: ' * 20_000}"])
def test_a_recipe_that_unfolds_without_end_is_refused_at_once(tmp_path, read_or_refuse, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    begin = time.process_time()
    assert read_or_refuse(load_recipe, path) is None
    assert read_or_refuse(load_recipe, "default", [f"name={text}"]) is None
    assert time.process_time() - begin < 20


def test_yaml_makes_no_objects(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/made']\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_recipe(path)
    assert not (tmp_path / "made").exists()


DS_WORDS = ["bf16", "fp16", "enabled", "zero_optimization", "stage", "train_micro_batch_size_per_gpu", "optimizer", "params"]
DS_WORDS += ["gradient_accumulation_steps", "train_batch_size", "gradient_clipping", "lr"]


@given(tree=objects(DS_WORDS))
@example(tree={"bf16": True})
@example(tree={"fp16": []})
@example(tree={"zero_optimization": 2})
def test_a_deepspeed_json(tmp_path, read_or_refuse, tree):
    from mats_ds.config.batch_plan import plan_batch
    from mats_ds.config.ds_config import precision_of, read_ds_config

    path = tmp_path / "ds.json"
    path.write_text(json.dumps(tree))
    config = read_or_refuse(read_ds_config, path)
    if config is not None:
        read_or_refuse(precision_of, config)
        read_or_refuse(plan_batch, config, recipe_batch=12, world_size=2)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[" * 100_000, b"", b"[]", b'{"train_batch_size": ' + b"9" * 5000 + b"}", b'{"a": NaN}']
)
def test_a_deepspeed_json_that_is_none(tmp_path, read_or_refuse, content):
    from mats_ds.config.ds_config import read_ds_config

    path = tmp_path / "ds.json"
    path.write_bytes(content)
    assert read_or_refuse(read_ds_config, path) is None


@given(
    content=st.one_of(
        objects(["name", "gpus", "memory_per_gpu_bytes", "hours", "joules_per_clip"]).map(json.dumps), st.text(max_size=20)
    )
)
@example(content="[" * 100_000)
def test_a_budget(tmp_path, read_or_refuse, content):
    path = tmp_path / "budget.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    read_or_refuse(load_budget, path)
