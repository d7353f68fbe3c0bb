"""A package that is not installed: one line that names it and the command that installs it, where
the user stands; never a traceback."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mats_ds.__main__ import main as run_mats
from mats_ds.config.ds_config import read_ds_config
from mats_ds.core.cli import RUN_ERROR, USAGE_ERROR, run_script
from mats_ds.core.storage import package_files
from mats_ds.core.storage.package_files import EXTRA_OF, PACKAGE_OF, check_packages, describe_missing, install_command
from mats_ds.data.loading.dali import GpuDecoder
from mats_ds.data.photo_scenes.photographs import read_photograph
from mats_ds.exporting.programs.target import check_target
from mats_ds.install import EXTRAS, read_requirements
from mats_ds.training.ds_outputs import check_outputs
from mats_ds.visualization.drawing import plain_drawing, try_to_draw

ROOT = Path(__file__).resolve().parents[1]


def list_imported():
    """The top-level names of all packages of others that the product imports, wherever it does."""
    names = set()
    for path in (path for folder in ("mats_ds", "profiling") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"mats_ds", "nvidia"}  # of DALI, dali.py says what to install


IMPORTED = list_imported()


def hide(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def a_monitor(name):
    check_outputs(read_ds_config("zero2_tiny") | {name: {"enabled": True, "output_path": "logs", "job_name": "a"}})


def a_drawing():
    with plain_drawing():
        pass


# what is asked for -> the modules that are not there
WORK = {
    "mats pretrain": (("deepspeed",), lambda: run_mats(["pretrain", "--recipe", "tiny"])),
    "mats evaluate": (("deepspeed",), lambda: run_mats(["evaluate", "--model", "x", "--manifest", "y"])),
    "mats docs": (("mkdocs", "material"), lambda: run_mats(["docs"])),
    "convert --to onnx": (("onnx", "onnxscript"), lambda: check_target("onnx", batch=1)),
    "tensorboard": (("tensorboard",), lambda: a_monitor("tensorboard")),
    "wandb": (("wandb",), lambda: a_monitor("wandb")),
    "comet": (("comet_ml",), lambda: a_monitor("comet")),
    "photo scenes": (("skimage",), lambda: read_photograph.__wrapped__("cat")),
    "a drawing": (("matplotlib",), a_drawing),
}


@pytest.mark.parametrize("modules, work", WORK.values(), ids=WORK)
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(modules, work, monkeypatch, capsys):
    hide(monkeypatch, *modules)
    assert run_script(work) == USAGE_ERROR
    told = capsys.readouterr().err
    packages = [PACKAGE_OF.get(module, module) for module in modules]
    assert all(package in told for package in packages) and install_command(*packages) in told
    assert len(told.splitlines()) == 1 and "Traceback" not in told


@pytest.mark.parametrize("module", sorted(IMPORTED))
def test_so_is_one_that_any_import_lacks(module, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "torch.distributed", raising=False)
    hide(monkeypatch, module)
    assert run_script(lambda: importlib.import_module(f"{module}.anything")) == USAGE_ERROR
    told = capsys.readouterr().err
    package = PACKAGE_OF.get(module, module)
    assert told.startswith(f"error: {package} is not installed in {sys.executable}: {install_command(package)}")
    assert len(told.splitlines()) == 1


def test_other_errors_of_an_import_are_faults_with_their_traceback(capsys):
    for module in ("torch.no_such_module", "no_such_package"):
        assert run_script(lambda module=module: importlib.import_module(module)) == RUN_ERROR
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("rank, lines", [("0", 1), ("1", 0)])
def test_a_file_that_is_run_as_a_script_says_it_before_it_begins(rank, lines, monkeypatch):
    """As DeepSpeed's launcher runs it: one line of all ranks of a machine."""
    monkeypatch.setenv("LOCAL_RANK", rank)
    script = ROOT / "mats_ds" / "plan.py"
    start = f"sys.argv = ['plan.py']; runpy.run_path({str(script)!r}, run_name='__main__')"
    code = f"import sys, runpy; sys.modules['yaml'] = None; {start}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == USAGE_ERROR
    assert len(done.stderr.splitlines()) == lines
    assert not lines or ("pyyaml" in done.stderr and install_command("pyyaml") in done.stderr)


@pytest.mark.parametrize("program", ["mats_ds/visualize.py", "profiling/plan.py", "profiling/report.py", "profiling/scaling.py"])
def test_every_program_that_is_run_as_a_file_does(program):
    start = f"sys.argv = [{program!r}, 'x']; runpy.run_path({str(ROOT / program)!r}, run_name='__main__')"
    code = f"import sys, runpy; sys.modules['numpy'] = None; {start}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == USAGE_ERROR and len(done.stderr.splitlines()) == 1, done.stderr
    assert "numpy is not installed" in done.stderr


@pytest.mark.parametrize(
    "cuda, package", [("12.8", "nvidia-dali-cuda120"), ("13.0", "nvidia-dali-cuda130"), (None, "nvidia-dali-cuda130")]
)
def test_dali_is_that_of_the_cuda_that_torch_was_built_for(cuda, package, monkeypatch):
    hide(monkeypatch, "nvidia.dali")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(ValueError) as caught:
        GpuDecoder(size=(32, 48), device=torch.device("cpu"))
    assert install_command(package) in str(caught.value)


def test_a_picture_beside_results_is_left_out_with_the_command(monkeypatch, caplog, tmp_path):
    hide(monkeypatch, "matplotlib")
    assert not try_to_draw(a_drawing, tmp_path / "x.png")
    assert install_command("matplotlib") in caplog.text and "all other results are there" in caplog.text


class TestCommand:
    """`install_command` where a user stands."""

    @pytest.fixture
    def wheel(self, monkeypatch, tmp_path):
        monkeypatch.setattr(package_files, "PACKAGE", tmp_path / "site-packages" / "mats_ds")
        monkeypatch.setattr(package_files.shutil, "which", lambda name: str(Path(sys.executable).with_name(name)))

    def test_a_wheel_takes_its_extra_and_everything_else_its_name(self, wheel):
        assert install_command("onnx", "onnxruntime") == "pip install 'mats-ds[export]'"
        assert install_command("scikit-image") == "pip install 'mats-ds[examples]'"
        assert install_command("nvidia-dali-cuda120") == "pip install 'mats-ds[cuda12]'"
        assert install_command("deepspeed") == "pip install deepspeed"
        assert install_command("transformers") == "pip install transformers"

    def test_an_environment_without_pip_has_uv(self, wheel, monkeypatch):
        monkeypatch.setattr(package_files.shutil, "which", lambda name: f"/elsewhere/{name}")
        hide(monkeypatch, "pip")
        assert install_command("wandb") == f"uv pip install --python {sys.executable} wandb"

    def test_a_clone_has_launch_sh_and_another_environment_of_it_an_editable_extra(self, monkeypatch, tmp_path):
        (tmp_path / "launch.sh").write_text("")
        monkeypatch.setattr(package_files, "PACKAGE", tmp_path / "mats_ds")
        monkeypatch.setattr(package_files.shutil, "which", lambda name: str(Path(sys.executable).with_name(name)))
        monkeypatch.chdir(tmp_path)
        assert install_command("onnx") == "pip install -e '.[export]'"
        monkeypatch.setattr(package_files.sys, "prefix", str(tmp_path / ".venv"))
        assert install_command("onnx") == install_command("deepspeed") == "bash launch.sh setup"
        assert install_command("wandb") == "pip install wandb"


def test_the_shell_python_in_a_clone_is_told_of_the_environment_of_launch_sh(monkeypatch, tmp_path):
    monkeypatch.setattr(package_files, "PACKAGE", tmp_path / "mats_ds")
    monkeypatch.chdir(tmp_path)
    hide(monkeypatch, "PIL")
    missing = ModuleNotFoundError("No module named 'PIL'", name="PIL")
    (tmp_path / "launch.sh").write_text("")
    assert "run it with" not in describe_missing(missing)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text("")
    assert "pillow" in describe_missing(missing) and describe_missing(missing).endswith("run it with .venv/bin/python")


def test_the_extras_are_those_of_pyproject():
    requirements = read_requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    def names(extra):
        return {requirement.partition(">")[0].strip() for requirement in requirements[extra]}

    assert {name for name, extra in EXTRA_OF.items() if extra == ""} == names("dependencies")
    for extra in ("cuda12", "cuda13", *EXTRAS):
        ours = {name for name, brought in EXTRA_OF.items() if brought == extra}
        assert ours == names(extra) - {"torch"} or extra == "test"


def test_what_is_there_is_not_asked_for():
    check_packages("nothing", "torch", "yaml", "sys")
