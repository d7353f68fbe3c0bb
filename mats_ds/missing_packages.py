"""Print which packages of pyproject.toml the running Python lacks; an empty line where it lacks none.

    ANY_PYTHON mats_ds/missing_packages.py [EXTRA ...]

launch.sh asks this of a Python before it uses it, so nothing is imported but a few modules of every Python 3.
"""

import ast
import os
import re
import sys
from importlib import metadata

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILDS = ("cuda13", "cuda12")  # extras whose first package is DALI; one of the two is enough
SHOWN = 4


def read_requirements(text):
    """The lists of packages in the text of a pyproject.toml: {"dependencies": [...], "cuda13": [...], ...}.

    Python 3.10 has no TOML parser, but a TOML list of strings is also a Python list.
    """
    lists = re.findall(r"^(dependencies|cuda12|cuda13|test) = (\[.*?\])$", text, re.MULTILINE | re.DOTALL)
    return {name: ast.literal_eval(value) for name, value in lists}


def find_missing(requirement):
    """What of `name>=version` is not installed, or None."""
    name, lowest = re.match(r"([\w.-]+)[^;>]*(?:>=([\d.]+))?", requirement).groups()
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return name
    return f"{name}>={lowest}" if lowest and _numbers(version) < _numbers(lowest) else None


def list_missing(requirements, extras):
    """The names of all that the running Python lacks."""
    wanted = sum((requirements[extra] for extra in extras), requirements["dependencies"])
    missing = [name for name in map(find_missing, wanted) if name]
    if all(find_missing(requirements[build][0]) for build in BUILDS):
        missing.append("nvidia-dali")
    if not (3, 10) <= sys.version_info[:2] < (3, 15):
        missing.insert(0, "Python 3.10 to 3.14")
    return missing


def _numbers(version):
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3]]


if __name__ == "__main__":
    with open(os.path.join(ROOT, "pyproject.toml"), encoding="utf-8") as stream:
        found = list_missing(read_requirements(stream.read()), sys.argv[1:])
    print(", ".join(found[:SHOWN] + ["..."] * (len(found) > SHOWN)))
