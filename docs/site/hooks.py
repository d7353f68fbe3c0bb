"""What mkdocs does for this site alone: links that leave docs/ lead somewhere.

On GitHub `../../benchmarks/results/x.md` is a file of the repository. On the site the file comes
along, below files/: a .md page as a page, anything else as text. Links of those pages lead on in
the same way. A folder is named, and not linked.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?P<before>!?\[(?P<text>[^\]]*)\]\()(?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
ALONE = ("index.md", "troubleshooting.md")  # sections of one page, which need no list of pages
PICTURES = (".png", ".svg", ".gif", ".jpg")


def place_of(path: str) -> str:
    """Where a file of the repository is on the site, as mkdocs counts from docs/."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" if path.endswith((".md", *PICTURES)) else f"files/{path}.txt"


def path_of(src_uri: str) -> str:
    """The inverse of `place_of`, for pages."""
    return src_uri.removeprefix("files/") if src_uri.startswith("files/") else f"docs/{src_uri}"


def target_of(page: str, target: str) -> str | None:
    """The path in the repository that a link of the page `page` leads to; None where it leads to
    another site, or within the page."""
    if not target or "://" in target or target.startswith("mailto:"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def links_of(page: str) -> list[str]:
    """The paths that a page of the repository links."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = (target_of(page, match["target"]) for match in LINK.finditer(FENCE.sub("", text)))
    return [path for path in found if path]


def on_files(files: Files, *, config) -> Files:
    """Add the files outside docs/ that pages link, and those that these link."""
    seen: set[str] = set()
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    while waiting:
        for path in links_of(waiting.pop()):
            if path.startswith("docs/") or path in seen or not (ROOT / path).is_file():
                continue
            seen.add(path)
            content = (ROOT / path).read_bytes()
            level = InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, place_of(path), content=content, inclusion=level))
            if path.endswith(".md"):
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, *, page, config, files) -> str:
    """Turn the links of a page to where the files are on the site."""
    here = path_of(page.file.src_uri)
    if page.file.src_uri in ALONE:
        page.meta["hide"] = ["navigation"]

    def turn(match: re.Match[str]) -> str:
        path = target_of(here, match["target"])
        if path is None or (ROOT / path).is_dir():
            return match[0] if path is None else match["text"]
        place = posixpath.relpath(place_of(path), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match['before']}{place}{match['anchor'] or ''})"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(turn, part) for part in parts)
