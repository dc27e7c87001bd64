"""What ``unigame evaluate`` reads and scores with: data, variants, scorers, as its options say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from unigame.cli import options
from unigame.errors import UserError

SYNTHETIC = "synthetic"
SYNTHETIC_SIZE = 200
"""Questions of each synthetic benchmark; ``--limit`` asks fewer of them."""
SCORER_OPTIONS = ("caption_tokens", "matcher", "colours", "detector", "encoders")
"""Those that are given on as they are; see ``scorers_of``."""


def sources_of(args: SimpleNamespace, names: Sequence[str], output: Path) -> dict[str, Any]:
    """Benchmark name -> where its data lie, and which part of them is read."""
    from unigame.evaluation.base import DataSource
    from unigame.evaluation.registry import check_choices, choice_for

    chosen = {name: getattr(args, name) for name in ("split", "config", "hub_id", "revision")}
    for name, text in chosen.items():
        check_choices(names, text, name.replace("_", "-"))
    if args.data_root is not None and (args.hub_id or args.revision):
        raise UserError("--hub-id and --revision are of data on the Hub; leave out --data-root")
    root = _root(args, names, output)
    return {
        name: DataSource(
            root=None if root is None else _folder(root, name, len(names) == 1),
            **{key: choice_for(name, text) for key, text in chosen.items()},
        )
        for name in names
    }


def _root(args: SimpleNamespace, names: Sequence[str], output: Path) -> Path | None:
    """The folder of the benchmarks' folders; None: the Hub."""
    if not args.synthetic:
        return None if args.data_root is None else Path(args.data_root).expanduser()
    from unigame.synthetic.benchmarks import write_benchmarks

    return write_benchmarks(output / SYNTHETIC, size=SYNTHETIC_SIZE, names=names)


def _folder(root: Path, name: str, alone: bool) -> Path:
    if not root.is_dir():
        raise UserError(f"--data-root {root} is no folder; check the spelling, or say synthetic")
    if (root / name).is_dir():
        return root / name
    from unigame.evaluation.registry import BENCHMARKS

    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    if alone and not set(BENCHMARKS).intersection(folders):  # the folder of the benchmark itself
        return root
    there = ", ".join(folders) or "none"
    raise UserError(
        f"--data-root {root} has no folder {name!r}; it has {there}: download the data into "
        f"{root / name}, or leave {name} out of --benchmarks"
    )


def variants_of(args: SimpleNamespace, name: str) -> dict[str, str | None]:
    """The benchmark's prompt and parser; None: its own."""
    from unigame.evaluation.miniature import world_variants
    from unigame.evaluation.registry import variant_for

    prompt = variant_for(name, args.prompt, "prompt")
    parser = variant_for(name, args.parser, "parser")
    if args.synthetic:
        usual = world_variants(name)
        prompt, parser = prompt or usual["prompt"], parser or usual["parser"]
    return {"prompt": prompt, "parser": parser}


def check_drawing(args: SimpleNamespace, names: Sequence[str]) -> None:
    """Refuse settings of drawing where nothing is drawn: answers are greedy.

    Raises:
        UserError: it names the option.
    """
    from unigame.evaluation.registry import benchmark_class

    if any(benchmark_class(name).task != "answer" for name in names):
        return
    for name in ("guidance_scale", "temperature"):
        if (value := getattr(args, name)) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} {value:g} is of pictures that the model draws, and "
                f"{', '.join(names)} only asks for answers; leave it out, or add a benchmark that "
                "draws, such as geneval"
            )


def scorers_of(args: SimpleNamespace, names: Sequence[str]) -> dict[str, Any]:
    """What scores, by the names of the benchmarks' arguments; None: their defaults."""
    chosen: dict[str, Any] = {"samples": args.samples}
    if args.synthetic:
        chosen |= _stand_ins(names)
    asked = {name: getattr(args, name) for name in SCORER_OPTIONS}
    chosen |= {name: value for name, value in asked.items() if value is not None}
    if args.judge is not None:
        from unigame.evaluation.scorers.judges import parse_judge

        chosen["judge"] = parse_judge(args.judge)
    if args.rubric is not None:
        from unigame.evaluation.scorers.judges import Rubric

        chosen["rubric"] = Rubric.from_file(args.rubric)
    return chosen


def _stand_ins(names: Sequence[str]) -> dict[str, Any]:
    """Scorers that see the synthetic world, where real ones see nothing."""
    from unigame.evaluation.miniature import CAPTION_TOKENS
    from unigame.evaluation.scorers import stand_ins

    scorers: dict[str, Any] = {
        "caption_tokens": CAPTION_TOKENS,
        "detector": stand_ins.SyntheticDetector(),
        "colours": stand_ins.ReaderColours(),
        "judge": stand_ins.SyntheticJudge(),
    }
    if "unifiedbench" in names:
        from unigame.backbones import load_backbone

        scorers["encoders"] = stand_ins.stand_in_encoders(load_backbone(options.BUNDLED))
    return scorers
