"""A model -> one ONNX file with everything inside, by torch's exporter.

Needs the packages of the optional extra `export`. ONNX has no stable sort; its TopK gives the lower
index first among equal values (ONNX's specification of TopK), which is the same order: equal scores
keep the same tokens.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

OPSET = 20
MAX_MODEL_BYTES = (1 << 31) - 1  # of one protobuf message


def save_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    metadata: Mapping[str, str],
) -> None:
    """Write the file. Raises ValueError where its weights are more than one ONNX file may hold."""
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if num_bytes > MAX_MODEL_BYTES:
        raise ValueError(f"the weights are {num_bytes:,} bytes, and one ONNX file holds {MAX_MODEL_BYTES:,}: use --to export")
    with quiet_exporter():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            custom_translation_table={torch.ops.aten.sort.stable: sort_stable},
            verbose=False,
        )
        made.model.metadata_props.update(metadata)
        made.model.producer_name = "mats_ds"
        made.save(path, external_data=False)


def sort_stable(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """aten.sort.stable as ONNX operators: (values, indices)."""
    from onnxscript import INT32
    from onnxscript import opset20 as op

    is_small = str(self.dtype) not in ("FLOAT", "DOUBLE", "INT64", "INT32")  # of which onnxruntime has a TopK
    values = op.Cast(self, to=INT32.dtype) if is_small else self
    return op.TopK(values, op.Constant(value_ints=[self.shape[dim]]), axis=dim, largest=int(descending), sorted=1)


@contextmanager
def quiet_exporter():
    """The exporter's progress, and its remarks on its own code, out of our output."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
