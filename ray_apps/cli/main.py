"""The command line `lrem`: one configuration, one command per stage, the same under `ray job submit`."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from lrem.errors import LremError
from ray_apps.cli import index, service, stages
from ray_apps.cli.backbone import backbone
from ray_apps.cli.plan import plan
from ray_apps.cli.status import status

INTERRUPTED = 130  # typer's exit code for Ctrl-C
errors = Console(stderr=True, soft_wrap=True)

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
    sys.exit(_run(app))


def _run(command: Callable[..., Any]) -> int:
    try:
        code = command(standalone_mode=False) or 0
        if code == INTERRUPTED:
            errors.print("stopped; nothing is left half written")
        return code
    except LremError as error:
        return _report(error, error.exit_code)
    except (FileNotFoundError, TimeoutError, ConnectionError) as error:
        return _report(error, 1)
    except Exception as error:
        if hasattr(error, "show"):  # a usage error; typer keeps its base class private
            error.show()
            return 2
        raise


def _report(error: Exception, code: int) -> int:
    errors.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, emoji=False)
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
