"""What lies in examples/ runs, from any folder, and shows what it says."""

import ast
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mats_ds import TokenGrid
from mats_ds.data.synthetic import write_synthetic_set
from mats_ds.models.weights.native import save_weights
from tests.exporting.models import make_autoencoder, weights

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def run_example(name, *arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)


def test_every_example_is_explained():
    page = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb") and path.name not in page] == []


def test_the_loop_in_plain_pytorch_is_short():
    lines = (EXAMPLES / "plain_pytorch.py").read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("def train"))
    end = next(number for number, line in enumerate(lines) if line.startswith("if __name__"))
    code = [line for line in lines[begin:end] if line.strip()]
    assert len(code) <= 30 and "deepspeed" not in "".join(code)


@pytest.mark.slow
def test_the_loop_in_plain_pytorch_learns(tmp_path):
    done = run_example("plain_pytorch.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("epoch")]
    assert len(losses) == 20 and min(losses[-3:]) < 0.97 * losses[0]


@pytest.mark.slow
def test_lightning_trains_the_autoencoder(tmp_path):
    pytest.importorskip("lightning")
    done = run_example("lightning_module.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "lightning_logs" / "version_0" / "metrics.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 20 and min(losses[-3:]) < 0.97 * losses[0]


IN_LIGHTNING = """
import lightning
from lightning_module import PreTraining

class Watched(PreTraining):
    def training_step(self, batch, batch_index):
        samples, bad = batch.sample_B.tolist(), [clip.path for clip in batch.bad]
        print("READ", [self.global_rank, self.current_epoch, samples, bad], flush=True)
        return super().training_step(batch, batch_index)

options = dict(accelerator="cpu", devices=2, logger=False, enable_progress_bar=False)
lightning.Trainer(max_epochs=2, **options).fit(Watched("clips", batch_size=2))
"""


@pytest.mark.slow
def test_ranks_of_lightning_split_an_epoch_and_go_on_after_an_unreadable_video(tmp_path):
    pytest.importorskip("lightning")
    write_synthetic_set(tmp_path / "clips", num_videos=7, num_frames=16, height=64, width=64)
    for name in ("manifest.csv", "motion.json"):
        (tmp_path / "clips" / name).unlink()
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "lightning_module.py").write_bytes((EXAMPLES / "lightning_module.py").read_bytes())
    (tmp_path / "watched.py").write_text(IN_LIGHTNING)
    done = run_example(tmp_path / "watched.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read = [ast.literal_eval(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("READ")]
    assert {(rank, epoch) for rank, epoch, _, _ in read} == {(0, 0), (0, 1), (1, 0), (1, 1)} and len(read) == 8
    for epoch in range(2):
        samples = [sample for _, number, samples, _ in read if number == epoch for sample in samples]
        bad = [path for _, number, _, paths in read if number == epoch for path in paths]
        # the broken one is the first by name, and another video stands in for it
        assert set(samples) == set(range(1, 8)) and len(samples) == 8
        assert [Path(path).name for path in bad] == ["broken.mp4"]


@pytest.mark.slow
def test_photo_videos_are_written_by_a_command(tmp_path):
    pytest.importorskip("skimage")
    size = ("--frames", 4, "--height", 48, "--width", 64)
    done = run_example("photo_videos.py", "clips", "--videos", 2, *size, cwd=tmp_path)
    assert done.returncode == 0 and "manifest.csv" in done.stdout, done.stderr
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 2
    again = run_example("photo_videos.py", "clips", "--videos", 3, *size, cwd=tmp_path)
    assert again.returncode == 2 and "empty or new folder" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.parametrize("candidates", [None, TokenGrid(num_frames=10, height=32, width=48, tubelet=(2, 8, 8))])
@pytest.mark.parametrize(("name", "opened"), [("look_at_motion.ipynb", "VIDEO"), ("probe_a_folder.ipynb", "FOLDER")])
def test_a_notebook_takes_a_run_of_any_length(tmp_path, monkeypatch, name, opened, candidates):
    """Clips of six frames, and of six that are selected of ten."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    stored = weights(make_autoencoder(**({} if candidates is None else {"candidate_grid": candidates})))
    save_weights(tmp_path / "model.safetensors", stored.spec, stored.state)
    manifest = write_synthetic_set(tmp_path / "set", num_videos=16, num_frames=20, height=48, width=64)
    source = manifest if opened == "FOLDER" else next(manifest.parent.glob("*.mp4"))
    given = {"RUN": str(tmp_path / "model.safetensors"), opened: str(source)}
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf()))
    names: dict = {"display": print}
    for cell in json.loads((EXAMPLES / name).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(line for line in cell["source"] if not line.startswith("%"))
            exec(code, names)
            names |= given
    pyplot.close("all")
    titles = [text for figure in shown for axis in figure.axes for text in (axis.get_title(), axis.get_ylabel())]
    assert len(shown) >= 2
    assert opened == "FOLDER" or any("reconstruct" in title for title in titles)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["look_at_motion.ipynb", "probe_a_folder.ipynb"])
def test_a_notebook_runs_from_top_to_bottom(tmp_path, name):
    """With the package, in an empty folder, whatever backend of matplotlib the shell has set; as it
    lies there it holds no outputs."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for needed in ("ipykernel", "skimage"):
        pytest.importorskip(needed)
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    client = nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2
    printed = "".join(output.get("text", "") for cell in code for output in cell.outputs)
    assert "lift-off, walk, slide, roll, drift" in printed or name != "probe_a_folder.ipynb"
