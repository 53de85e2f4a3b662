"""The command `agenet`: finds and runs its commands, and reports mistakes in one line each."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from agenet import __version__
from agenet.errors import UserError, did_you_mean, one_line_errors

# In the order in which they are used. Each is `command` in the module of that name in this folder.
COMMANDS = (
    "prepare",
    "train",
    "evaluate",
    "report",
    "folds",
    "sweep",
    "predict",
    "webcam",
    "serve",
    "export",
    "port",
    "push",
    "compare",
)
COMPLETION = "_AGENET_COMPLETE"  # the variable that Click reads for shell completion

HELP = """\
Age and gender classification from face images, in JAX and Flax.

"agenet COMMAND --help" shows the options of a command.
"""
EPILOG = f"""\
\b
Completion of commands, options and names in the shell:
  bash  eval "$({COMPLETION}=bash_source agenet)"  in ~/.bashrc
  zsh   eval "$({COMPLETION}=zsh_source agenet)"  in ~/.zshrc
  fish  {COMPLETION}=fish_source agenet | source  in config.fish
"""


class Commands(click.Group):
    """Imports the module of a command only when that command is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return import_module(f"agenet.cli.{name}").command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        if name not in COMMANDS and not context.resilient_parsing:
            raise UserError(f"there is no command {name}{did_you_mean(name, COMMANDS)}")
        return super().resolve_command(context, arguments)


group = Commands(
    "agenet",
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
click.version_option(__version__, message="agenet %(version)s")(group)


def run_command(arguments: Sequence[str]) -> None:
    """Runs one command in this process.

    Args:
        arguments: the command's name and its arguments, as typed in a shell.

    Raises:
        UserError: a mistake in the arguments, or one that the command reports.
        SystemExit: the command, or its help, has ended with an exit code.
    """
    try:
        with group.make_context("agenet", list(arguments) or ["--help"]) as context:
            group.invoke(context)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.UsageError as error:
        raise UserError(_describe(error)) from error


def _describe(error: click.UsageError) -> str:
    """One line on a mistake in the arguments, with the nearest option where one is unknown."""
    where = f"see {error.ctx.command_path} --help" if error.ctx else "see agenet --help"
    if isinstance(error, click.NoSuchOption) and error.ctx:
        parameters = error.ctx.command.get_params(error.ctx)
        known = [name for p in parameters for name in p.opts if name.startswith("--")]
        nearest = did_you_mean(error.option_name, known)
        return f"there is no option {error.option_name}{nearest} ({where})"
    message = " ".join(error.format_message().split()).rstrip(".")
    if message[1:2].islower():
        message = message[:1].lower() + message[1:]
    return f"{message}, {where}"


def main(*first: str) -> None:
    """Runs the command that the process was started with, and exits.

    Args:
        first: arguments that come before those of the process, such as the name of a command.
    """
    if COMPLETION in os.environ:
        group.main(prog_name="agenet")
    with one_line_errors():
        run_command([*first, *sys.argv[1:]])
