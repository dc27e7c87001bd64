"""The figures of ``unigame doctor --game``: what is measured of a game on some batches.

    B  pictures of a batch    K  candidates of each    P  all pictures    E  several of each

An answer counts as right by the game's own rule (``methods/answers.py``). All accuracies are kept
by picture, so that their gaps have errors: see ``gaps.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unigame.doctor.gaps import Share, auc_and_error, compared, error_of_mean, share_of
from unigame.methods.answers import reads_right
from unigame.methods.rows import Rows
from unigame.methods.selfplay.challenge import challenge
from unigame.methods.selfplay.method import SelfPlay
from unigame.methods.selfplay.verifier_check import half_another, worst_copies

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone

SEVERITY = 2  # of 5: what is shown stays plain to a person
CLEAN = "clean"
KINDS = ("learned", "random", "none")
"""Of perturbation."""


# ---- U on pictures, real and redrawn, and the similarity's view of them --------------------------
@dataclass
class Looked:
    """What was found of pictures as they are and mildly corrupted in several ways.

    Attributes:
        real: whether U answers rightly, (P,) by style.
        redrawn: the same of the pictures behind the image tokenizer.
        similarity: of each corrupted copy to its picture, (P,) by style.
        worst_P: the smallest similarity of each picture's mild corruptions.
    """

    real: dict[str, Tensor]
    redrawn: dict[str, Tensor]
    similarity: dict[str, Tensor]
    worst_P: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Looked]) -> Looked:
        """That of several batches."""

        def by_style(name: str) -> dict[str, Tensor]:
            found = [getattr(part, name) for part in parts]
            return {style: torch.cat([one[style] for one in found]) for style in found[0]}

        worst_P = torch.cat([part.worst_P for part in parts])
        return cls(by_style("real"), by_style("redrawn"), by_style("similarity"), worst_P)


def styles(rows: Rows) -> Iterator[tuple[str, Tensor]]:
    """The pictures as they are, and mildly corrupted in several ways, (B, 3, S, S) each."""
    from unigame.evaluation.attacks.corruptions import CORRUPTIONS, corrupt

    yield CLEAN, rows.pictures
    pixels = (rows.pictures.permute(0, 2, 3, 1).float().cpu() * 255).round().byte().numpy()
    for name in CORRUPTIONS:
        changed = [
            torch.from_numpy(corrupt(picture, name, SEVERITY, key).copy())
            for picture, key in zip(pixels, rows.ids, strict=True)
        ]
        images = torch.stack(changed).permute(0, 3, 1, 2).float() / 255
        yield name, images.to(rows.pictures)


@torch.no_grad()
def look(game: SelfPlay, rows: Rows) -> Looked:
    """One batch."""
    backbone = game.run.backbone
    real, redrawn, similarity = {}, {}, {}
    with game.run.autocast():
        for style, images in styles(rows):
            drawn = backbone.render(backbone.encode_images(images)).clamp(0, 1)
            real[style] = _right(backbone, images, rows)
            redrawn[style] = _right(backbone, drawn.to(images), rows)
            if style != CLEAN:
                scores = game.scorer(images, rows.pictures, rows.texts)
                similarity[style] = scores.flatten().float().cpu()
        generator = torch.Generator().manual_seed(0)
        worst_P = worst_copies(game.scorer, rows, generator)
    return Looked(real, redrawn, similarity, worst_P)


@torch.no_grad()
def _right(backbone: Backbone, images: Tensor, rows: Rows) -> Tensor:
    """Whether U answers rightly, (B,)."""
    return reads_right(backbone.answer_token_losses(images, *rows.question_arguments)).cpu()


def drawable(looked: Looked) -> dict[str, dict[str, float]]:
    """U on redrawn pictures against the real ones, by style."""
    found = {}
    for style, real_P in looked.real.items():
        change = compared(looked.redrawn[style], real_P)
        found[style] = {
            "real": _mean(real_P),
            "redrawn": _mean(looked.redrawn[style]),
            "difference": change["gap"],
            "error": change["error"],
        }
    return found


def missed(looked: Looked, attacks: dict[str, Any]) -> dict[str, Any]:
    """U on the training pictures, on them corrupted, and on them redrawn as the game does.

    Gaps are to the pictures as they are, on the same pictures.
    """
    clean_P = looked.real[CLEAN].double()
    by_style = {style: real_P for style, real_P in looked.real.items() if style != CLEAN}
    corrupted_P = torch.stack([real_P.double() for real_P in by_style.values()]).mean(0)
    redrawn_P = looked.redrawn[CLEAN]
    return {
        "clean": _mean(clean_P),
        "clean_error": error_of_mean(clean_P),
        "re_rendered": _mean(redrawn_P),
        "corrupted": _mean(corrupted_P),
        "lost": {
            "re_rendered": compared(clean_P, redrawn_P),
            "corrupted": compared(clean_P, corrupted_P),
            "by_redrawing": attacks["none"]["lost"],
        },
        "lost_by_style": {s: compared(clean_P, real_P) for s, real_P in by_style.items()},
    }


# ---- does the similarity know content from style? ------------------------------------------------
@torch.no_grad()
def verifier(game: SelfPlay, batches: Sequence[Rows], looked: Looked) -> dict[str, Any]:
    """The verifier's AUC, as a run measures it, over all pictures; and by style of the copies.

    Copies of a picture in another style should pass; pictures with half of another's content must
    not. Figures are None where no two pictures have different texts.
    """
    pictures = torch.cat([rows.pictures for rows in batches])
    texts = [text for rows in batches for text in rows.texts]
    with game.run.autocast():
        other_E, made_of_E = half_another(game.scorer, pictures, texts, max(map(len, batches)))
    same_E, floor = torch.cat(list(looked.similarity.values())), game.settings.clip_floor
    return {
        "similarity": game.settings.similarity,
        "worst": auc_and_error(looked.worst_P, other_E, made_of_E),
        "by_style": {
            style: auc_and_error(same_P, other_E, made_of_E)
            for style, same_P in looked.similarity.items()
        },
        "clip_floor": floor,
        "same_kept": _mean(same_E >= floor),
        "others_kept": _mean(other_E >= floor) if len(other_E) else None,
        "best_floor": best_floor(same_E, other_E) if len(other_E) else None,
    }


def best_floor(same_E: Tensor, other_E: Tensor) -> float:
    """The floor that keeps most of the first and rejects most of the second."""
    candidates = torch.cat([same_E, other_E]).unique()
    rejected, stopped = (
        torch.searchsorted(values.sort().values, candidates).double() / len(values)
        for values in (same_E, other_E)
    )
    return candidates[(stopped - rejected).argmax()].item()


def _mean(values: Tensor) -> float:
    return values.double().mean().item() if values.numel() else 0.0


# ---- what C finds --------------------------------------------------------------------------------
def practise(game: SelfPlay, rows: Rows) -> None:
    """One step of C, as in a run: activations are recomputed in training mode alone."""
    backbone = game.run.backbone
    backbone.train(bool(game.run.args.gradient_checkpointing))
    try:
        with game.run.autocast():
            result, _ = game.play(rows)
        game.challenger.look_at_heads(result, rows.counts, lambda *_: None)
    finally:
        backbone.eval()


def attacks(game: SelfPlay, batches: Sequence[Rows], steps: int) -> dict[str, Any]:
    """All kinds of candidates of some batches, with C as it is now.

    Args:
        game: whose C has practised, if it learns.
        batches: others than those of practice.
        steps: of practice, for the record.
    """
    players = {"learned": game} if game.settings.perturbation == "learned" else {}
    eps = min(game.perturber.eps.item(), 0.999 * game.settings.eps_max)
    for kind in ("random", "none"):
        changed = replace(game.settings, perturbation=kind, eps_init=eps or game.settings.eps_init)
        players[kind] = SelfPlay(changed)
        players[kind].setup(game.run)
    drawn = {kind: candidates(player, batches) for kind, player in players.items()}
    found: dict[str, Any] = {"steps": steps, "pictures": sum(map(len, batches)), "eps": eps}
    found.update({kind: one.figures() for kind, one in drawn.items()})
    if "learned" in drawn:
        found["against_random"] = drawn["learned"].share.gap_to(drawn["random"].share)
    return found


@dataclass
class Candidates:
    """What became of a perturber's candidates.

    Attributes:
        right_PK: whether U reads them rightly.
        certified_PK: whether the similarity certifies them.
        clean_P: whether U reads the pictures rightly.
    """

    right_PK: Tensor
    certified_PK: Tensor
    clean_P: Tensor

    @property
    def share(self) -> Share:
        """Of the certified ones the right ones."""
        return share_of(self.right_PK, self.certified_PK)

    def figures(self) -> dict[str, Any]:
        """As they are written, with errors."""
        share, lost_PK = self.share, ~self.right_PK & self.certified_PK
        return {
            "clean": _mean(self.clean_P),
            "all": _mean(self.right_PK),
            "verified": _mean(self.certified_PK),
            "verified_error": error_of_mean(self.certified_PK.double().mean(1)),
            "on_verified": share.value,
            "on_verified_error": share.error,
            "missed_and_verified": _mean(lost_PK),
            "missed_and_verified_error": error_of_mean(lost_PK.double().mean(1)),
            "lost": compared(self.clean_P, self.right_PK.double().mean(1)),
        }


@torch.no_grad()
def candidates(player: SelfPlay, batches: Sequence[Rows]) -> Candidates:
    """Those of all pictures, as many at a time as a run challenges."""
    rights, certified, clean = [], [], []
    parts = player.settings.challenge_parts(player.batch_size)
    for rows in batches:
        for part, share in rows.split(parts):
            if not share:
                continue  # a stand-in, for ranks that wait
            with player.run.autocast():
                result = challenge(
                    player.run.backbone,
                    player.perturber,
                    part,
                    player.settings,
                    player.scorer,
                    player.challenger.generator,
                    player.challenger.label_scorer,
                    with_grad=False,
                    pictures_at_once=player.batch_size,
                )
            rights.append(result.right_BK.cpu())
            certified.append((result.similarity_BK >= player.settings.clip_floor).cpu())
        with player.run.autocast():
            clean.append(_right(player.run.backbone, rows.pictures, rows))
    return Candidates(torch.cat(rights), torch.cat(certified), torch.cat(clean))


# ---- what C finds in the space of prompts --------------------------------------------------------
def free_drawings(
    game: SelfPlay, batches: Sequence[Rows], clean_P: Tensor
) -> dict[str, dict[str, Any]]:
    """A free drawing of each caption in each style: is it verified, and does U read it?

    The gap is between the pictures whose drawings are certified and these drawings.
    """
    found: dict[str, dict[str, Any]] = {}
    for style, prompt in enumerate(game.styles.prompts if game.styles is not None else ()):
        right_P, certified_P = _drawn_in(game, batches, style)
        share = share_of(right_P[:, None], certified_P[:, None])
        found[prompt] = {
            "verified": _mean(certified_P),
            "verified_error": error_of_mean(certified_P.double()),
            "on_verified": share.value,
            "on_verified_error": share.error,
            "lost": compared(clean_P[certified_P], right_P[certified_P]),
        }
    return found


@torch.no_grad()
def _drawn_in(game: SelfPlay, batches: Sequence[Rows], style: int) -> tuple[Tensor, Tensor]:
    assert game.styles is not None
    rights, certified = [], []
    for rows in batches:
        with game.run.autocast():
            result = game.styles.drawn_in(rows, style)
        rights.append(result.right_BK[:, 0].cpu())
        certified.append(result.similarity_BK[:, 0].cpu() >= game.settings.clip_floor)
    return torch.cat(rights), torch.cat(certified)
