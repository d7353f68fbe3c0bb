"""The rooms of the house, checked on the source: who may import whom, and what a module may be called."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import mats_ds

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mats_ds"
BASE = {"clips", "core", "config", "config_finetune", "events", "parsing"}  # L0: import nothing of ours but each other
ROOMS = {"data", "tokens", "models", "metering", "training", "interop"}  # L1: import L0 and themselves
EXCEPTIONS = {("models", "tokens"), ("interop", "models")}  # a model scores its own embeddings; a file of weights becomes a model
DALI_HOME = "mats_ds/data/loading/loader.py"
DEEPSPEED_HOME = "mats_ds/training/"
VAGUE_NAMES = {"utils", "util", "misc", "common", "helpers", "helper"}

PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = sorted(path for folder in ("mats_ds", "profiling", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = {path.stem for path in PACKAGE.glob("*.py")} - BASE - {"__init__"}  # L2: assemble, imported by nobody


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def modules_imported_by(path: Path) -> set[str]:
    """Dotted names of every import in a file, wherever it stands; relative ones and the package's lazy names resolved."""
    found = set()
    parents = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*parents[: len(parents) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "mats_ds":
                names = [alias.name for alias in node.names if not alias.name.startswith("__")]
                found |= {mats_ds._HOMES.get(name, f"mats_ds.{name}") for name in names}
            else:
                found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            found |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return found


def our_parts_imported_by(path: Path) -> set[str]:
    """The first part below mats_ds of all that a file imports: `data`, `clips`, ..."""
    return {name.split(".")[1] for name in modules_imported_by(path) if name.startswith("mats_ds.")}


def test_resolves_every_way_of_importing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "mats_ds" / "models" / "encoder.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import mats_ds.data.manifest\n"
        "from mats_ds import select_tokens\n"
        "from ..training import loop\n"
        "from .blocks import Block\n"
        "def late():\n    from mats_ds.config.recipe import load_recipe\n"
        "import importlib\nimportlib.import_module('mats_ds.core.events')\n"
    )
    assert our_parts_imported_by(path) == {"data", "tokens", "training", "models", "config", "events"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parts_allowed_in(room: str) -> set[str]:
    """What of ours a file of a room may import."""
    if room == "__init__":
        return set()
    if room in SCRIPTS:
        return BASE | ROOMS
    if room in ROOMS:
        return BASE | {room} | {other for owner, other in EXCEPTIONS if owner == room}
    return set(BASE)


def test_every_file_is_in_a_known_room():
    unknown = [name_of(path) for path in PACKAGE_FILES if room_of(path) not in BASE | ROOMS | SCRIPTS | {"__init__"}]
    assert unknown == [], "name the room in CONTRIBUTING.md and in this test"


def test_rooms_import_only_the_base_and_themselves():
    foreign = {name_of(path): our_parts_imported_by(path) - parts_allowed_in(room_of(path)) for path in PACKAGE_FILES}
    assert {name: parts for name, parts in foreign.items() if parts} == {}


def test_scripts_are_imported_by_nobody():
    others = [path for path in ALL_FILES if not name_of(path).startswith("tests/")]  # a test may reach into a script
    assert [name_of(path) for path in others if our_parts_imported_by(path) & SCRIPTS] == []


def test_only_the_pipeline_imports_dali():
    importers = {name_of(path) for path in PACKAGE_FILES if any(n.startswith("nvidia") for n in modules_imported_by(path))}
    assert importers <= {DALI_HOME}


def test_only_training_imports_deepspeed():
    importers = {
        name_of(path)
        for path in PACKAGE_FILES
        if any(name.partition(".")[0] == "deepspeed" for name in modules_imported_by(path))
    }
    assert all(importer.startswith(DEEPSPEED_HOME) for importer in importers), importers


def test_no_module_bears_a_name_of_the_standard_library():
    stems = {path.stem for path in PACKAGE_FILES} | {path.parent.name for path in PACKAGE_FILES}
    assert not (stems - {"__init__"}) & (sys.stdlib_module_names | {"profiling"})


def test_no_module_bears_a_name_that_says_nothing():
    assert not {name_of(path) for path in ALL_FILES if path.stem in VAGUE_NAMES}


def test_profiling_is_a_folder_of_tools_and_no_package():
    assert not (ROOT / "profiling" / "__init__.py").exists(), "Python 3.15 has a package of that name"


def test_every_module_opens_with_a_docstring():
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in PACKAGE_FILES}
    assert [name for name, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))] == []


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, mats_ds; mats_ds.__all__; dir(mats_ds)\n"
        "print(*(name for name in ('torch', 'deepspeed', 'nvidia.dali', 'av', 'numpy', 'pydantic') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
