"""The documentation as a site, from the pages in docs/ of a checkout: served, or written into a
folder.

    mats docs [--port N]      build it, serve it at http://localhost:8000/, and say so
    mats docs --build DIR     write it into DIR, which any web server can serve as it is

It needs the packages of the extra `docs`, and no network. A wheel holds no pages: there the command
says where they are. Exit status: 0 done, 1 the site has a fault, which is named, 2 wrong arguments,
or pages or packages that are not there, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import os
import socket
from importlib import metadata

from mats_ds.core.cli import ArgumentParser, leave, run_script
from mats_ds.core.storage.output_folder import hold_output_folder
from mats_ds.core.storage.package_files import check_packages
from mats_ds.core.text import quote_word, say
from mats_ds.distributed.process_group import Stopped, run_in_group

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "mkdocs.yml"
PORT = 8000
MODULES = ("mkdocs", "material", "mkdocstrings_handlers")  # of the extra `docs`


def main(arguments: list[str] | None = None) -> int:
    """Serve or build the site, return the exit status."""
    parser = ArgumentParser(description="Serve the documentation on this machine, or write it into a folder.")
    parser.add_argument("--build", metavar="DIR", help="write the site into this folder instead of serving it")
    parser.add_argument("--port", type=int, metavar="N", help=f"serve it at this port of localhost ({PORT}, or a free one)")
    options = parser.parse_args(arguments)
    return run_script(lambda: show_docs(build=options.build, port=options.port))


def show_docs(*, build: str | None, port: int | None) -> int:
    """The status of mkdocs. Raises ValueError without pages, without its packages, for a folder
    that holds something else and for a port that is taken."""
    config = ROOT / CONFIG
    if not (config.is_file() and (ROOT / "docs").is_dir()):
        raise ValueError(describe_missing_pages())
    try:
        check_packages("the site", *MODULES)
    except ValueError as error:
        raise ValueError(f"{error}; the pages are also plain text in {ROOT / 'docs'}") from None
    if build is not None:
        folder = Path(build).absolute()
        try:
            hold_output_folder(folder, command="docs")
        except ValueError as error:
            raise ValueError(str(error).replace("--out", "--build", 1)) from None
        task = ["build", "--strict", "--quiet", "--site-dir", str(folder)]
    else:
        address = f"localhost:{choose_port(port)}"
        say(f"building the site; then it is at http://{address}/ until Ctrl-C")
        task = ["serve", "--dev-addr", address]
    # material warns of another program's next version in a box of 30 lines
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    try:
        status = run_in_group([sys.executable, "-m", "mkdocs", *task, "--config-file", str(config)], environment)
    except Stopped as stopped:
        say(stopped, stream=sys.stderr)
        return 128 + stopped.number
    if build is not None and status == 0:
        serving = f"python -m http.server -d {quote_word(build)}"
        say(f"wrote the site into {folder}: any web server can serve it, for example  {serving}")
    return status


def describe_missing_pages() -> str:
    """Where the pages are, for somebody whose installation holds none."""
    urls = dict(url.split(", ", 1) for url in metadata.metadata("mats-ds").get_all("Project-URL") or ())
    address = urls.get("Documentation") or urls.get("Source") or urls.get("Repository") or urls.get("Homepage")
    where = f" at {address}" if address else ""
    return (
        f"a wheel holds no pages: they are plain text in the folder docs of the source distribution and of a clone{where}; in a "
        "clone  bash launch.sh docs  serves them"
    )


def choose_port(asked: int | None) -> int:
    """The port that was asked for, else PORT, or one that is free. Raises ValueError for a port
    that is none or taken."""
    if asked is not None and not 0 < asked < 1 << 16:
        raise ValueError(f"--port takes a number from 1 to 65535, got {asked}")
    for number in (asked or PORT, *(() if asked else (0,))):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("localhost", number))
            except OSError:
                continue
            return listener.getsockname()[1]
    raise ValueError(f"port {asked} of localhost is taken or not yours: choose another --port, or leave it out for a free one")


if __name__ == "__main__":
    leave(main())
