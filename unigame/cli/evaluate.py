"""``unigame evaluate``: benchmarks of a model, real or synthetic, into one record."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from unigame.cli import model as models
from unigame.cli import options, processes
from unigame.cli.app import command, option
from unigame.cli.endings import kept, next_step
from unigame.cli.evaluate_data import (
    SCORER_OPTIONS,
    SYNTHETIC,
    check_drawing,
    scorers_of,
    sources_of,
    variants_of,
)
from unigame.cli.evaluate_robustness import attack, attacked_of, attacks_of, practice_for
from unigame.errors import UserError
from unigame.system.writable import require_writable

if TYPE_CHECKING:
    from unigame.evaluation.ranks import Ranks

SUBMISSION = "submission"
"""The parser variant that writes answers for a challenge server and gives no figure."""
_DATA = "Data; of several benchmarks: vqav2=testdev,pope=random"
_VARIANTS = "Variants, where references differ (docs/evaluation.md)"
_DRAWING = "Pictures that the model draws"
_SCORING = "Models that score"
_ROBUSTNESS = "Robustness (docs/robustness.md)"


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
            or scorers that cannot be had, a model that does not load, an output of other settings
            or of more items than ``--limit`` leaves;
            or a benchmark that could not be scored or of which nothing was scored, after the others
            are recorded and shown.
    """
    from unigame.evaluation.attacks import robustness_record
    from unigame.evaluation.bars import Bars
    from unigame.evaluation.record import require_no_fewer, write_json
    from unigame.evaluation.run import RESULTS
    from unigame.reports.record_text import print_record
    from unigame.system.console import make_console

    attacks = attacks_of(args)
    names, sources, jobs = _jobs(args, output, scored=True)
    attacked = attacked_of(jobs) if attacks else None
    sizes = {job.benchmark.name: len(job.loaded.items) for job in jobs}
    if attacked is not None:
        sizes[robustness_record.NAME] = len(attacked.loaded.items)
    require_no_fewer(output / RESULTS, sizes, args.limit)
    # The adversary practises on the whole data set's pictures, or its choice would hang on --limit.
    whole = attacked.loaded.items if attacked else []
    if attacked is not None and args.limit is not None:
        whole = attacked.benchmark.load(sources[attacked.benchmark.name]).items
    practice = practice_for(attacked, attacks, whole) if attacked is not None else None
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
        try:
            entry = attack(args, backbone, attacked, attacks, practice)
        except UserError:
            print_record(record, names)  # all that was measured before it
            raise
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
    options_given = ("samples", "judge", "rubric", *SCORER_OPTIONS)
    check_options(names, {name: getattr(args, name) for name in options_given})
    check_drawing(args, names)
    sources = sources_of(args, names, output)
    if args.data_root is not None:  # a download keeps its bars
        import datasets

        datasets.disable_progress_bars()
    scorers = scorers_of(args, names)
    benchmarks = [build_benchmark(name, {**scorers, **variants_of(args, name)}) for name in names]
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
