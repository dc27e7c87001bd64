"""Every setting of RecA, with what it takes and what it does."""

from __future__ import annotations

from dataclasses import dataclass

from unigame.settings.rules import Many, Number, Text, Whole, check_fields, setting

PICTURES = ("all", "alone")


@dataclass
class RecASettings:
    """Settings of ``RecA``; every value is checked when the object is made.

    Raises:
        UserError: for a value outside its range.
    """

    weight: float = setting(
        1.0, Number(low=0, above=True), "Of the redrawn pictures in the loss (the paper's lambda)."
    )
    share: float = setting(
        0.5,
        Number(low=0, above=True, high=1),
        "At most this share of the rows is drawn again, counted over batches; rows that hold "
        "nothing but a picture come first, the others by lot. A step costs about 1 + 2 x share of "
        "one of fine-tuning, and one row at least passes the model.",
    )
    pictures: str = setting(
        "all",
        Text(choices=PICTURES),
        "Whether the pictures of all rows may be drawn again, or of those alone that hold nothing "
        "but a picture.",
    )
    reconstruction_size: int | None = setting(
        None,
        Whole(low=1, high=65_536, optional=True),
        "Side in px to which a picture is shrunk before it is read; what is drawn stays as it is. "
        "null: its own, or half of it where what is read are the image codes themselves.",
    )
    understanding_gradient_scale: float = setting(
        1.0,
        Number(low=0, high=1),
        "What the gradient into the understanding tokens is multiplied by. It matters only where "
        "what makes them is trained, such as the projector of a composed model.",
    )
    templates: list[str] | None = setting(
        None,
        Many(item=Text(), least=1, optional=True),
        "Texts that stand between a picture and its redrawing, instead of those of "
        "methods/reca/templates.py.",
    )

    def __post_init__(self) -> None:
        check_fields(self)
