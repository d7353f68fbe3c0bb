"""Lets the model be imported where pydantic is not installed: measuring a step needs no recipe.

`mats_ds/config/recipe.py` declares recipes with pydantic. Here its names do nothing; reading a recipe then fails with words. Only
for these benchmarks: the trainer wants the real package. PyYAML comes with timm.
"""

from __future__ import annotations

import importlib.util
import sys
import types


class _Declared:
    """Stands for pydantic.BaseModel and its errors."""

    model_fields: dict = {}

    def __init__(self, *_: object, **fields: object) -> None:
        self.__dict__.update(fields)

    @classmethod
    def model_validate(cls, tree: object) -> None:
        raise ImportError("recipes need pydantic: install it")


def _ignore(*_: object, **__: object):
    """A decorator with arguments that changes nothing."""
    return lambda function: function


def import_or_stand_in() -> list[str]:
    """Make `import mats_ds.config.recipe` work. Returns the packages that are stood in for."""
    stood_in = []
    if importlib.util.find_spec("pydantic") is None:
        pydantic = types.ModuleType("pydantic")
        pydantic.BaseModel, pydantic.ValidationError = _Declared, type("ValidationError", (ValueError,), {})
        pydantic.ConfigDict, pydantic.Field = dict, lambda default=None, **_: default
        pydantic.field_validator = pydantic.model_validator = _ignore
        sys.modules["pydantic"] = pydantic
        stood_in.append("pydantic")
    return stood_in
