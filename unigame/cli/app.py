"""The command line's parser: one click group that each module of a command adds itself to.

``unigame --help`` imports all of these modules, so at their top they import nothing heavy.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import click

from unigame import __version__
from unigame.errors import UserError
from unigame.system.threads import share_cores

F = TypeVar("F", bound=Callable[..., Any])


class _Argument(click.Argument):
    """An argument with a help text, which older clicks do not have."""

    def __init__(self, *args: Any, help: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.text = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.make_metavar(ctx), self.text


class _Option(click.Option):
    """An option that may stand in a group of its own in the help."""

    def __init__(self, *args: Any, group: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.group = group


class _Command(click.Command):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            usual = "Arguments" if isinstance(param, _Argument) else "Options"
            if record := param.get_help_record(ctx):
                groups.setdefault(getattr(param, "group", usual), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        """Arguments are read by now, and torch is not imported yet."""
        _quiet_libraries()
        _require_current_folder()
        share_cores()
        return super().invoke(ctx)


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of their use


@click.group(
    cls=_Group,
    no_args_is_help=False,
    epilog="Start with: unigame demo --quick",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="unigame", message="%(prog)s %(version)s")
def app() -> None:
    """Post-train a unified multimodal model by letting it play its own adversary."""


def command(summary: str, **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Add a command. Its docstring is what its ``--help`` says; ``summary`` is for the list."""
    return app.command(cls=_Command, short_help=summary, **settings)


def argument(name: str, help: str, **settings: Any) -> Callable[[F], F]:
    """A word of the command; texts are taken as they are."""
    return click.argument(name, cls=_Argument, help=help, **settings)


def option(*names: str, group: str = "Options", **settings: Any) -> Callable[[F], F]:
    """``--name`` of the command; ``group`` is the heading that it stands under in the help."""
    return click.option(*names, cls=_Option, group=group, show_default=True, **settings)


def _quiet_libraries() -> None:
    """Keep library chatter out of our output, unless the user asked for it in the environment."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Deprecations between transformers and peft concern neither the user nor us.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no")


def _require_current_folder() -> None:
    """Libraries ask for it in many places, and fail one by one where it was deleted."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the current folder is gone or closed to you ({error.strerror}); cd to another one"
        ) from error
