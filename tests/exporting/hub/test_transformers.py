"""The folder as its users load it, offline and in a process of their own: by AutoModel with its
code, and by VideoMAE's classes.

Runs with the installed transformers and with version 4, which uv puts into a folder of the test
(skipped without uv or the network); MATS_OTHER_TRANSFORMERS=FOLDER names a folder to use instead,
made by `uv pip install --target FOLDER --no-deps` of OTHER_PACKAGES.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mats_ds.exporting.hub.write import export_hub
from mats_ds.models.weights.load import load_encoder, load_model
from tests.exporting.models import make_autoencoder, make_classifier, make_clips, weights

pytest.importorskip("transformers")
OTHER = "MATS_OTHER_TRANSFORMERS"
OTHER_PACKAGES = ("transformers==4.57.6", "huggingface_hub<1", "tokenizers<0.23")
# What VideoMAEModel does not use of a classifier or of a pre-trained model; version 5 lists it.
HEADS = ("classifier.", "fc_norm.", "decoder.", "encoder_to_decoder.", "mask_token")
RTOL, ATOL = 1e-5, 5e-5
SCRIPT = """
import sys
import numpy as np, torch, transformers
from transformers import (AutoImageProcessor, AutoModel, AutoModelForVideoClassification, AutoVideoProcessor, VideoMAEModel,
    VideoMAEForPreTraining, VideoMAEForVideoClassification)

folder, clips, kind = sys.argv[1], np.load(sys.argv[2]), sys.argv[3]
assert "mats_ds" not in sys.modules
trusted = {"trust_remote_code": True}
found = {}
with torch.no_grad():
    pixels = AutoImageProcessor.from_pretrained(folder, **trusted)(list(clips))["pixel_values"]
    of_video = AutoVideoProcessor.from_pretrained(folder, **trusted)(videos=list(clips))["pixel_values"]
    assert torch.equal(pixels, of_video)
    found["pixels"] = pixels
    output = AutoModel.from_pretrained(folder, **trusted).eval()(pixel_values=pixels)
    found["features"], found["kept"] = output.pooler_output, output.token_index
    found["all"] = AutoModel.from_pretrained(folder, keep_ratio=1.0, **trusted).eval()(pixels).last_hidden_state
    found["dense"] = VideoMAEModel.from_pretrained(folder).eval()(pixels).last_hidden_state
    untrusted = AutoModel.from_pretrained(folder, trust_remote_code=False)
    assert type(untrusted) is VideoMAEModel
    if kind == "classifier":
        model = AutoModelForVideoClassification.from_pretrained(folder, **trusted).eval()
        found["logits"] = model(pixels).logits
        assert model.config.id2label == {number: name for number, name in enumerate("abcde")}
        dense = VideoMAEForVideoClassification.from_pretrained(folder).eval()
        found["dense logits"] = dense(pixels).logits
        assert dense.config.label2id["c"] == 2
        model.save_pretrained(folder + "-again")
        found["again"] = VideoMAEForVideoClassification.from_pretrained(folder + "-again").eval()(pixels).logits
        AutoImageProcessor.from_pretrained(folder, **trusted).save_pretrained(folder + "-again")
        again = AutoModelForVideoClassification.from_pretrained(folder + "-again", **trusted)
        found["again, selecting"] = again.eval()(pixels).logits
        assert torch.equal(AutoImageProcessor.from_pretrained(folder + "-again", **trusted)(list(clips))["pixel_values"], pixels)
    else:
        VideoMAEForPreTraining.from_pretrained(folder)
np.savez(sys.argv[4], **{name: tensor.numpy() for name, tensor in found.items()})
print(transformers.__version__)
"""


def run(folder, tmp_path, kind, other, version):
    np.save(tmp_path / "clips.npy", make_clips(6).numpy())
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": other, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "clips.npy"), kind, str(tmp_path / "found.npz")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(command, env={**environment, **offline}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for line in done.stderr.splitlines():
        is_head = line.startswith(HEADS) and "UNEXPECTED" in line
        is_legend = line.startswith("- UNEXPECTED")
        bad = any(word in line.lower() for word in ("newly initialized", "not used when", "mismatch", "unexpected", "missing"))
        assert is_head or is_legend or not bad, done.stderr[-5000:]
    assert version == "installed" or done.stdout.split()[-1].startswith(f"{version}.")
    return {name: torch.from_numpy(array) for name, array in np.load(tmp_path / "found.npz").items()}


@pytest.fixture(scope="module")
def other_transformers(tmp_path_factory):
    """The folder of another transformers than the installed one."""
    if os.environ.get(OTHER):
        return os.environ[OTHER]
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip(f"needs uv, or {OTHER}")
    folder = tmp_path_factory.mktemp("transformers")
    command = [uv, "pip", "install", "--python", sys.executable, "--target", str(folder), "--no-deps", *OTHER_PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        pytest.skip("the download took more than 240 s")
    if done.returncode:
        pytest.skip(f"uv could not install {', '.join(OTHER_PACKAGES)}: {done.stderr.strip()[-300:]}")
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["installed", "4"])
@pytest.mark.parametrize("kind", ["classifier", "pretrain"])
@torch.no_grad()
def test_a_folder_loads_offline_with_token_selection_and_without(kind, version, tmp_path, request):
    other = "" if version == "installed" else request.getfixturevalue("other_transformers")
    source = weights(make_classifier() if kind == "classifier" else make_autoencoder(keep_ratio=0.3))
    folder = tmp_path / "hub"
    export_hub(folder, source, source=Path("x.safetensors"), keep_ratio=None)
    assert all(path.suffix in (".json", ".py", ".md", ".safetensors") for path in folder.iterdir())
    found = run(folder, tmp_path, kind, other, version)
    kept = source.spec.pruning.keep_ratio
    encoder, dense = (load_encoder(source, keep_ratio=ratio, visible_ratio=ratio) for ratio in (kept, 1.0))
    # the processor scales 32 x 48 pictures: their middle square, to the size of the model
    std, mean = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    clips = ((found["pixels"] * std + mean) * 255).round().to(torch.uint8).movedim(2, -1).contiguous()
    torch.testing.assert_close(found["features"], encoder(clips).clone(), rtol=RTOL, atol=ATOL)
    assert found["kept"].shape == (3, int(kept * 72))
    torch.testing.assert_close(found["all"], found["dense"], rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(found["dense"], dense.tokens(clips).tokens_BKD.clone(), rtol=RTOL, atol=ATOL)
    if kind == "classifier":
        torch.testing.assert_close(found["logits"], load_model(source)(clips), rtol=RTOL, atol=ATOL)
        all_tokens = load_model(source, keep_ratio=1.0, visible_ratio=1.0)(clips)
        # its last LayerNorm has an eps of 1e-5 instead of 1e-6
        torch.testing.assert_close(found["dense logits"], all_tokens, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found["again"], found["dense logits"], rtol=RTOL, atol=ATOL)
        assert torch.equal(found["again, selecting"], found["logits"])
