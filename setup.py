"""Packaging of mats_ds. `launch.sh` reads REQUIREMENTS and EXTRAS as literals, so keep them literal."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

REQUIREMENTS = [
    "torch>=2.9",
    "torchvision>=0.24",
    "deepspeed>=0.18",
    "timm>=1.0.31",
    "einops>=0.8",
    "nvidia-ml-py>=12",
    "pyyaml>=6",
    "pydantic>=2.7",
    "av>=17.1",
    "numpy>=1.26",
    "tqdm>=4.60",
    "matplotlib>=3.8",
    "psutil>=5.9",
    "safetensors>=0.4",
]

# DALI is published once per CUDA major version. torch 2.10 is the last release whose PyPI wheels are CUDA 12 builds, so a
# CUDA 12 driver gets all it needs from PyPI alone. CONTRIBUTING.md lists what resolves on each Python.
EXTRAS = {
    "cuda13": ["nvidia-dali-cuda130>=1.52; sys_platform == 'linux'", "torch>=2.11"],
    "cuda12": ["nvidia-dali-cuda120>=1.52; sys_platform == 'linux'", "torch>=2.9,<2.11"],
    "test": ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "ruff>=0.14", "setuptools>=77", "transformers>=4.57"],
}


def read_version() -> str:
    """The version that mats_ds/__init__.py states, read as text: building needs nothing installed."""
    text = (ROOT / "mats_ds" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE).group(1)


def read_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="mats-ds",
    version=read_version(),
    description="Pre-train and fine-tune video models with motion-aware token selection on one machine",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE*", "NOTICE*"],
    python_requires=">=3.10,<3.15",
    packages=find_packages(include=["mats_ds", "mats_ds.*"]),
    package_data={"mats_ds": ["recipes/*.yaml"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
