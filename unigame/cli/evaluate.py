"""``unigame evaluate``: benchmarks of a model, real or synthetic, into one record."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from unigame.cli import model as models
from unigame.cli import options, processes
from unigame.cli.app import command, option
from unigame.cli.endings import kept, next_step
from unigame.errors import UserError
from unigame.system.writable import require_writable

if TYPE_CHECKING:
    from unigame.evaluation.ranks import Ranks

SYNTHETIC = "synthetic"
SUBMISSION = "submission"
"""The parser variant that writes answers for a challenge server and gives no figure."""
SYNTHETIC_SIZE = 200
"""Questions of each synthetic benchmark; ``--limit`` asks fewer of them."""

_DATA = "Data; of several benchmarks: vqav2=testdev,pope=random"
_VARIANTS = "Variants, where references differ (docs/evaluation.md)"
_DRAWING = "Pictures that the model draws"
_SCORING = "Models that score"
_ROBUSTNESS = "Robustness (docs/robustness.md)"
_SCORER_OPTIONS = ("caption_tokens", "matcher", "colours", "detector", "encoders")
"""Those that are given on as they are; see ``_scorers``."""


@command("run benchmarks: unigame evaluate --model PATH --benchmarks pope,naturalbench")
@options.model_or_own
@options.adapter
@options.dtype
@options.quantization
@option("--benchmarks", required=True, help="names with commas between, such as pope,mmmu; or all")
@option("--limit", type=options.POSITIVE, help="items of each benchmark")
@option("--output", type=options.PATH, help="folder to write; default runs/evaluate/<model>")
@option("--batch-size", type=options.POSITIVE, help="default: what should fit")
@option("--seed", type=options.SEED, default=0, help="of the drawn pictures")
@option(
    "--processes",
    type=options.POSITIVE,
    help="share the items among so many processes here; several machines: torchrun",
)
@option(
    "--data-root",
    group=_DATA,
    help="folder with one folder per benchmark (DIR/pope/), or 'synthetic' for small made-up "
    "data (the default of bundled models); otherwise data come from the Hub",
)
@option("--split", group=_DATA, help="another than the benchmark's own")
@option("--config", group=_DATA, help="configuration, such as cn of MMBench or Full of POPE")
@option("--hub-id", group=_DATA, help="another copy on the Hub, such as MMMU/MMMU")
@option("--revision", group=_DATA, help="commit, tag or branch of the copy on the Hub")
@option("--prompt", group=_VARIANTS, help="such as bare, or pope=bare,mmmu=torchumm")
@option("--parser", group=_VARIANTS, help="such as official, or vqav2=official,mmmu=bagel")
@option(
    "--max-images",
    type=options.POSITIVE,
    group=_VARIANTS,
    help="pictures that a question may show",
)
@option("--samples", type=options.POSITIVE, group=_DRAWING, help="of each GenEval or DPG prompt")
@option(
    "--guidance-scale",
    type=options.guidance,
    group=_DRAWING,
    help="default: the family's, 5 (BAGEL: 4); on synthetic data 1 (none)",
)
@option(
    "--temperature",
    type=options.temperature,
    group=_DRAWING,
    help="default 1; on synthetic data 0.7, of a model that draws in latents 1",
)
@option(
    "--caption-tokens",
    type=options.POSITIVE,
    group=_DRAWING,
    help="longest caption in UnifiedBench",
)
@option(
    "--judge",
    group=_SCORING,
    help="of WISE and DPG: hf:ID, openai:MODEL@BASE_URL or unigame:MODEL",
)
@option(
    "--rubric",
    type=options.PATH,
    group=_SCORING,
    help="of WISE's judge: text file, such as the official",
)
@option("--detector", group=_SCORING, help="of GenEval: instance segmentation, Hub id or folder")
@option("--matcher", group=_SCORING, help="of MMBench's unread replies: a text LLM, as hf:ID")
@option("--colours", group=_SCORING, help="of GenEval: CLIP, Hub id or folder")
@option("--encoders", group=_SCORING, help="of UnifiedBench: paper, uae, or names and ids")
@option(
    "--robustness",
    group=_ROBUSTNESS,
    help="also measure, on the first benchmark that asks questions: adversary, pgd, "
    "corruptions, with commas between",
)
@option(
    "--attack-recipe",
    group=_ROBUSTNESS,
    help="recipe whose bounds the adversary takes, such as janus_nano",
)
def evaluate(model: str | None, adapter: str | None, output: Path | None, **chosen: Any) -> None:
    """Ask a model the items of benchmarks, score its replies, write predictions and results.json.

    A run that was stopped goes on where it was.
    """
    ranks, started = processes.ranks_of(chosen["processes"])  # before torch is imported
    model = models.chosen(model, adapter)
    args = SimpleNamespace(model=model, adapter=adapter, **{**chosen, "processes": started})
    if output is None:  # named after the model and its adapter
        parts = [Path(path).name for path in (model, adapter) if path]
        output = Path("runs") / "evaluate" / "+".join(parts)
    require_writable(output, "--output")
    if args.data_root is None and model in options.BUNDLED_MODELS:
        args.data_root = SYNTHETIC
    args.synthetic = args.data_root == SYNTHETIC
    with kept(lambda: _kept(output)):
        if not ranks.first:
            return _ask_share(args, output, ranks)
        _evaluate(args, output, ranks)
    next_step(f"compare with another model:  unigame compare OTHER {shlex.quote(str(output))}")


def _kept(output: Path) -> str:
    count = sum(file.read_bytes().count(b"\n") for file in output.glob("*/predictions*.jsonl"))
    return (
        f"Stopped; {count} predictions are kept in {output}. Run the same command again to go on "
        "from there."
    )


def _evaluate(args: SimpleNamespace, output: Path, ranks: Ranks) -> None:
    """Ask, score, print and write the record.

    Raises:
        UserError: unknown benchmarks or variants, an option that none of the benchmarks takes, data
            or scorers that cannot be had, a model that does not load, an output of other settings;
            or a benchmark that could not be scored or of which nothing was scored, after the others
            are recorded and shown.
    """
    from unigame.evaluation.attacks import robustness_record
    from unigame.evaluation.bars import Bars
    from unigame.evaluation.record import write_json
    from unigame.evaluation.run import RESULTS
    from unigame.reports.record_text import print_record
    from unigame.system.console import make_console

    attacks = _attacks(args)
    names, sources, jobs = _jobs(args, output, scored=True)
    attacked = _attacked(jobs) if attacks else None
    # The adversary practises on the whole data set's pictures, or its choice would hang on --limit.
    whole = attacked.loaded.items if attacked else []
    if attacked is not None and args.limit is not None:
        whole = attacked.benchmark.load(sources[attacked.benchmark.name]).items
    words = click.get_current_context().find_root().obj
    with processes.others(words, args.processes) as started:
        backbone, model = _load_model(args, ranks)
        if attacks is not None and attacks.adversary is not None:
            backbone.require_drawing()  # now, not after hours of other benchmarks
        with Bars({job.benchmark.name: job.benchmark.title for job in jobs}) as bars:
            record = _run(args, output, ranks, backbone, jobs, model=model, progress=bars)
        failed = processes.lost(started)
    _say_lost(failed, output, jobs)
    if attacked is not None:
        entry = _robustness(args, backbone, attacked, attacks, whole)
        record["benchmarks"][robustness_record.NAME] = entry
        write_json(output / RESULTS, record)
        names = [*names, robustness_record.NAME]
    print_record(record, names)
    console = make_console()
    console.print(f"\nWrote {output / RESULTS}")
    if args.synthetic:
        console.print("Synthetic data: these figures compare models of this small world only.")
    _check_scored(record, names)


def _ask_share(args: SimpleNamespace, output: Path, ranks: Ranks) -> None:
    """Ask this rank's share of the items; the first rank scores them and writes the record."""
    with ExitStack() as ending:
        written = output
        if args.synthetic:  # the same data again: the first rank may be in the middle of its own
            written = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="unigame-")))
        _, _, jobs = _jobs(args, written, scored=False)
        backbone, model = _load_model(args, ranks)
        _run(args, output, ranks, backbone, jobs, model=model, progress=None)


def _jobs(args: SimpleNamespace, output: Path, *, scored: bool) -> tuple[list[str], Any, Any]:
    """Names of the benchmarks, where their data lie, and their items.

    Args:
        args: the command line.
        output: where synthetic data are written.
        scored: whether this process scores.
    """
    from unigame.evaluation.registry import (
        benchmark_names,
        build_benchmark,
        check_options,
        check_variants,
    )
    from unigame.evaluation.run import load_jobs

    names = benchmark_names(args.benchmarks)
    check_variants(names, args.prompt, "prompt")
    check_variants(names, args.parser, "parser")
    options_given = ("samples", "judge", "rubric", *_SCORER_OPTIONS)
    check_options(names, {name: getattr(args, name) for name in options_given})
    _check_drawing(args, names)
    sources = _sources(args, names, output)
    if args.data_root is not None:  # a download keeps its bars
        import datasets

        datasets.disable_progress_bars()
    scorers = _scorers(args, names)
    benchmarks = [build_benchmark(name, {**scorers, **_variants(args, name)}) for name in names]
    return names, sources, load_jobs(benchmarks, sources, limit=args.limit, scored=scored)


def _run(
    args: SimpleNamespace, output: Path, ranks: Ranks, backbone: Any, jobs: Any, **told: Any
) -> dict[str, Any]:
    from unigame.evaluation.ask import Drawing
    from unigame.evaluation.miniature import usual_drawing
    from unigame.evaluation.run import run_jobs

    facts = backbone.facts
    usual = Drawing(guidance_scale=facts.guidance_scale)
    if args.synthetic:
        usual = usual_drawing(latents=facts.codebook_size is None)
    return run_jobs(
        backbone,
        jobs,
        output=output,
        batch_size=args.batch_size,
        drawing=Drawing(
            args.seed,
            usual.guidance_scale if args.guidance_scale is None else args.guidance_scale,
            usual.temperature if args.temperature is None else args.temperature,
        ),
        max_images=args.max_images,
        ranks=ranks,
        **told,
    )


def _say_lost(failed: Sequence[str], output: Path, jobs: Sequence[Any]) -> None:
    """Say which processes are gone, and tidy up what the last of them wrote after the merging."""
    from unigame.evaluation.ranks import Ranks, RankStore

    for job in jobs:
        RankStore(output / job.benchmark.name, Ranks()).merge()
    processes.say_lost(failed, "the others asked what it had not written")


def _check_scored(record: Mapping[str, Any], names: Sequence[str]) -> None:
    """A benchmark without a figure is a failure, unless a server elsewhere is to score it.

    Raises:
        UserError: it names those without a figure, and why they have none.
    """
    empty = []
    for name in names:
        entry = record["benchmarks"][name]
        if entry["metrics"] or entry["variant"].get("parser") == SUBMISSION:
            continue
        reasons = {**entry["counts"]["skipped"], **entry["counts"]["unscored"]}
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        empty.append(f"{name}: nothing was scored ({listed or 'no item has a score'})")
    if empty:
        raise UserError(
            f"{'; '.join(empty)}; replies and drawings are kept: mend that, and run the same "
            "command again"
        )


# ---- data ----------------------------------------------------------------------------------------


def _sources(args: SimpleNamespace, names: Sequence[str], output: Path) -> dict[str, Any]:
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
    if alone:  # the folder of the benchmark itself
        return root
    there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())) or "none"
    raise UserError(
        f"--data-root {root} has no folder {name!r}; it has {there}: download the data into "
        f"{root / name}, or leave {name} out of --benchmarks"
    )


# ---- variants and scorers ------------------------------------------------------------------------


def _variants(args: SimpleNamespace, name: str) -> dict[str, str | None]:
    from unigame.evaluation.miniature import world_variants
    from unigame.evaluation.registry import variant_for

    prompt = variant_for(name, args.prompt, "prompt")
    parser = variant_for(name, args.parser, "parser")
    if args.synthetic:
        usual = world_variants(name)
        prompt, parser = prompt or usual["prompt"], parser or usual["parser"]
    return {"prompt": prompt, "parser": parser}


def _check_drawing(args: SimpleNamespace, names: Sequence[str]) -> None:
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


def _scorers(args: SimpleNamespace, names: Sequence[str]) -> dict[str, Any]:
    """What scores, by the names of the benchmarks' arguments; None: their defaults."""
    chosen: dict[str, Any] = {"samples": args.samples}
    if args.synthetic:
        chosen |= _stand_ins(names)
    asked = {name: getattr(args, name) for name in _SCORER_OPTIONS}
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


# ---- robustness ----------------------------------------------------------------------------------


def _game_of(recipe: str) -> Any:
    """The settings of self-play in a recipe."""
    from unigame.training.recipe import load_recipe

    settings = load_recipe(recipe, here=False).settings_of("selfplay")
    if settings is None:
        raise UserError("it does not list method selfplay, so it says nothing of an attack")
    return settings


def _attacks(args: SimpleNamespace) -> Any:
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


def _robustness(
    args: SimpleNamespace, backbone: Any, attacked: Any, attacks: Any, whole: Sequence[Any]
) -> dict[str, Any]:
    """The record's entry on the attacked benchmark."""
    from unigame.evaluation.attacks import robustness_record
    from unigame.evaluation.batching import is_out_of_memory
    from unigame.evaluation.world import ReaderCheck
    from unigame.synthetic.reader import can_read
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
                whole=whole,
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


def _attacked(jobs: Sequence[Any]) -> Any:
    """The first benchmark that asks questions.

    Raises:
        UserError: all of them ask to draw.
    """
    from unigame.evaluation.attacks.robustness_record import check_benchmark

    for job in jobs:
        if job.benchmark.task == "answer":
            return job
    check_benchmark(jobs[0].benchmark)


# ---- the model -----------------------------------------------------------------------------------


def _load_model(args: SimpleNamespace, ranks: Ranks) -> tuple[Any, Mapping[str, Any]]:
    """The model, and what the record says of it."""
    import torch

    from unigame.backbones import load_backbone
    from unigame.backbones.folder import find_checkpoint
    from unigame.evaluation.record import model_entry

    dtype = args.dtype
    if dtype == "auto" and not torch.cuda.is_available():
        dtype = "float32"  # most CPUs only imitate bfloat16, ten times slower
    backbone = load_backbone(
        args.model,
        dtype=dtype,
        adapter=args.adapter,
        device=ranks.device(),
        quantization=args.quantization,
    )
    checkpoint = find_checkpoint(args.model)
    folder = checkpoint if isinstance(checkpoint, Path) else _downloaded(checkpoint)
    adapter = Path(args.adapter) if args.adapter else None
    entry = model_entry(backbone, id=str(args.model), folder=folder, adapter=adapter)
    return backbone, entry


def _downloaded(hub_id: str) -> Path:
    """The folder that loading the model from the Hub has just filled."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, allow_patterns=["*.safetensors"], local_files_only=True))
