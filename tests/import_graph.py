"""Who imports whom in this repository, read from the source; and how many edges there are between
and inside its rooms.

python -m tests.import_graph [ROOT]
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("mats_ds", "profiling")
Edges = set[tuple[str, str]]


def read_imports(root: Path) -> dict[str, set[str]]:
    """Dotted name of each module of the product -> the modules of the product that it imports, late
    imports included.

    A name that a package hands on is followed to its module: `from mats_ds.data import manifest`,
    and the lazy names of `mats_ds/__init__.py`. `profiling/report_text.py` is
    `profiling.report_text`, also where it is imported by its bare name.
    """
    paths = {name_module(path, root): path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))}
    lazy = read_lazy_names(root)
    graph = {}
    for module, path in paths.items():
        found = set()
        for name in list_imported_names(path, module):
            known = next((prefix for prefix in (*_prefixes(name), *_prefixes(f"profiling.{name}")) if prefix in paths), None)
            found.add(lazy.get(name, known))
        graph[module] = found - {module, None}
    return graph


def name_module(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def read_lazy_names(root: Path) -> dict[str, str]:
    """`mats_ds.TokenGrid` and the like -> the module that has it."""
    text = (root / "mats_ds" / "__init__.py").read_text(encoding="utf-8")
    return {f"mats_ds.{name}": module for name, module in re.findall(r'^    "(\w+)": "(mats_ds[\w.]+)",$', text, re.MULTILINE)}


def list_imported_names(path: Path, module: str) -> set[str]:
    """Dotted names of every import in a file, wherever it stands, and of
    `importlib.import_module("...")`."""
    found = set()
    parents = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            found |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return found


def _prefixes(name: str) -> list[str]:
    """`a.b.c`, `a.b`, `a`: an imported name is a module, or something in one."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def room_of(module: str) -> str:
    """`data` of mats_ds.data.video.decode; `programs` of what lies in mats_ds/ itself, and of
    profiling/."""
    parts = module.split(".")
    return parts[1] if parts[0] == "mats_ds" and len(parts) > 2 else "programs"


def join_edges(graph: Mapping[str, Iterable[str]], group_of) -> Edges:
    """The edges between groups of modules; one edge however many imports it stands for."""
    pairs = {(group_of(module), group_of(other)) for module, others in graph.items() for other in others}
    return {(first, second) for first, second in pairs if first != second}


def count_levels(edges: Edges) -> int | None:
    """The length of the longest way along the edges, in boxes; None where they run in a circle."""
    boxes = {box for edge in edges for box in edge}
    level: dict[str, int] = {}
    while len(level) < len(boxes):
        ready = {box for box in boxes - level.keys() if all(low in level for high, low in edges if high == box)}
        if not ready:
            return None
        level |= {box: 1 + max((level[low] for high, low in edges if high == box), default=0) for box in ready}
    return max(level.values(), default=1)


def main(root: Path) -> None:
    graph = read_imports(root)
    modules = [module for module in graph if module not in ("mats_ds", "profiling")]
    rooms = sorted({room_of(module) for module in modules if module.count(".") > 1})
    between = join_edges({m: graph[m] for m in modules if room_of(m) in rooms}, room_of)
    print(f"between rooms: {len(rooms)} rooms, {len(between)} edges, levels: {count_levels(between) or 'a circle'}")
    print(f"| {'inside':14} | {'modules':>7} | {'edges':>5} | {'levels':>6} | {'boxes':>5} | {'edges between boxes':>19} |")
    for room in rooms:
        inside = {m: {o for o in graph[m] if room_of(o) == room} for m in modules if room_of(m) == room}
        edges = join_edges(inside, lambda module: module)
        boxes = join_edges(inside, lambda module: ".".join(module.split(".")[:3]))
        num_boxes = len({".".join(module.split(".")[:3]) for module in inside})
        print(
            f"| {room:14} | {len(inside):7} | {len(edges):5} | {count_levels(edges) or 'circle':>6} | "
            f"{num_boxes:5} | {len(boxes):19} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
