"""Pages as a browser shows them, wide and narrow, light and dark and printed: nothing overflows, is
cut off or hard to read, and nothing is loaded. Needs playwright and a Chromium of the system.
"""

import functools
import shutil

import pytest

from mats_ds.core.run_dir import Outcome, write_outcome
from mats_ds.planning.plan_file import write_plan
from tests.reporting.fake_runs import GIB, gpu_record, make_lifelike_record, make_plan, make_record, run_report, write_fake_run
from tests.reporting.test_report_html import PNG

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
PAPER = 700  # pixels between the margins of A4
WIDTHS = (320, 400, PAPER, 768, 1280)
FORMS = (("light", "screen"), ("dark", "screen"), ("light", "print"), ("dark", "print"))
LONG = "a-very-long-name-without-any-space-" * 5
EVIL = "<script>alert('x')</script>\"&'` --> </style>"
A100 = dict(device="cuda:0", device_name="NVIDIA A100-SXM4-80GB", precision="bf16", device_memory_bytes=84_987_084_800)

# Elements that are wider inside than outside (what scrolls or is cut off), texts of a chart beyond
# its edge, and texts with a contrast below 4.5 to 1 (WCAG 2.1, AA). `path` charts are left out.
FIND_FAULTS = """() => {
  const faults = [], root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`page: ${root.scrollWidth} > ${root.clientWidth}`);
  const name = (element) => `${element.tagName}.${element.getAttribute('class')} "${element.textContent.trim().slice(0, 40)}"`;
  const parse = (colour) => (colour.match(/[0-9.]+/g) || [0, 0, 0, 0]).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).map((value) => value / 255)
    .map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  for (const element of document.body.querySelectorAll('*')) {
    const box = element.getBoundingClientRect(), style = getComputedStyle(element);
    if (box.width === 0 || box.height === 0) continue;
    const svg = element.closest('svg');
    if (!svg && style.display !== 'inline' && element.scrollWidth > element.clientWidth + 1) {
      faults.push(`wider inside: ${name(element)} ${element.scrollWidth} > ${element.clientWidth}`);
    }
    if (box.right > root.clientWidth + 1 || box.left < -1) faults.push(`beyond the page: ${name(element)}`);
    if (svg && element.tagName === 'text') {
      const edge = svg.getBoundingClientRect();
      if (box.left < edge.left - 1 || box.right > edge.right + 1 || box.bottom > edge.bottom + 1 || box.top < edge.top - 1) {
        faults.push(`beyond the chart: ${name(element)}`);
      }
      if (parseFloat(style.fontSize) * edge.width / svg.viewBox.baseVal.width < 8) faults.push(`too small: ${name(element)}`);
    }
    const ownText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (ownText) {
      const [ink, paper] = [parse(svg ? style.fill : style.color), behind(element)].map(luminance);
      const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
      if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(2)}: ${name(element)}`);
    }
  }
  return faults;
}"""
FIND_UNSPOKEN = """() => {
  const faults = [], levels = [...document.querySelectorAll('h1, h2, h3')].map((heading) => Number(heading.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1 || levels[0] !== 1) faults.push(`headings ${levels}`);
  for (const picture of document.querySelectorAll('img:not([alt]), img[alt=""], svg:not([aria-label])')) {
    faults.push(picture.outerHTML.slice(0, 80));
  }
  return faults;
}"""


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def write_small_gpu_run(folder):
    """1.25 GiB of the 79 of its budget."""

    def record(step, rank):
        return make_record(
            step, rank, peak_reserved_bytes=GIB, peak_allocated_bytes=GIB * 9 // 10, nvml_used_bytes=GIB * 5 // 4,
            activation_bytes=GIB // 2, clip_bytes=GIB // 100,
        )  # fmt: skip

    static = {"weights": GIB // 16, "gradients": GIB // 16, "moments": GIB // 8, "buckets": GIB // 32}
    return write_fake_run(folder, record=record, world_size=1, static_bytes=static, **A100)


def write_long_run(folder):
    """Eight GPUs, a plan, a picture, long names and paths."""
    run_dir = write_fake_run(
        folder / LONG, num_steps=300, world_size=8, record=functools.partial(make_lifelike_record, num_steps=300),
        recipe_name=LONG, data_name=f"/data/{LONG}/{LONG}.csv", command=f"mats_ds/pretrain.py data.manifest=/{LONG}/{LONG}.csv",
        model_name=LONG, versions={"torch": "2.15.0+cu130", "commit": LONG}, **A100,
    )  # fmt: skip
    write_plan(run_dir, make_plan(assumptions=(LONG,), memory_error=0.07))
    (run_dir / "recipe.yaml").write_text(f"name: {LONG}\ndata: {{manifest: {LONG}{LONG}}}\n")
    (run_dir / "reconstruction.png").write_bytes(PNG)
    (run_dir / "bad_clips.csv").write_text(f"rank,step,path,sample,reason\n0,1,/{LONG}/{LONG}.mp4,1,{LONG}\n")
    return run_dir


def write_failed_run(folder):
    run_dir = write_fake_run(folder, record=gpu_record, outcome=None, device_name="NVIDIA Foo 9000", device="cuda:0")
    write_outcome(run_dir, Outcome(f"OutOfMemoryError: {LONG}", 9, 1.7e9, 1, f"lower {LONG}", "a.pickle"))
    return run_dir


def write_finetuning(folder):
    run_dir = write_fake_run(folder, task="finetune", num_steps=40)
    tests = [f'{{"step": {step}, "top1": {step / 50}, "top5": 0.9, "loss": {40 / step}}}\n' for step in range(10, 41, 10)]
    (run_dir / "evaluation.jsonl").write_text("".join(tests) + '{"step": 41, "top1"')
    (run_dir / "result.json").write_text('{"words": ["result: top-1 80.00% (95% interval 70.00 to 88.00) on 80 videos"]}')
    return run_dir


def write_evil_run(folder):
    run_dir = write_fake_run(
        folder, recipe_name=EVIL, model_name=EVIL, device_name=EVIL, command=EVIL, started=EVIL, data_name=EVIL,
        versions={EVIL: EVIL}, static_bytes={EVIL: GIB}, outcome=EVIL,
    )  # fmt: skip
    (run_dir / "recipe.yaml").write_text(EVIL)
    return run_dir


def look_at(browser, path):
    """Faults of a page in every form, with what it loads and what its console says."""
    said, loaded, faults = [], [], []
    page = browser.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"{request.url} failed"))
    page.on("request", lambda request: loaded.append(request.url))
    page.goto(path.absolute().as_uri())
    for width in WIDTHS:
        for scheme, media in FORMS:
            if (media == "print") is not (width == PAPER):
                continue
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme, media=media)
            faults += [f"{width} {scheme} {media}: {fault}" for fault in page.evaluate(FIND_FAULTS)]
    faults += page.evaluate(FIND_UNSPOKEN)
    page.close()
    assert [url for url in loaded if not url.startswith("data:")] == [path.absolute().as_uri()]
    assert said == []
    return faults


RUNS = {
    "cpu": write_fake_run,
    "small": write_small_gpu_run,
    "long": write_long_run,
    "failed": write_failed_run,
    "going on": functools.partial(write_fake_run, outcome=None),
    "one step": functools.partial(write_fake_run, num_steps=1, world_size=1),
    "fine-tuning": write_finetuning,
    "evil": write_evil_run,
}


@pytest.mark.parametrize("name", RUNS)
def test_a_report_fits_every_screen_and_loads_nothing(tmp_path, capsys, browser, name):
    run_dir = RUNS[name](tmp_path / "run")
    run_report(capsys, run_dir)
    faults = look_at(browser, run_dir / "report.html")
    assert faults == [], "\n".join(faults[:20])


@pytest.mark.parametrize("pair", [("cpu", "small"), ("long", "evil")])
def test_a_comparison_fits_every_screen_and_loads_nothing(tmp_path, capsys, browser, pair):
    runs = [RUNS[name](tmp_path / name) for name in pair]
    assert run_report(capsys, "--compare", *runs, "--html", tmp_path / "both.html")[0] == 0
    faults = look_at(browser, tmp_path / "both.html")
    assert faults == [], "\n".join(faults[:20])


def test_a_fault_would_be_found(tmp_path, browser):
    """The check itself: a page with one fault of each kind."""
    path = tmp_path / "page.html"
    path.write_text(
        "<!DOCTYPE html><html lang='en'><body style='margin:0'><h1>a</h1>"
        "<div style='width:100px;overflow:hidden;white-space:nowrap'>a text that is much longer than a hundred pixels</div>"
        "<p style='color:#999;background:#aaa'>pale</p><img src='data:,'><div style='width:2000px'>wide</div>"
        "<svg viewBox='0 0 100 20' width='100' aria-label='a'><text x='90'>beyond</text></svg>"
    )
    faults = " ".join(look_at(browser, path))
    for kind in ("page: ", "wider inside", "contrast", "beyond the page", "beyond the chart", "<img"):
        assert kind in faults


def test_kinds_of_memory_can_be_seen_on_a_small_run(tmp_path, capsys, browser):
    run_dir = write_small_gpu_run(tmp_path / "run")
    run_report(capsys, run_dir)
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.goto((run_dir / "report.html").absolute().as_uri())
    boxes = page.evaluate("[...document.querySelectorAll('.kinds .used i')].map((each) => each.getBoundingClientRect().width)")
    bar = page.evaluate("document.querySelector('.kinds').getBoundingClientRect().width")
    line = page.evaluate("document.querySelector('.kinds .budget').getBoundingClientRect()['width']")
    page.close()
    assert len(boxes) == 8  # four static kinds, clips, activations, cache, outside torch
    assert all(width >= 2 for width in boxes) and sum(boxes) > 0.7 * bar and max(boxes) > 0.2 * bar
    assert line > 0
