"""README: short, with links that lead somewhere, and lines that run. tests/docs runs
those of docs/."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
MAX_README_LINES = 150


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_readme_is_read_in_one_sitting():
    assert len(README.read_text(encoding="utf-8").splitlines()) < MAX_README_LINES


def test_every_link_leads_to_a_file():
    dead = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                dead.append(f"{page.name}: {target}")
    assert dead == []


def test_every_file_that_a_page_names_is_there():
    """Of ours, named with a folder: `mats_ds/data/manifest.py`, `core/storage/files.py`,
    `docs/guides/prepare.md`."""
    missing = []
    for page in PAGES:
        text = re.sub(r"https?://\S+", "", page.read_text(encoding="utf-8"))
        for name in set(re.findall(r"(?<![\w./-])((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|yaml|json|sh))\b", text)):
            if not any((folder / name).exists() for folder in (ROOT, ROOT / "mats_ds", ROOT / "mats_ds" / "data")):
                missing.append(f"{page.name}: {name}")
    assert [name for name in missing if "runs/" not in name] == []


def test_the_tree_of_readme_names_every_room():
    tree = README.read_text(encoding="utf-8").partition("## Where everything is")[2]
    rooms = {path.parent.name for path in (ROOT / "mats_ds").glob("*/__init__.py")}
    programs = {path.name for path in (ROOT / "mats_ds").glob("*.py")} - {"__init__.py"}
    assert {name for name in rooms if f"  {name}/" not in tree} == set()
    assert {name for name in programs if name not in tree} == set()


def test_the_lines_that_select_tokens_run():
    (code,) = [block for block in python_blocks(README) if "select_tokens" in block]
    names = {}
    exec(code.replace("torch.randint(0, 256, (2, 16,", "torch.randint(0, 256, (1, 16,"), names)
    assert names["loss"].ndim == 0 and names["kept"].visible_BV.shape == (2, 156)
