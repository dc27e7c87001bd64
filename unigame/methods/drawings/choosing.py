"""Which captions a round draws, and by which seeds.

Captions of a file come in an order of their own at each pass; processes share a pass among them.
Without a file the captions of the batch are drawn. No random number of the run is taken: an order
hangs on the run's seed and the pass, a drawing on the seed, its caption and its number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unigame.methods.drawings.settings import DrawingSettings
from unigame.methods.drawings.texts import Text, digest
from unigame.methods.rows import Batch
from unigame.seeds import derive_seed


class CaptionChoice:
    """What one process draws, round by round.

    Attributes:
        texts: of the file; empty: the captions of the batch are drawn.
        own: captions of a pass that this process takes; a round draws no more.
        used: captions of the file that this process took so far. With it, a run goes on exactly.
        digest: of the texts, so that a run does not go on with others.

    Args:
        texts: see above.
        settings: of the method.
        name: of the method: two of them draw differently.
        seed: of the run.
        rank: of this process.
        ranks: how many processes there are.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        settings: DrawingSettings,
        *,
        name: str,
        seed: int,
        rank: int,
        ranks: int,
    ) -> None:
        self.texts, self.settings, self.name = texts, settings, name
        self.seed, self.rank, self.ranks = seed, rank, ranks
        self.used = 0
        self.digest = digest(list(texts))
        self.own = max(1, len(texts) // ranks)

    def choose(self, batch: Batch, step: int) -> tuple[list[Text], list[int]]:
        """What a round draws, each caption K times in a row, and the seed of each drawing."""
        settings = self.settings
        number = settings.captions
        if step == 0 and settings.first_captions is not None:
            number = settings.first_captions
        if self.texts:
            chosen = [self.next() for _ in range(min(number, self.own))]
        else:
            chosen = [(Text(caption), step) for caption in _captions_of(batch)][:number]
        drawings = range(settings.drawings)
        texts = [text for text, _ in chosen for _ in drawings]
        seeds = [
            derive_seed(self.seed, self.name, turn, text.caption, self.rank, number)
            for text, turn in chosen
            for number in drawings
        ]
        return texts, seeds

    def next(self) -> tuple[Text, int]:
        """The next caption of the file for this process, and how often it went through."""
        turn, place = divmod(self.used, self.own)
        self.used += 1
        shuffle = torch.Generator().manual_seed(derive_seed(self.seed, self.name, turn))
        order = torch.randperm(len(self.texts), generator=shuffle)
        return self.texts[int(order[(place * self.ranks + self.rank) % len(self.texts)])], turn

    def reached(self, max_steps: int) -> int:
        """How many captions of the file all processes draw in a run of this length."""
        settings = self.settings
        first = min(settings.first_captions or settings.captions, self.own)
        later = -(-max_steps // settings.every) - 1
        return (first + later * min(settings.captions, self.own)) * self.ranks


def _captions_of(batch: Batch) -> list[str]:
    """Those that rows of the batch have, each once."""
    has = batch.has_caption_R.tolist()
    return list(
        dict.fromkeys(
            caption.strip()
            for caption, is_so in zip(batch.records.captions, has, strict=True)
            if is_so
        )
    )
