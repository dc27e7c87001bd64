"""Some pictures of a run, for report and trackers: clean, redrawn, attacked, U's word to each.

    output_dir/examples/examples.json     format, and an entry for each example
    output_dir/examples/0-clean.png ...   -redrawn.png, -attacked.png, and -styled.png where the
                                          game has styles

C as it is now attacks the latest pictures that it was given, one candidate each. Beside it stands
the same picture redrawn at eps 0 under the same noise. The answers are free ones, as ``unigame
answer`` gives them. This costs about three challenges without gradient, at the end of the run, and
every ``examples_every`` steps where that is set; the folder holds the newest ones.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from unigame.methods.base import Shown
from unigame.methods.rows import Rows
from unigame.methods.selfplay.candidates import ChallengeResult
from unigame.methods.selfplay.challenge import challenge
from unigame.methods.selfplay.redrawn import redrawn
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.seeds import derive_seed
from unigame.system.say import warn

if TYPE_CHECKING:
    from unigame.methods.selfplay.method import SelfPlay

FOLDER, INDEX, FORMAT = "examples", "examples.json", "unigame-examples/1"
KINDS = ("clean", "redrawn", "attacked", "styled")
"""Of pictures; the last one only where the game has styles."""


class Examples:
    """Remembers the latest challenged rows, and draws them again when asked.

    Args:
        count: how many; 0: none.
        every: optimizer steps between two galleries; 0: one at the end.
    """

    def __init__(self, count: int, every: int = 0) -> None:
        self.count, self.every = count, every
        self._drawn_at = 0
        self._parts: deque[Rows] = deque()

    def see(self, rows: Rows) -> None:
        """Rows that C plays on now. Nothing is copied."""
        if not self.count or not rows.counts:
            return
        rows = rows.first(self.count)
        texts = {name: getattr(rows, name) for name in ("questions", "answers", "captions", "ids")}
        self._parts.append(Rows(images=rows.pictures, **texts))
        while sum(map(len, self._parts)) - len(self._parts[0]) >= self.count:
            self._parts.popleft()

    def before_step(self, game: SelfPlay, step: int) -> None:
        """A gallery where one is due: once in a step, whatever its micro-batches."""
        due = self.every and step and step % self.every == 0 and step != self._drawn_at
        if due and self._parts:  # of a run taken up here nothing was seen yet
            self._drawn_at = step
            self.write(game)

    def write(self, game: SelfPlay) -> None:
        """Draw, ask, write and show. A fault here costs the run nothing but its pictures."""
        folder = Path(game.run.args.output_dir) / FOLDER
        if not self._parts:
            if self.count:
                warn(
                    "the report will have no pictures of the game: no step was played here, as "
                    "where a run is taken up after its last one; train on to have some"
                )
            return
        try:
            with noise_kept(game):
                found = [entry for part in self._parts for entry in _play(game, part)]
            found = found[-self.count :]
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            entries = [_write_one(folder, number, *entry) for number, entry in enumerate(found)]
            content = {"format": FORMAT, "examples": entries}
            (folder / INDEX).write_text(json.dumps(content, indent=1), encoding="utf-8")
        except (RuntimeError, OSError) as error:  # memory, disk: the result is not saved yet
            warn(f"the report will have no pictures: {' '.join(str(error).split())}")
            return
        game.run.show([_shown(folder, entry) for entry in entries])


@torch.no_grad()
def attack(game: SelfPlay, rows: Rows) -> ChallengeResult:
    """One candidate of each row by C as it is, under noise that depends on the seed alone."""
    one = _one_candidate(game.settings)
    return challenge(
        game.run.backbone, game.perturber, rows, one, game.scorer, _noise(game), with_grad=False
    )


def _one_candidate(settings: SelfPlaySettings) -> SelfPlaySettings:
    samples = settings.sample_candidates or settings.num_candidates > 1
    return replace(  # without terms of C's objective: C does not learn here
        settings,
        num_candidates=1,
        gradient_candidates=1,
        label_weight=0.0,
        content_weight=0.0,
        verified_target=None,
        sample_candidates=samples,
    )


def _noise(game: SelfPlay) -> torch.Generator:
    generator = torch.Generator(device=game.run.device)
    return generator.manual_seed(derive_seed(game.run.args.seed, FOLDER))


@contextmanager
def noise_kept(game: SelfPlay) -> Iterator[None]:
    """Within: what a random perturber draws is not missing from a run that goes on later."""
    generator = getattr(game.perturber, "generator", None)
    before = None if generator is None else generator.get_state()
    try:
        yield
    finally:
        if generator is not None:
            generator.set_state(before)


@torch.no_grad()
def _play(game: SelfPlay, rows: Rows) -> list[tuple[dict[str, Any], list[Tensor]]]:
    """What became of each row: its texts and scores, and its three pictures."""
    backbone, one = game.run.backbone, _one_candidate(game.settings)
    noise = _noise(game).get_state()
    styles: list[str] = []
    with game.run.autocast():
        attacked = attack(game, rows)
        plain = redrawn(backbone, rows, one, game.scorer, noise)
        results = [plain, attacked]
        if game.styles is not None:
            styled, styles = game.styles.show(rows)
            results.append(styled)
        drawn = [result.drawing.images for result in results if result.drawing is not None]
        pictures = (rows.pictures, *drawn)
        said = [backbone.answer(images, rows.questions) for images in pictures]
    kinds = KINDS[: len(pictures)]
    similarity = [result.similarity_BK[:, 0].tolist() for result in results]
    return [
        (
            {
                "id": rows.ids[i],
                "question": rows.questions[i],
                "answer": rows.answers[i],
                "caption": rows.captions[i],
                **({"style": styles[i]} if styles else {}),
                "said": {kind: words[i].strip() for kind, words in zip(kinds, said, strict=True)},
                "similarity": {
                    kind: values[i] for kind, values in zip(kinds[1:], similarity, strict=True)
                },
            },
            [images[i] for images in pictures],
        )
        for i in range(len(rows))
    ]


def _shown(folder: Path, entry: dict[str, Any]) -> Shown:
    """An example for a tracker."""
    files = [folder / name for name in entry["pictures"].values()]
    said = ", ".join(f"{kind}: {words or '(nothing)'}" for kind, words in entry["said"].items())
    asked = f"{entry['question']} (true answer: {entry['answer']})"
    return Shown([Image.open(file) for file in files], f"{asked} {said}")


def _write_one(
    folder: Path, number: int, entry: dict[str, Any], images_3SS: Sequence[Tensor]
) -> dict[str, Any]:
    names = {}
    for kind, image_3SS in zip(KINDS, images_3SS, strict=False):
        names[kind] = f"{number}-{kind}.png"
        pixels = image_3SS.float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
        Image.fromarray(pixels.cpu().numpy()).save(folder / names[kind])
    return {**entry, "pictures": names}
