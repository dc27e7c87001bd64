"""``unigame backbones``: which model families there are, what each can do, what is installed.

Nothing heavy is imported here: the list is there at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from unigame.cli.app import command, option
from unigame.cli.endings import next_step

if TYPE_CHECKING:
    from rich.table import Table

    from unigame.backbones.registry import Family

_UNKNOWN = "-"


@command("list the model families: what each can do, what is installed")
@option("--json", "as_json", is_flag=True, help="the same for programs")
def backbones(as_json: bool) -> None:
    """List the model families: a table, then what is to be known of each."""
    from rich.text import Text

    from unigame.backbones.registry import BUILT_IN, list_families
    from unigame.system.console import make_console

    families = list_families()
    if as_json:
        sys.stdout.write(json.dumps([asdict(family) for family in families], indent=2) + "\n")
        return
    console = make_console()
    console.print(Text("Model families", style="bold"))
    console.print(_overview(families))
    for index, family in enumerate(families):
        console.print(Text("\n" * bool(index) + family.model_type, style="bold"))
        console.print(_details(family))
    next_step(
        f"will it fit here?  unigame doctor --model {BUILT_IN[0].examples[0]}",
        "add a family of your own:  docs/add-a-backbone.md",
    )


def _overview(families: Sequence[Family]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("model_type", no_wrap=True)
    table.add_column("draws", no_wrap=True)
    table.add_column("pictures\na question", justify="right")
    table.add_column("guid-\nance")
    table.add_column("from", overflow="fold")
    table.add_column("here", overflow="fold")
    for family in families:
        info = family.info
        source = "built in" if family.source == "unigame" else family.source
        table.add_row(
            Text(family.model_type),
            info.drawing if info else _UNKNOWN,
            str(info.max_images) if info else _UNKNOWN,
            ("yes" if info.guidance else "no") if info else _UNKNOWN,
            Text(source),
            Text(_state(family), style="yellow" if family.problem else "green"),
        )
    return table


def _state(family: Family) -> str:
    """Ready, or what is amiss in a word."""
    if family.problem is None:
        return "ready"
    missing = [name for name, found in family.installed.items() if found is None]
    return f"without {missing[0]}" if missing else "broken"


def _details(family: Family) -> Table:
    """What does not fit in the table, one line a fact."""
    from rich.table import Table
    from rich.text import Text

    lines: list[tuple[str, str]] = []
    if family.problem:
        lines.append(("problem", family.problem))
    lines += [("needs", f"{name} {found}") for name, found in family.installed.items() if found]
    info = family.info
    if info is None:
        lines.append(("loader", family.loader))
        if not family.problem:
            lines.append(("note", "does not describe itself (docs/add-a-backbone.md says how)"))
    else:
        way = "discrete" if info.drawing == "codes" else "continuous"
        lines += [
            ("models", info.title),
            ("reads", info.reads),
            ("draws", info.draws),
            ("gradient", f"{way}: {info.differentiable}"),
        ]
        lines += [("ids", example) for example in info.examples]
        lines += [(name, text) for name, text in (("page", info.page), ("note", info.note)) if text]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    named = ""
    for name, text in lines:
        grid.add_row(f"  {name if name != named else ''}", Text(text))
        named = name
    return grid
