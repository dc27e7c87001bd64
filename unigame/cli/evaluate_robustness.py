"""``unigame evaluate --robustness``: which attacks, on which benchmark, into which entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from unigame.cli import options
from unigame.errors import UserError


def _game_of(recipe: str) -> Any:
    """The settings of self-play in a recipe."""
    from unigame.training.recipe import load_recipe

    settings = load_recipe(recipe, here=False).settings_of("selfplay")
    if settings is None:
        raise UserError("it does not list method selfplay, so it says nothing of an attack")
    return settings


def attacks_of(args: SimpleNamespace) -> Any:
    """What ``--robustness`` asks for, as a ``RobustnessConfig``; None without it."""
    if args.robustness is None:
        if args.attack_recipe is not None:
            raise UserError("--attack-recipe without --robustness; add --robustness adversary")
        return None
    from unigame.evaluation.attacks.adversary import adversary_for
    from unigame.evaluation.attacks.robustness import RobustnessConfig

    kinds = [kind.strip() for kind in args.robustness.split(",") if kind.strip()]
    bundled = args.model in options.BUNDLED_MODELS  # each has a recipe of its name
    recipe = args.attack_recipe or (args.model.replace("-", "_") if bundled else None)
    config = RobustnessConfig()
    if recipe:
        try:
            adversary = adversary_for(_game_of(recipe))
        except UserError as error:
            raise UserError(f"--attack-recipe {recipe}: {error}") from error
        config = replace(config, adversary=adversary)
    if args.batch_size is not None:
        config = replace(config, batch_size=args.batch_size)
    config = config.only(kinds)
    if args.attack_recipe is not None and config.adversary is None:
        raise UserError(
            f"--attack-recipe {args.attack_recipe} is of the adversary, and --robustness "
            f"{args.robustness} has none; leave it out, or add adversary to --robustness"
        )
    return config


def attack(
    args: SimpleNamespace, backbone: Any, attacked: Any, attacks: Any, practice: Any
) -> dict[str, Any]:
    """The record's entry on the attacked benchmark."""
    from unigame.evaluation.attacks import robustness_record
    from unigame.evaluation.world import ReaderCheck
    from unigame.synthetic.reader import can_read
    from unigame.system.at_once import is_out_of_memory
    from unigame.system.console import make_console

    count = len(attacked.loaded.items)
    # Who says that an attacked picture kept its content: on the synthetic world, its reader.
    fits = args.synthetic and can_read(*backbone.facts.image_shape)
    with make_console().status(f"Robustness on {attacked.benchmark.title}") as status:
        try:
            return robustness_record.robustness_entry(
                backbone,
                attacked.benchmark,
                attacked.loaded,
                attacks,
                practice=practice,
                check=ReaderCheck() if fits else None,
                report=lambda done: status.update(f"Robustness: {done} of {count} questions"),
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"an attack on {attacks.batch_size} pictures at once does not fit into memory; "
                "give a smaller --batch-size"
            ) from error


def attacked_of(jobs: Sequence[Any]) -> Any:
    """The first benchmark with questions that can be attacked.

    Raises:
        UserError: there is none.
    """
    from unigame.evaluation.attacks.robustness_record import check_benchmark
    from unigame.evaluation.examples import from_items

    asking = [job for job in jobs if job.benchmark.task == "answer"]
    for job in asking:
        if from_items(job.loaded.items):
            return job
    if asking:
        names = ", ".join(job.benchmark.name for job in asking)
        raise UserError(
            f"--robustness needs questions about one picture with one text answer, and {names} "
            "has none; add a benchmark that has, such as vqav2, pope or advqa"
        )
    check_benchmark(jobs[0].benchmark)
    return None


def practice_for(attacked: Any, attacks: Any, whole: Sequence[Any]) -> Any:
    """What the adversary practises on, chosen before any model is asked; None: it is not played.

    Raises:
        UserError: it practises on all pictures, or there are too few.
    """
    from unigame.evaluation.attacks.adversary import set_aside
    from unigame.evaluation.examples import from_items

    if attacks.adversary is None:
        return None
    practice = set_aside(from_items(whole, attacked.benchmark), attacks.adversary.practice)
    practice.others(from_items(attacked.loaded.items))
    return practice
