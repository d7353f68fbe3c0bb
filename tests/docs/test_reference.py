"""The committed pages of the reference are what the code says today."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, Field

from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.recipe import Recipe
from tests.docs.blocks import DOCS, load_reference

reference = load_reference()


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_in_step_with_the_code(name):
    written = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert written == reference.PAGES[name](), "run  python docs/site/reference.py"


def test_every_key_of_every_section_is_on_the_page():
    text = (DOCS / "reference" / "recipe.md").read_text(encoding="utf-8")
    for schema in (Recipe, FinetuneRecipe):
        for section, kind in reference.sections_of(schema).items():
            part = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
            assert [key for key in kind.model_fields if f"| `{key}` |" not in part] == []


def test_a_key_without_a_meaning_is_refused():
    class Section(BaseModel):
        explained: int = Field(3, description="a number")
        unexplained: int = 3

    with pytest.raises(ValueError, match="unexplained"):
        reference.list_keys(Section)


def test_every_option_of_a_parser_is_on_the_page():
    text = (DOCS / "reference" / "options.md").read_text(encoding="utf-8")
    part = text.partition("## visualize\n")[2].partition("\n## ")[0]
    shown = [action.option_strings[0] for action in reference.parser_of("visualize")._actions if action.option_strings]
    assert len(shown) > 5 and [name for name in shown if name != "-h" and f"`{name}`" not in part] == []
