"""What can the game win on this model and this data? Some figures, before a long run.

The game reaches what the decoder can draw, the verifier can certify, and U gets wrong. So, on
pictures of the recipe's own data, clean and mildly corrupted:

    drawable    U on pictures that went through the image tokenizer, against U on the real ones
    verifier    does the similarity know a picture in another style from one that is alike?
    found       U on verified candidates of a quickly trained C, against random directions
    missed      U on the training pictures re-rendered or corrupted, against the pictures themselves
    styles      U on verified free drawings in each of the recipe's styles, where it has any

    B  samples in the batch    K  candidates drawn per sample    P  all pictures

An answer counts as right by the game's own rule (``methods/answers.py``). Standard errors are of
paired differences over pictures.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unigame.errors import UserError
from unigame.methods.answers import reads_right
from unigame.methods.rows import Rows
from unigame.methods.selfplay.challenge import challenge
from unigame.methods.selfplay.method import SelfPlay
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.methods.selfplay.verifier_check import auc
from unigame.seeds import derive_seed

if TYPE_CHECKING:
    from unigame.backbones.base import Backbone
    from unigame.training.recipe import Recipe

SEVERITY = 2  # of 5: what is shown stays plain to a person
CLEAN = "clean"
OTHERS = 7
GOOD_AUC = 0.9
ENOUGH = 0.02  # of accuracy: smaller gaps are not worth a long run
RARE = 0.1  # share of candidates below which hardly anything is verified
Say = Callable[[str], None]


def game_report(recipe: str, pictures: int, file: Path | None) -> list[str]:
    """Measure, print, and write the figures to ``file``; returns what to do next.

    Raises:
        UserError: the recipe cannot be used here, or plays no game that draws.
    """
    from unigame.system.console import make_console
    from unigame.training.recipe import load_recipe

    console = make_console()
    found = diagnose(
        load_recipe(recipe), pictures, say=lambda text: console.print(text, style="dim")
    )
    console.print("\n".join(lines(found)))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"recipe": recipe, **found}, indent=1) + "\n", encoding="utf-8")
    return [f"change what is named above in the recipe, then:  unigame train {recipe}"]


def diagnose(
    plan: Recipe, pictures: int = 96, steps: int = 40, say: Say = lambda _: None
) -> dict[str, Any]:
    """The four figures, and a sentence on each.

    Args:
        plan: a checked recipe that lists selfplay.
        pictures: of its data, each with one question.
        steps: updates of the quickly trained C, on three quarters of them.
        say: told what is being measured.

    Raises:
        UserError: the recipe plays no game that draws, or has too few answers.
    """
    settings = plan.settings_of("selfplay")
    if settings is None:
        raise UserError("the recipe lists no method selfplay, so there is no game to look at")
    if not settings.draws:
        raise UserError(
            f"perturb_space={settings.perturb_space}: nothing is drawn there, and these figures "
            "are of drawings; set perturb_space=decoder"
        )
    with _ready(plan, settings) as (game, collate):
        batches = collate(pictures)
        say(f"{sum(map(len, batches))} pictures of {plan.model}'s data; 1 of 4: drawable")
        styled = [styles(batch) for batch in batches]
        drawable = _drawable(game.run.backbone, batches, styled)
        say("2 of 4: verifier")
        verifier = _verifier(game, batches, styled)
        say(f"3 of 4: a quick C, {steps} steps")
        attacks = _attacks(game, batches, steps)
        if game.styles is not None:
            say(f"and {len(game.styles.prompts)} styles")
        in_styles = _in_styles(game, batches)
    found = {
        "model": plan.model,
        "pictures": sum(map(len, batches)),
        "drawable": drawable,
        "verifier": verifier,
        "found": attacks,
        "missed": _missed(drawable, attacks),
        "styles": in_styles,
    }
    return {**found, "says": says(found)}


@contextmanager
def _ready(
    plan: Recipe, settings: SelfPlaySettings
) -> Iterator[tuple[SelfPlay, Callable[[int], list[Rows]]]]:
    """The recipe's game on its model, and what makes batches of its data."""
    from transformers.trainer_utils import IntervalStrategy

    from unigame.backbones import load_backbone
    from unigame.training.trainer import UniGameTrainer

    args = copy.deepcopy(plan.training)
    args.eval_strategy = IntervalStrategy.NO
    half = args.bf16 if plan.dtype == "auto" else plan.dtype == "bfloat16"
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        trainer = UniGameTrainer(
            model=load_backbone(
                plan.model,
                dtype="bfloat16" if half else "float32",
                device=args.device,
                adapter=plan.adapter,
            ),
            args=args,
            peft_config=plan.lora_config(),
            methods=[SelfPlay(replace(settings, challenge_share=1.0))],
        )
        trainer.backbone.eval()
        game: SelfPlay = trainer.method("selfplay")
        size = args.per_device_train_batch_size

        def collate(pictures: int) -> list[Rows]:
            records = _records(plan, pictures)
            if len(records) < 8:
                raise UserError(
                    f"{len(records)} pictures with an answer: give data with 8 at least"
                )
            parts = [records[i : i + size] for i in range(0, len(records), size)]
            batches = [trainer.data_collator(part).to(args.device) for part in parts]
            return [game.challenged(batch) for batch in batches if batch.answers.counts]

        yield game, collate


def _records(plan: Recipe, pictures: int) -> list[dict[str, Any]]:
    """Records with an answer, of different pictures, from all over the data."""
    from unigame.data import build_dataset
    from unigame.data.pictures import content_key

    data = build_dataset(plan.data, seed=plan.training.seed)
    generator = torch.Generator().manual_seed(derive_seed(plan.training.seed, "doctor"))
    chosen: dict[str, dict[str, Any]] = {}
    for place in torch.randperm(len(data), generator=generator).tolist():
        record = data[place]
        if isinstance(record, dict) and record.get("answer"):
            chosen.setdefault(content_key(partial(record.__getitem__, "image")), record)
        if len(chosen) >= pictures:
            break
    return list(chosen.values())


# ---- 1: what the decoder can draw ----------------------------------------------------------------
def styles(rows: Rows) -> dict[str, Tensor]:
    """The pictures as they are, and mildly corrupted in several ways, (B, 3, S, S) each."""
    from unigame.evaluation.attacks.corruptions import CORRUPTIONS, corrupt

    found = {CLEAN: rows.pictures}
    pixels = (rows.pictures.permute(0, 2, 3, 1).float().cpu() * 255).round().byte().numpy()
    for name in CORRUPTIONS:
        changed = [
            torch.from_numpy(corrupt(picture, name, SEVERITY, key).copy())
            for picture, key in zip(pixels, rows.ids, strict=True)
        ]
        images = torch.stack(changed).permute(0, 3, 1, 2).float() / 255
        found[name] = images.to(rows.pictures)
    return found


@torch.no_grad()
def _right(backbone: Backbone, images: Tensor, rows: Rows) -> Tensor:
    """Whether U answers rightly, (B,)."""
    return reads_right(backbone.answer_token_losses(images, *rows.question_arguments)).cpu()


@torch.no_grad()
def _drawable(
    backbone: Backbone, batches: Sequence[Rows], styled: Sequence[dict[str, Tensor]]
) -> dict[str, dict[str, float]]:
    found = {}
    for style in styled[0]:
        real, redrawn = [], []
        for rows, images in zip(batches, styled, strict=True):
            drawn = backbone.render(backbone.encode_images(images[style])).clamp(0, 1)
            real.append(_right(backbone, images[style], rows))
            redrawn.append(_right(backbone, drawn.to(images[style]), rows))
        found[style] = _compared("real", torch.cat(real), "redrawn", torch.cat(redrawn))
    return found


def _compared(name: str, before_P: Tensor, other: str, after_P: Tensor) -> dict[str, float]:
    """Two accuracies on the same pictures, their difference and its standard error."""
    change_P = after_P.double() - before_P.double()
    error = change_P.std().item() / math.sqrt(len(change_P)) if len(change_P) > 1 else math.nan
    return {
        name: before_P.double().mean().item(),
        other: after_P.double().mean().item(),
        "difference": change_P.mean().item(),
        "error": error,
    }


# ---- 2: does the similarity know content from style? ---------------------------------------------
@torch.no_grad()
def _verifier(
    game: SelfPlay, batches: Sequence[Rows], styled: Sequence[dict[str, Tensor]]
) -> dict[str, Any]:
    """Similarity of corrupted copies, which should pass, and of other pictures, which must not."""
    same: dict[str, list[Tensor]] = {}
    others: list[Tensor] = []
    for rows, images in zip(batches, styled, strict=True):
        pictures, texts = rows.pictures, rows.texts
        for style, changed in images.items():
            if style != CLEAN:
                same.setdefault(style, []).append(game.scorer(changed, pictures, texts).cpu())
        others.append(_most_similar_other(game, rows))
    same_by_style = {style: torch.cat(parts).float() for style, parts in same.items()}
    same_E, other_E = torch.cat(list(same_by_style.values())), torch.cat(others).float()
    floor = game.settings.clip_floor
    return {
        "similarity": game.settings.similarity,
        "auc": auc(same_E, other_E),
        "auc_by_style": {style: auc(values, other_E) for style, values in same_by_style.items()},
        "clip_floor": floor,
        "same_kept": _share(same_E >= floor),
        "others_kept": _share(other_E >= floor),
        "best_floor": best_floor(same_E, other_E),
    }


def _most_similar_other(game: SelfPlay, rows: Rows) -> Tensor:
    """For each picture the similarity of that of ``OTHERS`` in its batch which is most like it."""
    pictures, texts = rows.pictures, rows.texts
    best_B = torch.full((len(texts),), -math.inf)
    for places in range(1, min(OTHERS, len(texts) - 1) + 1):
        scores_B = game.scorer(pictures.roll(places, dims=0), pictures, texts).float().cpu()
        differs_B = torch.tensor([texts[i] != texts[i - places] for i in range(len(texts))])
        best_B = torch.where(differs_B, torch.maximum(best_B, scores_B), best_B)
    return best_B[best_B.isfinite()]


def best_floor(same_E: Tensor, other_E: Tensor) -> float:
    """The floor that keeps most of the first and rejects most of the second."""
    candidates = torch.cat([same_E, other_E]).unique()
    kept = (same_E[None] >= candidates[:, None]).double().mean(1)
    let_through = (other_E[None] >= candidates[:, None]).double().mean(1)
    return candidates[(kept - let_through).argmax()].item()


def _share(values: Tensor) -> float:
    return values.double().mean().item() if values.numel() else 0.0


# ---- 3: what C finds -----------------------------------------------------------------------------
def _attacks(game: SelfPlay, batches: Sequence[Rows], steps: int) -> dict[str, Any]:
    """C trained for a moment on some batches; then all kinds of candidates, on the others."""
    practice = batches[: max(1, 3 * len(batches) // 4)]
    measured = batches[len(practice) :] or batches
    players = {}
    if game.settings.perturbation == "learned":
        players["learned"] = game
        for step in range(steps):
            game.play(practice[step % len(practice)])
    eps = min(game.perturber.eps.item(), 0.999 * game.settings.eps_max)
    for kind in ("random", "none"):
        changed = replace(game.settings, perturbation=kind, eps_init=eps or game.settings.eps_init)
        players[kind] = SelfPlay(changed)
        players[kind].setup(game.run)
    return {
        "steps": steps,
        "pictures": sum(map(len, measured)),
        "eps": eps,
        **{kind: _candidates(player, measured) for kind, player in players.items()},
    }


@torch.no_grad()
def _candidates(player: SelfPlay, batches: Sequence[Rows]) -> dict[str, float | None]:
    """U on all candidates of a perturber, and on those that the similarity certifies."""
    rights, certified, clean = [], [], []
    for rows in batches:
        result = challenge(
            player.run.backbone,
            player.perturber,
            rows,
            player.settings,
            player.scorer,
            player.challenger.generator,
            player.challenger.label_scorer,
            with_grad=False,
        )
        rights.append(result.right_BK.cpu())
        certified.append((result.similarity_BK >= player.settings.clip_floor).cpu())
        clean.append(_right(player.run.backbone, rows.pictures, rows))
    right_PK, certified_PK = torch.cat(rights), torch.cat(certified)
    kept = certified_PK.any()
    return {
        "clean": _share(torch.cat(clean)),
        "all": _share(right_PK),
        "verified": _share(certified_PK),
        "on_verified": _share(right_PK[certified_PK]) if kept else None,
        "missed_and_verified": _share(~right_PK & certified_PK),
    }


# ---- what C finds in the space of prompts --------------------------------------------------------
def _in_styles(game: SelfPlay, batches: Sequence[Rows]) -> dict[str, dict[str, float | None]]:
    """A free drawing of each caption in each style: is it verified, and does U read it?"""
    found: dict[str, dict[str, float | None]] = {}
    for style, prompt in enumerate(game.styles.prompts if game.styles is not None else ()):
        results = [game.styles.drawn_in(rows, style) for rows in batches]  # type: ignore[union-attr]
        right_P = torch.cat([result.right_BK[:, 0].cpu() for result in results])
        similarity_P = torch.cat([result.similarity_BK[:, 0].cpu() for result in results])
        certified_P = similarity_P >= game.settings.clip_floor
        found[prompt] = {
            "verified": _share(certified_P),
            "on_verified": _share(right_P[certified_P]) if certified_P.any() else None,
        }
    return found


# ---- 4: what U misses ----------------------------------------------------------------------------
def _missed(drawable: dict[str, dict[str, float]], attacks: dict[str, Any]) -> dict[str, float]:
    """U on the training pictures, on them corrupted, and on them redrawn as the game does."""
    corrupted = [found["real"] for style, found in drawable.items() if style != CLEAN]
    redrawn = attacks["none"]
    return {
        "clean": drawable[CLEAN]["real"],
        "re_rendered": drawable[CLEAN]["redrawn"],
        "corrupted": sum(corrupted) / len(corrupted),
        "lost_by_redrawing": redrawn["clean"] - redrawn["all"],
    }


# ---- what is said --------------------------------------------------------------------------------
def says(found: dict[str, Any]) -> list[str]:
    """A sentence on each figure: what the game can win there, and what to change."""
    said = [
        _of_drawable(found["drawable"]),
        _of_verifier(found["verifier"]),
        _of_attacks(found["found"]),
        _of_missed(found["missed"], found["drawable"]),
    ]
    if found.get("styles"):
        said.append(_of_styles(found["styles"], found["missed"]["clean"]))
    return said


def cannot_draw(drawable: dict[str, dict[str, float]]) -> list[str]:
    """Styles that redrawing changes, in either direction, by more than chance and 2 points."""
    return [
        style
        for style, one in drawable.items()
        if abs(one["difference"]) > max(ENOUGH, 2 * one["error"])
    ]


def _of_drawable(drawable: dict[str, dict[str, float]]) -> str:
    lost = cannot_draw(drawable)
    if not lost:
        return "The decoder draws every one of these styles as U sees it: the game can reach them."
    drawn = [style for style in drawable if style not in lost]
    return (
        f"Redrawn, {', '.join(lost)} is something else to U: no drawing of this decoder can teach "
        f"it there; it can for {', '.join(drawn) or 'none of the others'}. Change: an image "
        "tokenizer that is faithful to such pictures, or real augmentation of these styles."
    )


def _of_verifier(verifier: dict[str, Any]) -> str:
    mistaken = [f"{s} {auc:.2f}" for s, auc in verifier["auc_by_style"].items() if auc < GOOD_AUC]
    if mistaken:
        return (
            f"This similarity ({verifier['similarity']}) punishes style more than content (AUC: "
            f"{', '.join(mistaken)}), so there it certifies the wrong candidates. Change: "
            "similarity=clip with an image-text checkpoint, or a reader of your own."
        )
    if verifier["same_kept"] - verifier["others_kept"] < 0.5:
        return (
            f"The similarity knows content from style, but clip_floor={verifier['clip_floor']:g} "
            f"keeps {verifier['same_kept']:.0%} of the same pictures and "
            f"{verifier['others_kept']:.0%} of others. Change: "
            f"clip_floor={verifier['best_floor']:.3g}."
        )
    return "The similarity knows content from style: what it certifies can be taught."


def _of_attacks(attacks: dict[str, Any]) -> str:
    learned, random = attacks.get("learned"), attacks["random"]
    if learned is None:
        return "The recipe's C does not learn, so there is nothing that it could find."
    if learned["verified"] < RARE:
        return (
            f"C wins by changing what is shown: only {learned['verified']:.0%} of its candidates "
            "are certified. Change: a larger anchor or label_weight, or a smaller eps_max."
        )
    if random["on_verified"] is None or learned["on_verified"] < random["on_verified"] - ENOUGH:
        return (
            f"C finds certified pictures that U misses ({learned['on_verified']:.0%} right, random "
            f"directions {_percent(random['on_verified'])}): the game can win what these show."
        )
    return (
        f"C finds nothing that random directions of its size do not ({learned['on_verified']:.0%} "
        f"and {random['on_verified']:.0%} right): the game would be augmentation by noise. "
        "Change: a larger eps_max or perturber_learning_rate, more perturber_steps, or another "
        "scope of C."
    )


def _of_missed(missed: dict[str, float], drawable: dict[str, dict[str, float]]) -> str:
    lost = missed["clean"] - missed["corrupted"]
    if max(missed["clean"] - missed["re_rendered"], lost) < ENOUGH:
        return (
            "U answers re-rendered and corrupted training pictures as well as the pictures: there "
            "is no style to win, and what it still lacks is new content. Change: more data, or a "
            "method that draws new captions."
        )
    room = [
        style
        for style, one in drawable.items()
        if style not in cannot_draw(drawable) and missed["clean"] - one["real"] > 2 * ENOUGH
    ]
    if room:
        return f"U misses what it knows in another style: there is room in {', '.join(room)}."
    return (
        f"U loses {100 * lost:.1f} points on corrupted training pictures, but in no style that the "
        "decoder can draw: the game cannot win them. Change: see the first line."
    )


def _of_styles(styles: dict[str, dict[str, float | None]], clean: float) -> str:
    drawn = {name: one for name, one in styles.items() if (one["verified"] or 0) >= RARE}
    if not drawn:
        return (
            "Hardly any free drawing is certified: the model does not draw these captions. Change: "
            "shorter captions, a lower style_temperature, or styles that it knows."
        )
    hard = [n for n, one in drawn.items() if clean - (one["on_verified"] or 0) > 2 * ENOUGH]
    if hard:
        return f"U misses what it draws itself in {_quoted(hard)}: these styles can teach it."
    return (
        f"U reads its own drawings in {_quoted(list(drawn))} as well as the pictures: there is "
        "nothing to win by them. Change: other styles."
    )


def _quoted(styles: Sequence[str]) -> str:
    return ", ".join(f"'{style}'" for style in styles)


def _percent(value: float | None) -> str:
    return "none certified" if value is None else f"{value:.0%}"


def lines(found: dict[str, Any]) -> list[str]:
    """What is printed: the figures of each part, and its sentence."""
    verifier, attacks, missed = found["verifier"], found["found"], found["missed"]
    drawable = [
        f"   {style:<10} {one['real']:6.1%} real {one['redrawn']:6.1%} redrawn "
        f"{100 * one['difference']:+.1f} ± {100 * one['error']:.1f}"
        for style, one in found["drawable"].items()
    ]
    by_style = ", ".join(
        f"{style} {value:.2f}" for style, value in verifier["auc_by_style"].items()
    )
    candidates = [
        f"   {kind:<10} {_percent(one['on_verified']):>6} right on the {one['verified']:.0%} that "
        f"are certified; {one['missed_and_verified']:.0%} certified and missed"
        for kind, one in attacks.items()
        if isinstance(one, dict)
    ]
    said = [f"   -> {text}" for text in found["says"]]
    styles = [
        f"   {prompt:<30} {_percent(one['on_verified']):>6} right on the {one['verified']:.0%} "
        "that are certified"
        for prompt, one in found.get("styles", {}).items()
    ]
    if styles:
        styles = ["5. U on free drawings of the captions in the recipe's styles", *styles, said[4]]
    return [
        f"1. U on real pictures, and through the image tokenizer ({found['pictures']} pictures)",
        *drawable,
        said[0],
        f"2. Similarity, corrupted copies against the nearest of {OTHERS} other pictures: "
        f"AUC {verifier['auc']:.3f}",
        f"   {by_style}; floor {verifier['clip_floor']:g} keeps {verifier['same_kept']:.0%} and "
        f"{verifier['others_kept']:.0%}",
        said[1],
        f"3. U on candidates: C after {attacks['steps']} steps, random directions, plain redrawing",
        *candidates,
        said[2],
        f"4. U on training pictures {missed['clean']:.1%}, re-rendered "
        f"{missed['re_rendered']:.1%},",
        f"   corrupted {missed['corrupted']:.1%}; the game's own redrawing costs "
        f"{100 * missed['lost_by_redrawing']:.1f} points",
        said[3],
        *styles,
    ]
