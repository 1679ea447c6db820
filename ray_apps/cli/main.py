"""The command line `lrem`: one configuration, one command per stage, the same under `ray job submit`."""

import errno
import io
import signal
import sqlite3
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError

from lrem.errors import LremError
from ray_apps.cli import index, service, stages
from ray_apps.cli.backbone import backbone
from ray_apps.cli.plan import plan
from ray_apps.cli.status import status
from ray_apps.cluster.proxies import exempt_this_machine

INTERRUPTED = 130  # typer's exit code for Ctrl-C
errors = Console(stderr=True, soft_wrap=True)
OTHER_PATH = "choose another run_dir or another path in `paths`"
REMEDIES = {
    errno.EACCES: f"get the permission to use it, or {OTHER_PATH}",
    errno.EPERM: f"get the permission to use it, or {OTHER_PATH}",
    errno.EROFS: f"the disk cannot be written; {OTHER_PATH}",
    errno.ENOSPC: f"the disk is full; free some space, or {OTHER_PATH}",
    errno.EDQUOT: f"your quota is used up; free some space, or {OTHER_PATH}",
    errno.ENOTDIR: f"a part of the path is a file; {OTHER_PATH}",
    errno.EISDIR: "it is a folder; pass a file",
    errno.ENOENT: "pass a path that exists",
    errno.ENAMETOOLONG: "pass a shorter path",
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Large Reasoning Embedding Models: product search that reasons before it retrieves.",
)
app.command()(stages.world)
app.command("import")(stages.import_sources)
app.command()(stages.bootstrap)
app.command()(stages.curate)
app.command()(backbone)
app.command()(stages.cold_start)
app.command()(stages.mine_negatives)
app.command()(stages.reinforce)
app.command()(stages.embed)
app.add_typer(index.app, name="index")
app.command()(stages.evaluate)
app.command()(service.serve)
app.command()(service.search)
app.command()(service.demo)
app.command()(status)
app.command()(plan)


def main() -> None:
    """Run a command: a known error ends in one line and its exit code (1, or 2 for settings), Ctrl-C in 130."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that `ray job stop` ends a job like Ctrl-C
    exempt_this_machine()
    for argument in sys.argv:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            sys.exit(_report(f"the argument {argument!a} is not in UTF-8: set the terminal to UTF-8, or use a file", 2))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may know fewer characters than a title
    sys.exit(_run(app))


def _run(command: Callable[..., Any]) -> int:
    try:
        code = command(standalone_mode=False) or 0
        if code == INTERRUPTED:
            errors.print("stopped; nothing is left half written")
        return code
    except Exception as error:
        code = _handle(error)
        if code is None:
            raise
        return code


def _handle(raised: Exception) -> int | None:
    """Print an error that a user can act on, and return its exit code; None for a bug."""
    error = getattr(raised, "cause", None) or raised  # a RayTaskError's own text is a worker's traceback
    if isinstance(error, LremError):
        return _report(error, error.exit_code)
    if isinstance(error, TimeoutError | ConnectionError):
        return _report(error, 1)
    if isinstance(error, OSError | UnicodeError | sqlite3.Error):
        return _report(_explain(error), 1)
    if isinstance(error, SafetensorError):
        return _report(f"weights could not be written or read ({error}): check the disk of run_dir", 1)
    if hasattr(error, "show"):  # a usage error; typer keeps its base class private
        error.show()
        return 2
    return None


def _explain(error: OSError | UnicodeError | sqlite3.Error) -> str:
    """Return one line about an error of the machine: which path or text, what is wrong, what to do."""
    if isinstance(error, UnicodeError):
        return f"a text is not valid Unicode ({error}): write files and arguments in UTF-8"
    if isinstance(error, sqlite3.Error):
        return f"SQLite cannot write its file ({error}): free some space on the disk of run_dir, or {OTHER_PATH}"
    if error.errno is None:  # raised with a message of our own
        return str(error)
    place = error.filename2 or error.filename
    text = f"{place}: {error.strerror}" if place and error.strerror else str(error)
    return f"{text}: {REMEDIES.get(error.errno, 'check the path and the machine')}"


def _report(error: Exception | str, code: int) -> int:
    errors.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, emoji=False)
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
