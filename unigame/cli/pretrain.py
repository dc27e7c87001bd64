"""``unigame pretrain``: the bundled model's recipe, which reads its arguments itself."""

from __future__ import annotations

import click

from unigame.cli.app import command
from unigame.cli.endings import kept


@command(
    "train the bundled model janus-nano from scratch",
    add_help_option=False,  # it has one of its own
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("words", nargs=-1)
def pretrain(words: tuple[str, ...]) -> int | None:
    """Train the bundled model from scratch."""
    from unigame.synthetic.pretrain import main

    note = "Stopped; finished stages are kept. Name the others with --stages to go on."
    with kept(lambda: note):
        return main(list(words))
