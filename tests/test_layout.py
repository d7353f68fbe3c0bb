"""The floors of the house, checked on the source: who may import whom, how large a folder gets, how
modules are called."""

import ast
import subprocess
import sys
from pathlib import Path

from tests import import_graph
from tests.import_graph import list_imported_names, read_imports, room_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mats_ds"
# A room imports rooms on lower floors and itself. ARCHITECTURE.md says what each is for.
FLOORS = (
    {"core"},
    {"config", "tokens", "metering"},
    {"data", "models", "distributed"},
    {"planning", "visualization"},
    {"training", "evaluation", "reporting", "exporting"},
    {"programs"},
)
# Inside data: what is on one line imports the lines above it.
DATA_FLOORS = (
    {"bitstream", "list_text", "class_names", "scenes"},
    {"video", "manifest"},
    {"encode"},
    {"augment", "classes", "early_list", "shared_videos", "synthetic"},
    {"clip_sampler", "photo_scenes"},
    {"view_sampler"},
    {"loading"},
    {"prepare"},
)
MAX_MODULES = 14  # of one folder
MAX_PROGRAMS = 18  # mats_ds itself has one file a command
DALI_HOME = "mats_ds.data.loading.dali"
DEEPSPEED_HOMES = ("mats_ds.training.", "mats_ds.distributed.ranks", "mats_ds.config.ds_config")
# The last one knows argparse.Namespace as a type that pickles of weights hold.
ARGPARSE_HOMES = (
    "mats_ds.core.cli",
    "mats_ds.evaluation.options",
    "mats_ds.training.options",
    "mats_ds.models.weights.file_content",
)
VAGUE_NAMES = {"utils", "util", "misc", "common", "helpers", "helper"}

PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = sorted(path for folder in ("mats_ds", "profiling", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))
IMPORTS = read_imports(ROOT)
MODULES = [module for module in IMPORTS if module.startswith("mats_ds.")]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def floor_of(name: str, floors) -> int | None:
    return next((number for number, rooms in enumerate(floors) if name in rooms), None)


def find_upward(edges, floors):
    """The edges that lead to the same floor or a higher one; those of a box that is on no floor,
    too."""
    number = {name: floor_of(name, floors) for edge in edges for name in edge}
    return sorted((a, b) for a, b in edges if number[a] is None or number[b] is None or number[b] >= number[a])


def importers_of(package: str) -> set[str]:
    """Modules of the package that import this one of somebody else's."""
    names = {import_graph.name_module(path, ROOT): path for path in PACKAGE_FILES}
    return {
        module
        for module, path in names.items()
        if any(name == package or name.startswith(f"{package}.") for name in list_imported_names(path, module))
    }


def test_reads_every_way_of_importing(tmp_path):
    (tmp_path / "mats_ds" / "models").mkdir(parents=True)
    (tmp_path / "profiling").mkdir()
    (tmp_path / "mats_ds" / "__init__.py").write_text('_HOMES = {\n    "select_tokens": "mats_ds.tokens",\n}\n')
    for name in ("data", "tokens", "loop", "events", "config", "models/blocks"):
        (tmp_path / "mats_ds" / f"{name}.py").touch()
    (tmp_path / "profiling" / "report_text.py").touch()
    (tmp_path / "mats_ds" / "models" / "vit.py").write_text(
        "import mats_ds.data\n"
        "from mats_ds import select_tokens\n"
        "from ..loop import fit\n"
        "from .blocks import Block\n"
        "def late():\n    from mats_ds.config import load_recipe\n"
        "import importlib\nimportlib.import_module('mats_ds.events')\n"
        "from report_text import format_report\n"
    )
    found = read_imports(tmp_path)["mats_ds.models.vit"]
    ours = {f"mats_ds.{name}" for name in ("data", "tokens", "loop", "models.blocks", "config", "events")}
    assert found == {*ours, "profiling.report_text"}


def test_finds_an_edge_upward_and_a_room_on_no_floor():
    edges = {("b", "a"), ("a", "b"), ("b", "c"), ("attic", "a")}
    assert find_upward(edges, ({"a"}, {"b", "c"})) == [("a", "b"), ("attic", "a"), ("b", "c")]


def test_no_room_imports_one_on_its_own_floor_or_above():
    edges = import_graph.join_edges({module: IMPORTS[module] - {"mats_ds"} for module in MODULES}, room_of)
    assert find_upward(edges, FLOORS) == []
    assert {room_of(module) for module in MODULES} == set().union(*FLOORS), "a room in this test that is not there"


def test_inside_data_imports_run_one_way():
    inside = {m: {o for o in IMPORTS[m] if o.startswith("mats_ds.data.")} for m in MODULES if m.startswith("mats_ds.data.")}
    assert find_upward(import_graph.join_edges(inside, lambda module: module.split(".")[2]), DATA_FLOORS) == []


def test_no_imports_run_in_a_circle():
    edges = {(module, other) for module in MODULES for other in IMPORTS[module] if other != "mats_ds"}
    assert import_graph.count_levels(edges) is not None


def test_the_public_names_are_all_that_the_package_itself_imports():
    assert IMPORTS["mats_ds"] == set(), "names are loaded when they are first used"


def test_programs_are_imported_by_programs_alone():
    programs = {module for module in MODULES if room_of(module) == "programs"}
    assert [module for module in MODULES if room_of(module) != "programs" and IMPORTS[module] & programs] == []


def test_no_folder_holds_more_modules_than_a_person_can_survey():
    folders = {path.parent for path in PACKAGE_FILES}
    count = {name_of(folder): len({path.stem for path in folder.glob("*.py")} - {"__init__"}) for folder in folders}
    assert count.pop("mats_ds") <= MAX_PROGRAMS
    assert {folder: number for folder, number in count.items() if number > MAX_MODULES} == {}


def test_tests_mirror_the_rooms():
    """Folders of tests are folders of the package, but for those that test it as one."""
    whole = {"benchmarks", "docs", "faults", "golden", "gpu", "security"}
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    strange = {str(folder) for folder in folders if folder.parts and folder.parts[0] not in whole} - {
        str(path.parent.relative_to(PACKAGE)) for path in PACKAGE_FILES
    }
    assert strange == set()


def test_only_one_module_imports_dali():
    assert importers_of("nvidia") == {DALI_HOME}


def test_only_training_and_ranks_import_deepspeed():
    assert [module for module in importers_of("deepspeed") if not module.startswith(DEEPSPEED_HOMES)] == []


def test_only_programs_read_a_command_line():
    inside = [module for module in importers_of("argparse") if room_of(module) != "programs"]
    assert [module for module in inside if not module.startswith(ARGPARSE_HOMES)] == []


def test_no_module_bears_a_name_of_the_standard_library():
    stems = {path.stem for path in PACKAGE_FILES} | {path.parent.name for path in PACKAGE_FILES}
    assert not (stems - {"__init__"}) & (sys.stdlib_module_names | {"profiling"})


def test_no_module_bears_a_name_that_says_nothing():
    assert not {name_of(path) for path in ALL_FILES if path.stem in VAGUE_NAMES}


def test_profiling_is_a_folder_of_programs_and_no_package():
    assert not (ROOT / "profiling" / "__init__.py").exists(), "Python 3.15 has a package of that name"


def test_every_module_opens_with_a_docstring():
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in PACKAGE_FILES}
    silent = [name for name, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert silent == [], "say first what the module is"


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, mats_ds; mats_ds.__all__; dir(mats_ds)\n"
        "heavy = {'torch', 'deepspeed', 'nvidia.dali', 'PIL', 'numpy', 'pydantic', 'yaml', 'av'}\n"
        "print(*heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
