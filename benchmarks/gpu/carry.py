"""Bring the packages of a machine without network there, in parts of a limited size; see README.md.

Where there is a network, `pack` installs what a GPU machine lacks for its Python, leaves out what
only other Pythons load, and writes parts: `1/base.tar.xz` (PyAV, DeepSpeed, pydantic ...), and DALI
cut into pieces. On the machine, `unpack` collects the parts that have come and unpacks what is
whole; it needs the standard library only, and runs again for every part.

    python benchmarks/gpu/carry.py pack --python 3.12 --part_mib 50
    python3 benchmarks/gpu/carry.py unpack --site DIR
"""

from __future__ import annotations

import argparse
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
# What images with torch do not have; the versions are those of the environment that packs.
BASE = ("annotated-types", "pydantic", "pydantic-core", "typing-inspection", "hjson", "av", "deepspeed", "pyyaml", "psutil")
BASE += ("py-cpuinfo", "msgpack", "tqdm", "einops", "timm", "nvidia-ml-py", "safetensors")
DALI = ("astunparse", "gast", "optree", "six", "nvidia-dali-cuda130")
# Most of it is machine code, for whose addresses the first filter is made.
FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 32 * MIB}]
NOT_LOADED = ("nvidia/dali/include", "nvidia/dali/test", "bin")


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    return pack(options) if options.action == "pack" else unpack(options)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="carry.py", description=__doc__.split("\n\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    packing = actions.add_parser("pack", help="write the parts, where there is a network")
    packing.add_argument("--python", default="3.12", metavar="X.Y", help="Python of the GPU machine (default: 3.12)")
    packing.add_argument("--platform", default="x86_64-manylinux_2_28", help="its platform, as uv names it")
    packing.add_argument("--part_mib", type=int, default=50, metavar="N", help="largest part, in MiB (default: 50)")
    packing.add_argument("--without", nargs="+", default=[], metavar="PACKAGE", help="packages that it has")
    unpacking = actions.add_parser("unpack", help="on the GPU machine: collect the parts and unpack what is whole")
    unpacking.add_argument("--site", type=Path, required=True, metavar="DIR", help="where to unpack; goes on PYTHONPATH")
    for action in (packing, unpacking):
        action.add_argument("--parts", type=Path, default=ROOT / ".whl", metavar="DIR", help="folder of the parts (.whl)")
    return parser.parse_args(arguments)


def pack(options: argparse.Namespace) -> int:
    if shutil.which("uv") is None:
        print("error: uv is not found: pip install uv", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        archives = []
        for name, packages in (("base", BASE), ("dali", DALI)):
            wanted = [pin(package) for package in packages if package not in options.without]
            site = Path(folder) / name
            command = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(site), "--python-version", options.python]
            subprocess.run([*command, "--python-platform", options.platform, *wanted], check=True)
            archives.append(compress(site, Path(folder) / f"{name}.tar.xz", python=options.python))
        written = cut(*archives, into=options.parts, part_bytes=options.part_mib * MIB)
    for part in written:
        print(f"{part}: {sum(file.stat().st_size for file in part.iterdir()) / MIB:.1f} MiB")
    return 0


def pin(package: str) -> str:
    """The package at the version that is installed here, which was tested."""
    try:
        return f"{package}=={metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package


def compress(site: Path, archive: Path, *, python: str) -> Path:
    """An archive of what that Python can load of a folder of packages."""
    ours = f"cpython-{python.replace('.', '')}-"

    def choose(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = member.name.removeprefix("./")
        of_others = re.search(r"\.cpython-\d+t?-", name) is not None and ours not in name
        left_out = (
            of_others
            or name.endswith((".a", ".pyc", ".pyi"))
            or any(name == path or name.startswith(f"{path}/") for path in NOT_LOADED)
        )
        return None if left_out else member

    with lzma.open(archive, "wb", filters=FILTERS) as file, tarfile.open(fileobj=file, mode="w|") as packed:
        packed.add(site, arcname=".", filter=choose)
    return archive


def cut(base: Path, dali: Path, *, into: Path, part_bytes: int) -> list[Path]:
    """Folders 1, 2, ...: the base as a whole, and as many bytes of DALI as have room beside it and
    in each of the others. Names of pieces say how many there are."""
    if base.stat().st_size > part_bytes:
        raise SystemExit(f"error: {base.name} has {base.stat().st_size / MIB:.0f} MiB: give a larger --part_mib, or --without")
    content = dali.read_bytes()
    first = part_bytes - base.stat().st_size
    pieces = [content[:first], *(content[at : at + part_bytes] for at in range(first, len(content), part_bytes))]
    folders = [into / str(number) for number in range(1, len(pieces) + 1)]
    for older in [*into.glob(f"*/{base.name}"), *into.glob(f"*/{dali.name}.*")]:
        older.unlink()
    for number, (folder, piece) in enumerate(zip(folders, pieces, strict=True), 1):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{dali.name}.{number}of{len(pieces)}").write_bytes(piece)
    shutil.copy(base, folders[0])
    return folders


def unpack(options: argparse.Namespace) -> int:
    """Keep the parts beside the site, since the next call may bring a fresh checkout."""
    kept = options.site.with_name(f"{options.site.name}-parts")
    kept.mkdir(parents=True, exist_ok=True)
    for file in sorted(options.parts.glob("[0-9]*/*")):
        shutil.copy(file, kept)
    if not any(kept.iterdir()):
        print(
            f"error: no part in {options.parts}: name the folder that holds 1, 2, ... (or one of them) with --parts",
            file=sys.stderr,
        )
        return 2
    options.site.mkdir(exist_ok=True)
    archives = [file for file in kept.iterdir() if file.suffix == ".xz"]
    pieces = {
        int(match[1]): (file, int(match[2])) for file in kept.iterdir() if (match := re.search(r"\.(\d+)of(\d+)$", file.name))
    }
    if pieces and len(pieces) == next(iter(pieces.values()))[1]:
        whole = kept / "dali.tar.xz"
        with whole.open("wb") as joined:
            for _, (file, _) in sorted(pieces.items()):
                joined.write(file.read_bytes())
        archives.append(whole)
    elif pieces:
        print(f"DALI: {len(pieces)} of {next(iter(pieces.values()))[1]} pieces have come")
    for archive in dict.fromkeys(archives):
        done = options.site / f".{archive.name}"
        if done.exists() and done.read_text() == str(archive.stat().st_size):
            continue
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(options.site, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            print(
                f"error: {archive.name} did not arrive whole ({error}): remove {kept} and bring all parts again", file=sys.stderr
            )
            return 1
        done.write_text(str(archive.stat().st_size))
        print(f"unpacked {archive.name} into {options.site}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
