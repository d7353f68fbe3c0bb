"""Checkpoint files of DeepSpeed, read without running code that is in them, and checked before a
run goes on from them.

DeepSpeed 0.19 reads and converts them with `torch.load(weights_only=False)`, which torch's own
switch TORCH_FORCE_WEIGHTS_ONLY_LOAD overrides. Measured on 2 ranks, ZeRO 0 to 3, fp32 and bf16,
with and without CPU offload: beside tensors, numbers and texts the files hold the three classes of
`harmless_classes`, and nothing else.

Names are looked at too: DeepSpeed's converter makes a folder of every weight's name.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mats_ds.core.storage.archives import count_stored_bytes, open_archive
from mats_ds.core.storage.files import open_regular
from mats_ds.core.storage.pickle_bombs import InflatingPickle, refuse_inflating_calls

FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
# what DeepSpeed looks for
PREFIXES = ("mp_rank_", "layer_", "zero_pp_rank_", "bf16_zero_pp_rank_", "fp16_zero_pp_rank_")
EXPECTED = re.compile(r"(bf16_)?zero_pp_rank_\d{1,6}_mp_rank_00_(model|optim)_states\.pt|mp_rank_00_model_states\.pt")
WEIGHT_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
# others hold patterns that the converter matches names with
UNIVERSAL_KEYS = {"universal_checkpoint_version"}
EXPERT_KEYS = ("ds_autoep_layers", "autoep_layers")
ZIP_MARK = b"PK"
SHOWN = 160
MALFORMED = (
    AttributeError,
    AssertionError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)  # of its readers


def harmless_classes() -> list[Any]:
    """DeepSpeed's classes in its own files: a number with methods, an enumeration, two numbers.

    None of them does anything when it is made.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


@contextlib.contextmanager
def without_code() -> Iterator[None]:
    """Inside it every `torch.load` of this process, DeepSpeed's too, makes tensors, plain values
    and `harmless_classes` alone. Anything else in a file raises pickle.UnpicklingError.
    """
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(harmless_classes()):
            yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def check_state_files(checkpoint: Path) -> dict[str, Mapping[str, Any]]:
    """The structure of every file of a checkpoint by its name, with the shapes of tensors.

    Raises ValueError, before any tensor is read, for a checkpoint with a file that would run
    code, that unfolds to more than its bytes, or whose names would lead the converter out of its
    folder.
    """
    descriptions: dict[str, Mapping[str, Any]] = {}
    for path in sorted(checkpoint.iterdir()):
        if not path.name.startswith(PREFIXES):
            continue
        if not EXPECTED.fullmatch(path.name):
            raise ValueError(f"{path} is no file of a checkpoint of ours, and DeepSpeed would read it: move it elsewhere")
        description = descriptions[path.name] = _read_description(path)
        _check_names(description, path)
    return descriptions


def _read_description(path: Path) -> Mapping[str, Any]:
    """The structure of a file, with the shapes of its tensors and none of their numbers."""
    with open_regular(path) as stream:
        if stream.read(len(ZIP_MARK)) == ZIP_MARK:
            try:
                open_archive(stream)
            except (ValueError, zipfile.BadZipFile, NotImplementedError) as error:
                raise ValueError(f"{path} cannot be read: {error}") from None
        num_bytes = stream.seek(0, os.SEEK_END)
        try:
            refuse_inflating_calls(stream)
            with without_code():
                content = torch.load(stream, map_location="meta", weights_only=True)
        except OSError:
            raise
        except InflatingPickle as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        except pickle.UnpicklingError as error:
            raise ValueError(_explain_refusal(path, error)) from None
        except Exception as error:  # damaged, it makes torch's reader fail in any way
            raise ValueError(f"{path} cannot be read: {type(error).__name__}: {str(error)[:SHOWN]}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected DeepSpeed's dictionary")
    if (claimed := count_stored_bytes(content)) > num_bytes:
        raise ValueError(
            f"{path} claims {claimed:,} bytes of tensors and is {num_bytes:,} bytes long: it is not what was written"
        )
    return content


def _explain_refusal(path: Path, error: Exception) -> str:
    if code := re.search(r"(?:GLOBAL|function) (\S+)", str(error)):
        return (
            f"{path} holds more than a checkpoint does, and reading it would run code from the file "
            f"({code[1][:SHOWN]}): do not go on with this run"
        )
    return f"{path} cannot be read, it may be torn: {str(error).splitlines()[0][:SHOWN]}"


def _check_names(content: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError for names of weights that are no names, and for what the converter would
    take further orders from."""
    optimizer = content.get("optimizer_state_dict")
    groups = [content.get("module"), *_as_list(content.get("param_shapes"))]
    if isinstance(optimizer, Mapping):
        groups += _as_list(optimizer.get("param_slice_mappings"))
    for name in (name for group in groups if isinstance(group, Mapping) for name in group):
        if not isinstance(name, str) or not WEIGHT_NAME.fullmatch(name):
            raise ValueError(
                f"{path} calls a weight {name!r:.{SHOWN}}, which is no name of a weight: the file is not one of ours"
            )
    info = content.get("universal_checkpoint_info")
    if any(key in content for key in EXPERT_KEYS) or (info and not (isinstance(info, Mapping) and set(info) <= UNIVERSAL_KEYS)):
        raise ValueError(f"{path} is of a model with experts or divided layers, which ours has not: the file is not one of ours")


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def describe_other_owners(paths: Iterable[Path]) -> str | None:
    """The users other than this one that own some of the paths, such as "ada (uid 1001)"; None
    where all are this user's own, and where the system knows no users.
    """
    if not hasattr(os, "getuid"):
        return None
    owners = {path.lstat().st_uid for path in paths if os.path.lexists(path)} - {os.getuid()}
    return ", ".join(map(name_user, sorted(owners))) or None


def name_user(uid: int) -> str:
    """Name and number of a user; the number alone where this machine has no name for it."""
    try:
        import pwd

        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except (ImportError, KeyError):
        return f"uid {uid}"
