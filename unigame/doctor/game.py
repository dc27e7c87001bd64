"""What can the game win on this model and this data? Some figures, before a long run.

The game reaches what the decoder can draw, the verifier can certify, and U gets wrong. So, on
pictures of the recipe's own data, clean and mildly corrupted:

    drawable    U on pictures that went through the image tokenizer, against U on the real ones
    verifier    does the similarity know a picture in another style from one that is alike?
    found       U on verified candidates of a quickly trained C, against random directions
    missed      U on the training pictures re-rendered or corrupted, against the pictures themselves
    styles      U on verified free drawings in each of the recipe's styles, where it has any

``game_figures.py`` measures them, ``game_says.py`` says what they mean.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from unigame.backbones.common.quantization import require_quantization
from unigame.doctor.game_figures import (
    CLEAN,
    Looked,
    attacks,
    candidates,
    drawable,
    free_drawings,
    look,
    missed,
    practise,
    verifier,
)
from unigame.doctor.game_says import lines, says
from unigame.doctor.gaps import USUAL
from unigame.doctor.report import duration
from unigame.errors import UserError
from unigame.methods.rows import Batch, Rows
from unigame.methods.selfplay.method import SelfPlay
from unigame.methods.selfplay.settings import SelfPlaySettings
from unigame.seeds import derive_seed

if TYPE_CHECKING:
    from unigame.training.recipe import Recipe

FEWEST = 8
"""Pictures with an answer, below which nothing is measured."""
Say = Callable[[str], None]
T = TypeVar("T")


def game_report(
    recipe: str, words: Sequence[str], pictures: int | None, file: Path | None
) -> list[str]:
    """Measure, print, and write the figures to ``file``; returns what to do next.

    Args:
        recipe: a YAML file or the name of a shipped recipe.
        words: overrides, as ``unigame train`` takes them.
        pictures: of its data. Default: ``USUAL``.
        file: for the figures, as JSON.

    Raises:
        UserError: the recipe cannot be used here, or plays no game that draws; the file cannot be
            written.
    """
    import shlex

    from unigame.system.console import make_console
    from unigame.system.writable import require_writable
    from unigame.training.recipe import load_recipe

    plan = load_recipe(recipe, words)
    if file is not None:
        require_writable(file.parent, "the folder of --json")
    console = make_console()
    for line in plan.found:
        make_console(stderr=True).print(line)
    found = diagnose(plan, pictures or USUAL, say=lambda text: console.print(text, style="dim"))
    console.print("\n".join(lines(found)))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        written = {"recipe": recipe, "overrides": list(words), **found}
        file.write_text(json.dumps(_plain(written), indent=1) + "\n", encoding="utf-8")
    command = shlex.join(["unigame", "train", recipe, *words])
    return [f"change what is named above in the recipe, then:  {command}"]


def _plain(value: Any) -> Any:
    """The same with null for what is not a number, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def diagnose(
    plan: Recipe, pictures: int = USUAL, steps: int = 40, say: Say = lambda _: None
) -> dict[str, Any]:
    """The figures with their errors, and a sentence on each.

    Args:
        plan: a checked recipe that lists selfplay.
        pictures: of its data, each with one question.
        steps: updates of the quickly trained C, on as many a step as in a run, from half of them;
            what it finds is measured on the others.
        say: told what is being measured, and about how long it will take.

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
    require_quantization(plan.quantization)
    records = _records(plan, pictures)
    challenged = math.ceil(settings.challenge_share * plan.training.per_device_train_batch_size)
    steps = steps if settings.perturbation == "learned" else 0
    with _ready(plan, settings, challenged, records) as (game, batches):
        found = _measured(game, batches, steps, challenged, say)
    found = {"model": plan.model, "asked": pictures, **found}
    return {**found, "says": says(found)}


def _measured(
    game: SelfPlay, given: list[Batch], steps: int, challenged: int, say: Say
) -> dict[str, Any]:
    """All figures; the first batch goes through everything first, to tell the time.

    C practises on ``challenged`` rows a step.
    """
    count, half = sum(map(len, given)), len(given) // 2
    prompts = game.styles.prompts if game.styles is not None else ()
    say(f"{count} pictures in {len(given)} batches; the first one tells the time")
    rows, challenging = _timed(lambda: game.challenged(given[0]))
    first, looking = _timed(lambda: look(game, rows))
    _, drawing = _timed(lambda: candidates(game, [rows]))
    playing = _timed(lambda: practise(game, rows.first(challenged)))[1] if steps else 0.0
    styling = 0.0
    if (players := game.styles) is not None:
        styling = _timed(lambda: players.drawn_in(rows, 0))[1]
    seconds = (challenging + looking + len(prompts) * styling) * len(given)
    seconds += 3 * drawing * (len(given) - half) + playing * steps
    say(f"about {duration(seconds)} in all, by that batch; 1 and 2 of 4: drawable, verifier")
    batches = [rows, *(game.challenged(batch) for batch in given[1:])]
    looked = Looked.joined([first, *(look(game, rows) for rows in batches[1:])])
    of_verifier = verifier(game, batches, looked)
    say(f"3 of 4: a quick C, {steps} steps, against random directions")
    pieces = _pieces(batches[:half], challenged)
    for step in range(1, steps):
        practise(game, pieces[step % len(pieces)])
    found = attacks(game, batches[half:], steps)
    if prompts:
        say(f"and {len(prompts)} styles")
    return {
        "pictures": count,
        "drawable": drawable(looked),
        "verifier": of_verifier,
        "found": found,
        "missed": missed(looked, found),
        "styles": free_drawings(game, batches, looked.real[CLEAN]),
    }


def _pieces(batches: Sequence[Rows], size: int) -> list[Rows]:
    """The rows of some batches, so many at a time."""
    return [
        rows.pick(range(first, min(first + size, len(rows))))
        for rows in batches
        for first in range(0, len(rows), size)
    ]


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and its seconds; all that is timed here ends on the CPU."""
    begun = time.perf_counter()
    return work(), time.perf_counter() - begun


@contextmanager
def _ready(
    plan: Recipe, settings: SelfPlaySettings, challenged: int, records: list[dict[str, Any]]
) -> Iterator[tuple[SelfPlay, list[Batch]]]:
    """The recipe's game on its model, as in a run, and batches of its data: two at least."""
    from transformers.trainer_utils import IntervalStrategy

    from unigame.backbones import load_backbone
    from unigame.training.trainer import UniGameTrainer

    args = copy.deepcopy(plan.training)
    args.eval_strategy = IntervalStrategy.NO
    batch = args.per_device_train_batch_size
    # Of the pictures that are measured all are challenged, as many at a time as in a run.
    at_once = min(settings.challenge_micro_batch or math.ceil(batch / 4), challenged)
    settings = replace(settings, challenge_share=1.0, challenge_micro_batch=at_once)
    size = min(batch, len(records) // 2)
    args.per_device_train_batch_size = size
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        backbone = load_backbone(
            plan.model,
            dtype=plan.weights_dtype,
            device=args.device,
            adapter=plan.adapter,
            quantization=plan.quantization,
        )
        if args.gradient_checkpointing:
            backbone.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        trainer = UniGameTrainer(
            model=backbone, args=args, peft_config=plan.lora_config(), methods=[SelfPlay(settings)]
        )
        trainer.backbone.eval()
        game: SelfPlay = trainer.method("selfplay")
        parts = [records[i : i + size] for i in range(0, len(records), size)]
        batches = [trainer.data_collator(part).to(args.device) for part in parts]
        fit = [batch for batch in batches if batch.answers.counts]
        if len(fit) < 2:
            raise UserError(
                f"{len(fit)} of {len(batches)} batches have an answer that fits a row, and two are "
                "needed; raise max_length, or give shorter questions"
            )
        yield game, fit


def _records(plan: Recipe, pictures: int) -> list[dict[str, Any]]:
    """Records with an answer, of different pictures, from all over the data.

    Rows of no picture or of several are passed by, as the game does, and damaged ones.

    Raises:
        UserError: the data cannot be read, or there are fewer than ``FEWEST``.
    """
    from unigame.data import build_dataset
    from unigame.data.pictures import content_key
    from unigame.data.records import SkippedRow, load_record_or_skip, num_pictures

    try:
        data = build_dataset(plan.data, seed=plan.training.seed)
    except UserError as error:
        raise UserError(f"data: {error}") from error
    generator = torch.Generator().manual_seed(derive_seed(plan.training.seed, "doctor"))
    chosen: dict[str, dict[str, Any]] = {}
    for place in torch.randperm(len(data), generator=generator).tolist():
        record = load_record_or_skip(data, place)
        if isinstance(record, SkippedRow) or num_pictures(record) != 1:
            continue
        image = record["image"]
        if image is not None and record.get("answer"):
            chosen.setdefault(content_key(partial(_same, image)), dict(record))
        if len(chosen) >= pictures:
            break
    if len(chosen) < FEWEST:
        raise UserError(f"{len(chosen)} pictures with an answer: give data with {FEWEST} at least")
    return list(chosen.values())


def _same(value: T) -> T:
    return value
