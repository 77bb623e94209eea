"""The command line: finds the command, imports it only when it is run, and prints errors as one line."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from tokenzoo import __version__
from tokenzoo.errors import UserError
from tokenzoo.text import accept_any_terminal, one_line
from tokenzoo.zoo.errors import PluginError, kept_from_ending

#: Every command and its line in `tokenzoo --help`; the command itself is `command` in tokenzoo/commands/NAME.py.
COMMANDS = {
    "compare": "Compare methods in one table: accuracy, FLOPs, time, memory.",
    "tune": "Search a method's parameters at one cost.",
    "calibrate": "Fit a method's parameters to a model, as a preset.",
    "recommend": "List the settings that fit a budget on a GPU.",
    "results": "List and export stored results.",
    "run": "Answer a question about an image or video with a method.",
    "show-kept": "Draw which patches a method keeps, layer by layer.",
    "study": "Run one of the built-in studies.",
    "cost": "Price methods on a model and a GPU, without running them.",
    "reproduce": "Recompute the tables of a paper.",
    "list": "List the methods.",
    "show": "Show a method: parameters, hooks, paper, presets.",
    "plugins": "Show what is loaded, from where, and what failed.",
    "new": "Start a method of your own: a distribution ready to install.",
    "serve-check": "Compare a method served by vLLM with the same in Hugging Face.",
    "check": "Test a method against the host's guarantees.",
}


#: A message that repeats what was typed is cut in its middle where that was longer than this.
LONGEST = 1200
#: Why a write can fail through no fault of the program: no room left, or a device that is gone.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help lines, and imports a command only to run it."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"tokenzoo.commands.{name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        name = arguments[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.6)
            hint = f"Did you mean '{close[0]}'?" if close else f"Choose from: {', '.join(COMMANDS)}."
            context.fail(f"No such command '{name}'. {hint}")
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, context: click.Context) -> Any:
        with kept_from_ending():  # click would take a plugin's KeyboardInterrupt for the user's
            return super().invoke(context)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Load a method from a single Python file. May be given several times.",
)
@click.option(
    "--registry",
    "registries",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Read a further registry (methods, architectures, hardware). May be given several times.",
)
@click.version_option(__version__, prog_name="tokenzoo")
def cli(plugins: tuple[Path, ...], registries: tuple[Path, ...]) -> None:
    """Training-free visual-token reduction for multimodal LLMs: methods side by side, compared fairly."""
    if plugins or registries:
        from tokenzoo.zoo.plugins import configure

        configure(plugins, registries)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0, 1 failed work, 2 wrong use, 130 interrupted."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code. Errors that are bugs keep their traceback."""
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {one_line(str(message))}\n"
    accept_any_terminal()
    try:
        result = cli.main(args=arguments, prog_name="tokenzoo", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _fail(_with_help(error), error.exit_code)
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except PluginError as error:
        return _fail(f"A plugin cannot be used: {error}", 1)
    except (click.Abort, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        _drop_output()
        return _fail(f"Cannot write the output: {error.strerror}.", 1)


def _fail(message: str, code: int) -> int:
    """Print an error on one line; return the exit code."""
    line = one_line(message)
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    print(f"Error: {line}", file=sys.stderr)
    return code


def _with_help(error: click.ClickException) -> str:
    """click's message, and where a wrong use is explained."""
    message = error.format_message()
    command = getattr(error, "ctx", None)
    if command is None or "Run '" in message:
        return message
    return f"{message} Run '{command.command_path} --help'."


def _drop_output() -> None:
    """Send what is still buffered nowhere: Python would fail on it once more as it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
