"""The packages of mats_ds; all other metadata is in pyproject.toml.

Two folders that a user of the checkout types the names of lie outside the package and are put into
it here.
"""

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

PACKAGES = find_packages(include=["mats_ds", "mats_ds.*"])
# core/storage/package_files.py
DATA_FOLDERS = {"mats_ds.ds_configs": "ds_configs", "mats_ds.budgets": "profiling/budgets"}


class PathInstead(editable_wheel):
    """An editable installation that is a line in a .pth file.

    With packages that lie outside, setuptools makes it an import hook, which Python asks only after
    all folders: any folder `mats_ds` where a user stands (a clone's, one of results) would be
    taken for the package. A checkout needs no packages of data: its files are found beside it.
    """

    def finalize_options(self) -> None:
        self.distribution.packages, self.distribution.package_dir = PACKAGES, {"": "."}
        super().finalize_options()


setup(
    cmdclass={"editable_wheel": PathInstead},
    packages=[*PACKAGES, *DATA_FOLDERS],
    package_dir=DATA_FOLDERS,
    package_data={"": ["*.json", "*.css", "*.txt"], "mats_ds": ["recipes/*.yaml"]},
)
