"""What an export to a program needs: known before the work, without torch."""

from __future__ import annotations

from mats_ds.core.storage.package_files import check_packages

PACKAGES = ("onnx", "onnxscript")  # of the extra `export`, whose onnxruntime only runs the file


def check_target(target: str, *, batch: int) -> None:
    """Raises ValueError, before the work, for what `export_program` cannot do."""
    if batch < 1:
        raise ValueError(f"--batch is at least 1, got {batch}")
    if target == "onnx":
        check_packages("--to onnx (--to export needs nothing more)", *PACKAGES)
