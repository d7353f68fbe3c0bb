"""The report on run folders of any content: a verdict or one line, in bounded time, and a page
without code and nonsense."""

import contextlib
import io
import json
import math
import re
from dataclasses import asdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mats_ds import report
from mats_ds.metering.step_record import dump_record
from mats_ds.planning.plan_file import write_measured, write_plan
from tests.reporting.fake_runs import gpu_record, make_plan, make_record, make_run_info, write_fake_run
from tests.security.json_values import SCALARS, mutations, objects

HOSTILE = st.one_of(
    SCALARS,
    st.sampled_from([10**9, 10**15, 10**18, 10**400, 1e308, -1e308, 1e-320, -1, 0, True, math.nan, math.inf, "9" * 5000, [], {}]),
    st.sampled_from(["<script>alert(1)</script>", "javascript:alert(1)", "a\nb", "\x1b[31m", "\ud800", "x" * 6000, "\0"]),
)
NAMES = ["run.json", "outcome.json", "plan.json", "plan-measured.json", "result.json"]
WORDS = sorted(asdict(make_run_info("x")) | asdict(make_plan()) | {"outcome": 0, "parts": 0, "words": 0, "unix_seconds": 0})
LINE = json.loads(dump_record(gpu_record(2, 0)))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "run"


def write_sound(run_dir):
    for path in run_dir.glob("*"):
        if path.is_file():
            path.unlink()
    for path in run_dir.glob("records/*"):
        path.unlink()
    write_fake_run(run_dir, num_steps=4, record=gpu_record, device_name="NVIDIA A100-SXM4-80GB", peak_flops=312e12)
    write_plan(run_dir, make_plan(saved_bytes=7, assumptions=("a",)))
    write_measured(run_dir, saved_bytes=9)
    (run_dir / "result.json").write_text(json.dumps({"words": ["result: top-1 50%"], "top1": {"value": 0.5}}))


def judge(*arguments):
    """Status, text and errors; asserts what holds of every report."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = report.main([str(argument) for argument in arguments])
    assert errors.getvalue().count("\n") == (0 if arguments[0] == "--compare" and status == 0 else 1), errors.getvalue()
    assert len(errors.getvalue()) < 3_000 and len(out.getvalue()) < 100_000
    assert status in (0, 1) or (status == 2 and errors.getvalue().startswith("error: ") and not out.getvalue())
    assert not re.search(r"\b(nan|inf)\b", out.getvalue()), out.getvalue()
    return status


def check_page(run_dir):
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|<iframe|\bsrc=\"(?!data:image/png)|href=|url\(|@import|<[^>]* on\w+=", page)
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', re.sub(r"<style>.*?</style>", "", page, flags=re.S)), (
        "a nan in the drawing"
    )
    assert len(page) < 2_000_000
    refuse = {"parse_constant": lambda word: pytest.fail(f"{word} is not JSON")}
    json.loads((run_dir / "report.json").read_text(encoding="utf-8"), **refuse)


@given(name=st.sampled_from(NAMES), changes=st.dictionaries(st.sampled_from(WORDS), HOSTILE, min_size=1, max_size=3))
@example(name="run.json", changes={"world_size": 10**9})
@example(name="run.json", changes={"static_bytes": ["weights"]})
@example(name="run.json", changes={"static_bytes": {"weights": 10**400}})
@example(name="run.json", changes={"versions": 3})
@example(name="run.json", changes={"num_parameters": 10**400})
@example(name="run.json", changes={"peak_flops": 1e-300})
@example(name="run.json", changes={"world_size": 0})
@example(name="run.json", changes={"parts": [{"first_step": 1, "world_size": 10**9, "started": "", "command": ""}]})
@example(name="outcome.json", changes={"outcome": ""})
@example(name="outcome.json", changes={"outcome": "x" * 10**6})
@example(name="outcome.json", changes={"last_step": 10**15})
@example(name="plan.json", changes={"assumptions": 3})
@example(name="plan.json", changes={"clips_per_second": 1e-320})
@example(name="plan.json", changes={"bytes_by_kind": {"weights": -1}})
@example(name="plan-measured.json", changes={"saved_bytes": -5})
@example(name="result.json", changes={"words": ["x" * 10**6]})
@example(name="result.json", changes={"top1": math.nan})
def test_values_that_no_run_has(run_dir, name, changes):
    write_sound(run_dir)
    tree = json.loads((run_dir / name).read_text())
    (run_dir / name).write_text(json.dumps(tree | changes))
    if judge(run_dir) != 2:
        check_page(run_dir)
        assert judge("--compare", run_dir, run_dir) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b"", b"\xff\xfe{\0}\0", b"[" * 100_000, b'{"a":' * 50_000, b'{"schema": ' + b"9" * 5000 + b"}"]
    + [b'{"words": ["a"], "x": ' + b"[" * 500 + b"]" * 500 + b"}", b"{}" * 2**22],
    ids=["list", "null", "nothing", "utf-16", "nested list", "nested object", "digits", "deep", "long"],
)  # fmt: skip
def test_what_is_no_object(run_dir, name, content):
    write_sound(run_dir)
    (run_dir / name).write_bytes(content)
    assert judge(run_dir) == 2
    assert not (run_dir / "report.html").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(run_dir, name):
    write_sound(run_dir)
    text = (run_dir / name).read_text()
    (run_dir / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert judge(run_dir) == 0


@given(data=st.data())
def test_lines_that_no_run_writes(run_dir, data):
    write_sound(run_dir)
    lines = []
    for step in data.draw(
        st.lists(st.one_of(st.integers(1, 9), st.sampled_from([10**14, 10**18, -1, 0])), min_size=1, max_size=9)
    ):
        changes = data.draw(st.dictionaries(st.sampled_from(sorted(LINE)), HOSTILE, max_size=2))
        lines.append(json.dumps(LINE | {"step": step} | changes, separators=(",", ":")))
    content = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"
    if data.draw(st.booleans()):
        content = data.draw(mutations(content))
    (run_dir / "records" / "rank-00001.jsonl").write_bytes(content)
    if judge(run_dir) != 2:
        check_page(run_dir)


SOUND = dump_record(make_record(1, 0)).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"".join(b'{"schema":2,"step":%d}\n' % step for step in range(20_000, 0, -1)), "steps go back more than 10,000 times"),
        (b'{"schema":2,"step":1}\n' * 20_000, "steps go back more than 10,000 times"),
        (b"{}\n" * 20_000, "more than 10,000 lines"),
        (b"".join(b'{"schema":2,"step":%d}\n' % step for step in range(1, 20_000)), "more than 10,000 lines"),
        (SOUND + b'{"schema":2,"step":2,"a":"' + b"x" * 2**24 + b'"}\n', "line 2: longer than 16,384 bytes"),
        (SOUND + b"x" * 2**24, "line 2: longer than 16,384 bytes"),
        (SOUND + b'{"schema":2,"step":2,"a":' + b"[" * 15_000 + b"}\n", "line 2: "),
        (SOUND + b'{"schema":2,"step":2,' + b",".join(b'"k%d":1' % n for n in range(1500)) + b"}\n", "line 2: missing"),
        (SOUND + SOUND.replace(b'"step":1,', b'"step":1000000000000000000,'), "line 2: step is 1000000000000000000"),
        (SOUND + SOUND.replace(b'"step":1,', b'"step":2,').replace(b"}\n", b',"step":1}\n'), "given twice"),
        (SOUND.replace(b'"total_seconds":1.0', b'"total_seconds":NaN'), "total_seconds"),
        (SOUND.replace(b'"num_clips":3', b'"num_clips":-3'), "num_clips is -3"),
        # the year 951,000
        (SOUND.replace(b'"unix_seconds":1700000001.0', b'"unix_seconds":3e13'), "unix_seconds is"),
    ],
    ids=["falling", "repeated", "empty", "short", "long", "endless", "nested", "columns"]
    + ["step", "twice", "nan", "negative", "year"],
)
def test_records_that_no_run_has_are_named(run_dir, content, words, capsys):
    write_sound(run_dir)
    (run_dir / "records" / "rank-00000.jsonl").write_bytes(content)
    status = report.main([str(run_dir)])
    printed = capsys.readouterr()
    said = " ".join((printed.out + printed.err).split())
    assert words in said and status == (2 if "more than" in words else 1), said
    if status != 2:
        check_page(run_dir)


def test_a_run_of_many_ranks_has_a_page_that_can_be_read(run_dir):
    write_sound(run_dir)
    tree = json.loads((run_dir / "run.json").read_text())
    parts = [part | {"world_size": 10_000} for part in tree["parts"]]
    (run_dir / "run.json").write_text(json.dumps(tree | {"world_size": 10_000, "parts": parts}))
    for rank in range(400):
        (run_dir / "records" / f"rank-{rank:05d}.jsonl").write_bytes(SOUND)
    assert judge(run_dir) == 1
    check_page(run_dir)
    page = (run_dir / "report.html").read_text()
    assert len(page) < 200_000 and "ranks 400 to 9999 have no records" in page
    assert "the 64 ranks with the largest peaks" in page and "144 more" in page


@given(content=st.one_of(objects(["rank", "step"]).map(json.dumps), st.text(max_size=200), st.just('0,1,"' + "x" * 200_000)))
@example(content="0,1,<script>alert(1)</script>,2,=cmd|' /C calc'!A0\n")
@example(content="0,1,a\0b,2,c\r0,1,d,2,e\r")
def test_a_table_of_bad_videos_of_any_content(run_dir, content):
    write_sound(run_dir)
    (run_dir / "bad_clips.csv").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert judge(run_dir) == 0
    check_page(run_dir)
