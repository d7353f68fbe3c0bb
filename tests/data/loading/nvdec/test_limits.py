"""What a GPU decodes is what the driver answers: here a small library in its place, compiled by the
test."""

import shutil
import subprocess

import pytest
import torch

from mats_ds.data.loading import loader as pipeline
from mats_ds.data.loading.nvdec import limits
from mats_ds.data.loading.nvdec.limits import Nvdec, ask_driver
from mats_ds.data.video.nvdec_support import CodecLimits

# The bytes of the answer by their offsets, as the driver has them: bytes 24 and 25, then numbers of
# 2, 4, 4, 4, 2 and 2 bytes. It knows H.264, and VP9 on a context only. 88 bytes are its own.
SOURCE = """
#include <stdint.h>
#include <string.h>
static int calls;
int cuvidGetDecoderCaps(unsigned char *caps) {
    int32_t codec, chroma; uint32_t bits;
    memcpy(&codec, caps, 4); memcpy(&chroma, caps + 4, 4); memcpy(&bits, caps + 8, 4);
    if (FAILS) return FAILS;
    if (chroma != 1 || bits != 0) return 1;
    for (int i = 12; i < 88; i++) if (caps[i]) return 2;
    if (codec != 4 && codec != 10) return 0;
    uint32_t large[3] = {codec == 4 ? 4096u : 8192u, 4080u, codec == 4 ? 65536u : 262144u};
    uint16_t small[2] = {codec == 4 ? 48 : 128, 32};
    caps[24] = 1; caps[25] = codec == 4 ? 7 : 5;
    memcpy(caps + 28, large, 12); memcpy(caps + 40, small, 4);
    calls++;
    return 0;
}
"""


@pytest.fixture
def driver(tmp_path):
    """`driver(FAILS=201)`: the path of a library that answers so."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")

    def build(**defines: int) -> str:
        source, library = tmp_path / "driver.c", tmp_path / "libdriver.so"
        source.write_text(SOURCE)
        chosen = [f"-D{name}={value}" for name, value in ({"FAILS": 0} | defines).items()]
        subprocess.run([compiler, "-shared", "-fPIC", *chosen, "-o", library, source], check=True)
        return str(library)

    return build


def test_the_driver_is_asked_for_every_codec(driver):
    nvdec = ask_driver(driver())
    assert nvdec.codecs == {
        "h264": CodecLimits((32, 48), (4080, 4096), 65536, num_engines=7),
        "vp9": CodecLimits((32, 128), (4080, 8192), 262144, num_engines=5),
    }
    assert nvdec.num_engines == 7 and not nvdec.problem
    assert nvdec.as_json()["codecs"]["h264"]["largest"] == (4080, 4096)


def test_without_the_library_the_container_is_told_what_it_lacks():
    nvdec = ask_driver("libno-such-driver.so.1")
    assert not nvdec.codecs and nvdec.num_engines == 0
    assert "NVIDIA_DRIVER_CAPABILITIES" in nvdec.problem and "`video`" in nvdec.problem and "\n" not in nvdec.problem


def test_a_driver_that_fails_or_is_too_old_says_so(driver, tmp_path):
    assert "CUDA error 201" in ask_driver(driver(FAILS=201)).problem
    source, library = tmp_path / "old.c", tmp_path / "libold.so"
    source.write_text("int cuvidCreateDecoder(void) { return 0; }")
    subprocess.run([shutil.which("gcc") or "cc", "-shared", "-fPIC", "-o", library, source], check=True)
    assert "too old" in ask_driver(str(library)).problem


def test_a_gpu_without_a_decoder_reads_with_pyav_and_says_why(monkeypatch, tmp_path, write_video):
    """The fake device is never used: there is nothing to decode on it."""
    write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(pipeline, "choose_num_graphs", lambda device, asked: 2)
    for home in ("mats_ds.data.loading.dali", "mats_ds.data.loading.loader", "mats_ds.data.loading.nvdec.route"):
        monkeypatch.setattr(f"{home}.find_nvdec", lambda device: Nvdec({}, limits.NO_LIBRARY))
    loader = pipeline.ClipLoader.from_manifest(tmp_path, batch_size=1, size=32)
    loader.device = torch.device("cuda", 0)
    assert loader.describe().startswith("PyAV decodes") and "NVIDIA_DRIVER_CAPABILITIES" in loader.describe()
    assert loader.decoding() == {"decoder": "PyAV", "nvdec": {"codecs": {}, "problem": limits.NO_LIBRARY}}
