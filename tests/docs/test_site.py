"""The site is built without a warning, and all its links and anchors lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from mats_ds import docs
from tests.docs.blocks import DOCS, ROOT, list_pages

LONGEST_PARAGRAPH = 1200  # characters: more is a wall


class Links(HTMLParser):
    """Links, names of anchors, and what a browser would fetch at once."""

    def __init__(self) -> None:
        super().__init__()
        self.links, self.anchors, self.fetched = set(), set(), set()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if tag in ("img", "script") and given.get("src"):
            self.fetched.add(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "preconnect") and given.get("href"):
            self.fetched.add(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "mats_ds" / "docs.py"), "--build", str(folder / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder / "out"


def read_site(site: Path) -> dict[Path, Links]:
    pages = {}
    for path in site.rglob("*.html"):
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_leads_somewhere(site):
    pages = read_site(site)
    assert len(pages) > 40
    dead = []
    for path, page in pages.items():
        for link in page.links | page.fetched:
            target, anchor = urldefrag(link)
            if "://" in target or target.startswith(("mailto:", "/")):
                continue
            file = path if not target else Path(os.path.normpath(path.parent / unquote(target)))
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (anchor and file in pages and unquote(anchor) not in pages[file].anchors):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert dead == []


@pytest.mark.slow
def test_the_site_asks_for_nothing_of_the_network_and_can_be_searched(site):
    fetched = {link for page in read_site(site).values() for link in page.fetched}
    assert fetched and [link for link in fetched if "://" in link or link.startswith("//")] == []
    assert "checkpoint" in (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "score_motion" in (site / "reference" / "python.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_blocks_of_commands_have_the_class_by_which_the_style_wraps_them(site):
    """Without it a narrow screen hides the end of every command."""
    assert ".language-bash pre > code" in (DOCS / "site" / "style.css").read_text(encoding="utf-8")
    pages = {path: path.read_text(encoding="utf-8") for path in (DOCS / "guides").glob("*.md")}
    for path, text in pages.items():
        built = (site / "guides" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert built.count('class="language-bash highlight"') == text.count("\n```bash\n"), path


@pytest.mark.slow
def test_a_folder_of_the_users_is_not_emptied(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    command = [sys.executable, str(ROOT / "mats_ds" / "docs.py"), "--build", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "thesis.tex" in done.stderr and "--build" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_without_pages_it_says_where_they_are(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert docs.main([]) == 2
    message = capsys.readouterr().err
    assert "wheel" in message and "bash launch.sh docs" in message and "Traceback" not in message


def test_without_its_packages_it_names_them(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "material", None)
    assert docs.main(["--build", "anywhere"]) == 2
    message = capsys.readouterr().err
    assert "mkdocs-material" in message and str(docs.ROOT / "docs") in message


def test_a_port_that_is_taken_is_named_and_another_found(capsys):
    import socket

    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(ValueError, match=str(taken)):
            docs.choose_port(taken)
    assert docs.choose_port(None) > 0
    with pytest.raises(ValueError, match="65535"):
        docs.choose_port(70_000)


def test_every_page_is_in_the_navigation():
    named = set(list_pages())
    assert {path for path in DOCS.rglob("*.md")} - named == set()


def test_pages_read_well_on_github():
    """No syntax that only the site knows, but for the names that mkdocstrings fills in."""
    for path in DOCS.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?m)^(!!!|\?\?\?|===) ", text), path
        assert path.name == "python.md" or "\n::: " not in text, path
        assert text.startswith("# "), path
        parts = re.split(r"\n\n|\n(?=- )", text)
        walls = [part[:60] for part in parts if "|" not in part and "```" not in part and len(part) > LONGEST_PARAGRAPH]
        assert walls == [], path


def test_lists_and_tables_begin_after_an_empty_line():
    """GitHub shows them without one, too; the site shows a paragraph with dashes and bars in it."""
    outside = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "examples/README.md")]
    found = []
    for path in [*DOCS.rglob("*.md"), *outside, *(ROOT / "benchmarks" / "results").glob("*.md")]:
        text = re.sub(r"(?ms)^```.*?^```$", "", path.read_text(encoding="utf-8"))
        for paragraph in text.split("\n\n"):
            lines = paragraph.strip("\n").split("\n")
            marks = ("- ", "* ", "1. ", "| ")
            if not lines[0].startswith((*marks, "#", "<!--")) and any(line.startswith(marks) for line in lines):
                found.append(f"{path.relative_to(ROOT)}: {lines[0][:60]}")
    assert found == []
