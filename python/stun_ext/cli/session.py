# SPDX-License-Identifier: Apache-2.0
"""What every command shares: where its words go, how its errors become exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

EXIT_FAILURE = 1
EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130  # what a shell reports for a process that SIGINT ended


class Session:
    """One command at work. Results go to stdout, all else to stderr; quiet drops progress and notes."""

    def __init__(self, *, json_output: bool, quiet: bool) -> None:
        self.json_output = json_output
        self.quiet = quiet
        self._stdout: TextIO = sys.stdout
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def note(self, text: str) -> None:
        """A line for the person who waits."""
        self._console.print(text, markup=False, soft_wrap=True)

    def progress(self, phase: str, done: int, total: int) -> None:
        """Shows how far a phase is; the signature is that of the library's ``progress=`` callbacks."""
        self._show(phase, done, total, MofNCompleteColumn(), TimeElapsedColumn())

    def byte_progress(self, phase: str, done: int, total: int) -> None:
        """As `progress`, of a phase that counts bytes."""
        self._show(phase, done, total, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())

    def _show(self, phase: str, done: int, total: int, *columns: ProgressColumn) -> None:
        if self.quiet:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description:<24}"), BarColumn(), *columns, console=self._console
            )
            self._progress.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total)
        self._progress.update(self._tasks[phase], completed=done, total=total)

    def end_progress(self) -> None:
        """Leaves the bars as they are; a phase shown later starts new ones."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._tasks = {}

    def result(self, document: Mapping[str, Any], text: RenderableType) -> None:
        """Prints the command's result, once: the document with --json, else the text."""
        self.end_progress()
        if self.json_output:
            self._stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
        elif isinstance(text, str):
            self._stdout.write(text + "\n")
        else:
            console = Console(file=self._stdout)
            if not console.is_terminal:  # a pipe or a file has no width to fit into
                console = Console(file=self._stdout, width=160)
            console.print(text)
        self._stdout.flush()


@contextlib.contextmanager
def session(*, json_output: bool = False, quiet: bool = False) -> Iterator[Session]:
    """Runs a command's work.

    ``ValueError`` and a path that is missing or in the way are refused requests: message, no traceback,
    exit code 2. Any other ``OSError`` is the world's fault: message, exit code 1. Everything else is ours or
    a library's: traceback, exit code 1. Ctrl-C: 130. STUN_EXT_TRACEBACK=1 shows the traceback of every error.
    """
    current = Session(json_output=json_output, quiet=quiet)
    try:
        with contextlib.redirect_stdout(sys.stderr), _library_chatter(quiet):
            try:
                yield current
            finally:
                current.end_progress()
    except typer.Exit:
        raise
    except KeyboardInterrupt as error:
        _complain("interrupted", error, show_traceback=False)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (ValueError, FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        _complain(f"error: {error}", error, show_traceback=False)
        raise typer.Exit(EXIT_REFUSED) from None
    except OSError as error:
        _complain(f"error: {error}", error, show_traceback=False)
        raise typer.Exit(EXIT_FAILURE) from None
    except Exception as error:
        _complain(f"error: {type(error).__name__}: {error}", error, show_traceback=True)
        raise typer.Exit(EXIT_FAILURE) from None


def _complain(message: str, error: BaseException, *, show_traceback: bool) -> None:
    if show_traceback or os.environ.get("STUN_EXT_TRACEBACK"):
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    print(message, file=sys.stderr)
    for line in getattr(error, "__notes__", ()):
        print(line, file=sys.stderr)


@contextlib.contextmanager
def _library_chatter(quiet: bool) -> Iterator[None]:
    """Silences what Transformers and the hub's client say on their own, until the command ends."""
    if not quiet:
        yield
        return
    # Read when the libraries are imported, which happens inside the command.
    names = {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
