"""What every verb has in common: how results and mistakes reach the user."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec, TextIO

import typer

from egnn_md.cli.teaching import QUIET, example_first, teaching_signature
from egnn_md.storage import FULL

P = ParamSpec("P")


class UserError(ValueError):
    """A mistake in what the user asked for; the message says what to do."""


@dataclass(frozen=True)
class Outcome:
    """What a verb found out. Printed on stdout: `values` as JSON if `as_json`, else `show()`."""

    values: dict[str, Any]
    show: Callable[[], None]
    as_json: bool
    code: int = 0


def verb(function: Callable[P, Outcome]) -> Callable[P, int]:
    """Make a command of a function: all it prints goes to stderr, its outcome to stdout. Returns the exit code.

    The command has --quiet besides the function's own options, and a help that begins with the example.
    """
    own_quiet = QUIET in inspect.signature(function).parameters

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> int:
        silent = bool(kwargs.get(QUIET) if own_quiet else kwargs.pop(QUIET, False))
        global _results
        _results = sys.stdout
        with contextlib.redirect_stdout(sys.stderr), _quiet(silent):
            outcome = function(*args, **kwargs)
        if outcome.as_json:
            print(json.dumps(outcome.values, allow_nan=False))
        else:
            outcome.show()
        return outcome.code

    command.__signature__ = teaching_signature(function)  # type: ignore[attr-defined]
    command.__doc__ = example_first(function.__doc__ or "")
    return command


def announce(values: dict[str, Any]) -> None:
    """One JSON object on stdout now: what others must know of a verb that does not end."""
    print(json.dumps(values, allow_nan=False), file=_results, flush=True)


_results: TextIO = sys.stdout
"""Where results go; while a verb works, sys.stdout is stderr."""
_silent = False


@contextlib.contextmanager
def _quiet(silent: bool) -> Iterator[None]:
    """--quiet: no progress and no warnings."""
    global _silent
    before, _silent = _silent, _silent or silent
    try:
        with warnings.catch_warnings():
            if silent:
                warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        _silent = before


def shows_progress() -> bool:
    """Whether there is a terminal to draw a bar on, and nobody asked for quiet."""
    return not _silent and sys.stderr.isatty()


def say(text: str, always: bool = False) -> None:
    """One line on stderr; with --quiet only what must be said `always`: why the work failed."""
    if always or not _silent:
        print(f"egnn-md: {' '.join(text.split())}", file=sys.stderr)


def report_error(error: Exception) -> int | None:
    """Say what the user did wrong in one line, and give the exit code; None for an error that is our own."""
    if hasattr(error, "format_message") and isinstance(getattr(error, "exit_code", None), int):  # click's, typer's
        command = getattr(getattr(error, "ctx", None), "command_path", None) or "egnn-md"
        say(f"{error.format_message()} (see {command} --help)", always=True)
        return 2
    if isinstance(error, typer.Abort):
        return 130
    if isinstance(error, BrokenPipeError):
        sys.stdout = None  # the reader has gone: flushing at exit would fail again
        return 1
    if isinstance(error, ValueError) and type(error).__module__.startswith("egnn_md."):
        say(str(error), always=True)
        return 2
    if isinstance(error, OSError) and error.strerror is not None:
        told = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        what_to_do = ": make room, then go on (a run: with --resume)" if error.errno in FULL else ""
        say(told + what_to_do, always=True)
        return 2
    return None


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line on stderr, without source lines."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.filterwarnings("default", category=UserWarning)
        warnings.showwarning = show
        yield


def positive(name: str, value: int | None) -> None:
    """Raise UserError unless `value` is None or at least 1."""
    if value is not None and value < 1:
        raise UserError(f"--{name} must be at least 1, not {value}")


class progress_bar:  # noqa: N801
    """`with progress_bar(text) as progress:` a bar on stderr while it is a terminal; progress(done, total) moves it.

    A total of None is not known.
    """

    def __init__(self, text: str) -> None:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress

        console = Console(stderr=True)
        columns = (*Progress.get_default_columns(), MofNCompleteColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not shows_progress())
        self.task = self.bar.add_task(text, total=None)

    def __enter__(self) -> Callable[[int, int | None], None]:
        self.bar.start()
        return lambda done, total: self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def table(title: str, columns: list[str], rows: list[list[str]], numbers: bool = False) -> None:
    """Print a table on stdout; `numbers`: all columns but the first hold numbers."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    grid = Table(title=escape(title) or None, title_justify="left")
    for k, name in enumerate(columns):
        grid.add_column(escape(name), justify="right" if numbers and k else "left", overflow="fold", no_wrap=k == 0)
    for row in rows:
        grid.add_row(*map(escape, row))  # pip install 'egnn-md[train]' is no markup
    Console().print(grid)
