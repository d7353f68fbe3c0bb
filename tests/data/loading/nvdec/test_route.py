"""A run begins with how many files of a sample go to NVDEC, and why the others do not."""

import dataclasses

import pytest
import torch

from mats_ds.data.loading import loader as pipeline
from mats_ds.data.loading.nvdec.limits import Nvdec
from mats_ds.data.loading.nvdec.route import survey_route
from mats_ds.data.video.nvdec_support import NVDEC_LIMITS


@pytest.fixture(scope="module")
def paths(write_video, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("route")
    paths = [write_video(folder / f"{number}.mp4", num_frames=4, height=48, width=64) for number in range(5)]
    paths += [write_video(folder / f"b{number}.mp4", num_frames=4, height=48, width=72) for number in range(2)]
    paths += [write_video(folder / "c.mp4", num_frames=4, pixel_format="yuv444p"), folder / "gone.mp4"]
    return list(map(str, paths))


def test_counts_of_all_files_and_of_each_reason(paths):
    route = survey_route([*paths, paths[0]], NVDEC_LIMITS)
    assert (route.num_listed, route.num_seen, route.num_nvdec) == (9, 9, 5)
    assert route.reasons == {"sides that are no multiples of 16": 2, "4:4:4 colours": 1}
    said = route.describe()
    assert "5 of 9 files to NVDEC" in said and "3 to PyAV" in said and "no multiples of 16 (2), 4:4:4 colours (1)" in said
    assert "1 cannot be read" in said and "transcode" not in said


def test_where_pyav_has_most_of_them_the_way_out_is_named(paths):
    route = survey_route(paths, {"vp9": NVDEC_LIMITS["vp9"]})
    assert route.num_nvdec == 0 and route.reasons == {"this GPU does not decode h264": 8}
    assert "prepare transcode" in route.describe()


def test_a_long_list_is_sampled_within_a_time(paths, monkeypatch):
    route = survey_route(paths, NVDEC_LIMITS, max_files=3)
    assert route.num_seen == 3 and "of 3 files looked at (of 9)" in route.describe()
    assert survey_route(paths, NVDEC_LIMITS, max_seconds=-1.0).num_seen == 1
    assert survey_route([], NVDEC_LIMITS).describe() == "0 of 0 files to NVDEC"


def test_the_loader_says_it_and_has_it_for_the_record(paths, monkeypatch):
    nvdec = Nvdec({"h264": dataclasses.replace(NVDEC_LIMITS["h264"], num_engines=7)})
    for home in ("mats_ds.data.loading.dali", "mats_ds.data.loading.loader", "mats_ds.data.loading.nvdec.route"):
        monkeypatch.setattr(f"{home}.find_nvdec", lambda device: nvdec)
    from mats_ds.data.manifest import read_manifest

    folder = paths[0].rpartition("/")[0]
    loader = pipeline.ClipLoader.from_manifest(read_manifest(folder), batch_size=1, size=32)
    assert loader.decoding() == {"decoder": "PyAV"}
    loader.device = torch.device("cuda", 0)
    assert "route: 5 of 8 files to NVDEC; 3 to PyAV because of sides" in loader.describe()
    facts = loader.decoding()
    assert facts["decoder"] == "NVDEC" and facts["nvdec"]["codecs"]["h264"]["num_engines"] == 7
    assert facts["route"]["num_nvdec"] == 5 and facts["route"]["reasons"]["4:4:4 colours"] == 1
