"""The packages of mats_ds; all other metadata is in pyproject.toml.

Two folders that a user of the checkout types the names of lie outside the package and are put into
it here.
"""

from setuptools import find_packages, setup

# core/storage/package_files.py
DATA_FOLDERS = {"mats_ds.ds_configs": "ds_configs", "mats_ds.budgets": "profiling/budgets"}

setup(
    packages=[*find_packages(include=["mats_ds", "mats_ds.*"]), *DATA_FOLDERS],
    package_dir=DATA_FOLDERS,
    package_data={"": ["*.json", "*.css", "*.txt"], "mats_ds": ["recipes/*.yaml"]},
)
