"""``unigame evaluate``: benchmarks of a model, real or synthetic, into one record."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unigame.cli.console import make_console, next_step
from unigame.cli.evaluate_arguments import SYNTHETIC
from unigame.errors import UserError

BUNDLED = "janus-nano"
SUBMISSION = "submission"
"""The parser variant that writes answers for a challenge server and gives no figure."""
SYNTHETIC_SIZE = 200
"""Questions of each synthetic benchmark; ``--limit`` asks fewer of them."""


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Run the command and return the record.

    Raises:
        UserError: unknown benchmarks or variants, data or scorers that cannot be had, a model that
            does not load, an output of other settings; or a benchmark that could not be scored or
            of which nothing was scored, after the others are recorded and shown.
    """
    from unigame.evaluation.ask import Drawing
    from unigame.evaluation.attacks.robustness_record import NAME as ROBUSTNESS
    from unigame.evaluation.attacks.robustness_record import robustness_entry
    from unigame.evaluation.batching import is_out_of_memory
    from unigame.evaluation.miniature import DRAWING
    from unigame.evaluation.record import write_json
    from unigame.evaluation.registry import benchmark_names, build_benchmark, check_variants
    from unigame.evaluation.run import RESULTS, load_jobs, run_jobs

    names = benchmark_names(args.benchmarks)
    check_variants(names, args.prompt, "prompt")
    check_variants(names, args.parser, "parser")
    output = output_folder(args)
    sources = _sources(args, names, output)
    _quiet_datasets(_data_root(args) is not None)
    options = _scorers(args, names)
    benchmarks = [build_benchmark(name, {**options, **_variants(args, name)}) for name in names]
    attacks = _attacks(args)
    jobs = load_jobs(benchmarks, sources, limit=args.limit)
    attacked = _attacked(jobs) if attacks else None
    # The adversary practises on the whole data set's pictures, or its choice would hang on --limit.
    whole = attacked.loaded.items if attacked else None
    if attacked is not None and args.limit is not None:
        whole = attacked.benchmark.load(sources[attacked.benchmark.name]).items
    backbone, model = _load_model(args)
    if attacks is not None and attacks.adversary is not None:
        backbone.require_drawing()  # now, not after hours of other benchmarks
    usual = DRAWING if _data_root(args) == SYNTHETIC else Drawing()
    drawing = Drawing(
        args.seed,
        usual.guidance_scale if args.guidance_scale is None else args.guidance_scale,
        usual.temperature if args.temperature is None else args.temperature,
    )

    from unigame.cli.evaluate_console import Bars, print_record

    with Bars({job.benchmark.name: job.benchmark.title for job in jobs}) as bars:
        record = run_jobs(
            backbone,
            jobs,
            output=output,
            model=model,
            batch_size=args.batch_size,
            drawing=drawing,
            max_images=args.max_images,
            progress=bars,
        )
    if attacked is not None:
        items = len(attacked.loaded.items)
        with make_console().status(f"Robustness on {attacked.benchmark.title}") as status:
            try:
                entry = robustness_entry(
                    backbone,
                    attacked.benchmark,
                    attacked.loaded,
                    attacks,
                    whole=whole,
                    check=_content_check(args, backbone),
                    report=lambda done: status.update(f"Robustness: {done} of {items} questions"),
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    f"an attack on {attacks.batch_size} pictures at once does not fit into memory; "
                    "give a smaller --batch-size"
                ) from error
        record["benchmarks"][ROBUSTNESS] = entry
        write_json(output / RESULTS, record)
        names = [*names, ROBUSTNESS]
    print_record(record, names)
    make_console().print(f"\nWrote {output / RESULTS}")
    if SYNTHETIC == _data_root(args):
        make_console().print(
            "Synthetic data: these figures compare models of this small world only."
        )
    _check_scored(record, names)
    next_step(f"compare with another model:  unigame compare OTHER {shlex.quote(str(output))}")
    return record


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


def output_folder(args: argparse.Namespace) -> Path:
    """Where the record goes: named after the model and its adapter, unless it was given.

    Raises:
        UserError: it is a file.
    """
    if args.output is not None:
        output = Path(args.output)
    else:
        parts = [Path(str(path)).name for path in (args.model, args.adapter) if path]
        output = Path("runs") / "evaluate" / "+".join(parts)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    return output


def interrupted_note(args: argparse.Namespace) -> str:
    """One line for Ctrl-C: what is on disk."""
    output = output_folder(args)
    kept = 0
    for file in output.glob("*/predictions.jsonl"):
        kept += file.read_bytes().count(b"\n")
    return (
        f"Stopped; {kept} predictions are kept in {output}. Run the same command again to go on "
        "from there."
    )


# ---- data ----------------------------------------------------------------------------------------


def _data_root(args: argparse.Namespace) -> str | None:
    return SYNTHETIC if args.data_root is None and args.model == BUNDLED else args.data_root


def _sources(args: argparse.Namespace, names: Sequence[str], output: Path) -> dict[str, Any]:
    """Benchmark name -> where its data lie, and which part of them is read."""
    from unigame.evaluation.base import DataSource
    from unigame.evaluation.registry import check_choices, choice_for

    chosen = {option: getattr(args, option) for option in ("split", "config", "hub_id", "revision")}
    for option, text in chosen.items():
        check_choices(names, text, option.replace("_", "-"))
    if _data_root(args) is not None and (args.hub_id or args.revision):
        raise UserError("--hub-id and --revision are of data on the Hub; leave out --data-root")
    root = _root(args, names, output)
    return {
        name: DataSource(
            root=None if root is None else _folder(root, name, len(names) == 1),
            **{option: choice_for(name, text) for option, text in chosen.items()},
        )
        for name in names
    }


def _root(args: argparse.Namespace, names: Sequence[str], output: Path) -> Path | None:
    """The folder of the benchmarks' folders; None: the Hub."""
    chosen = _data_root(args)
    if chosen is None:
        return None
    if chosen != SYNTHETIC:
        return Path(chosen).expanduser()
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


def _quiet_datasets(local: bool) -> None:
    """No bars for reading local files; a download keeps its own."""
    if local:
        import datasets

        datasets.disable_progress_bars()


# ---- variants and scorers ------------------------------------------------------------------------


def _variants(args: argparse.Namespace, name: str) -> dict[str, str | None]:
    from unigame.evaluation.miniature import world_variants
    from unigame.evaluation.registry import variant_for

    prompt = variant_for(name, args.prompt, "prompt")
    parser = variant_for(name, args.parser, "parser")
    if _data_root(args) == SYNTHETIC:
        usual = world_variants(name)
        prompt, parser = prompt or usual["prompt"], parser or usual["parser"]
    return {"prompt": prompt, "parser": parser}


def _scorers(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """What scores, by the names of the benchmarks' arguments; None: their defaults."""
    options: dict[str, Any] = {"samples": args.samples}
    if _data_root(args) == SYNTHETIC:
        options |= _stand_ins(names)
    if args.caption_tokens is not None:
        options["caption_tokens"] = args.caption_tokens
    if args.matcher is not None:
        options["matcher"] = args.matcher
    if args.colours is not None:
        options["colours"] = args.colours
    if args.judge is not None:
        from unigame.evaluation.scorers.judges import parse_judge

        options["judge"] = parse_judge(args.judge)
    if args.rubric is not None:
        from unigame.evaluation.scorers.judges import Rubric

        options["rubric"] = Rubric.from_file(args.rubric)
    if args.detector is not None:
        options["detector"] = args.detector
    if args.encoders is not None:
        options["encoders"] = args.encoders
    return options


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

        scorers["encoders"] = stand_ins.stand_in_encoders(load_backbone(BUNDLED))
    return scorers


# ---- robustness ----------------------------------------------------------------------------------


def _attacks(args: argparse.Namespace) -> Any:
    """What ``--robustness`` asks for, as a ``RobustnessConfig``; None without it."""
    if args.robustness is None:
        if args.attack_recipe is not None:
            raise UserError("--attack-recipe without --robustness; add --robustness adversary")
        return None
    from unigame.evaluation.attacks.adversary import adversary_for
    from unigame.evaluation.attacks.robustness import RobustnessConfig
    from unigame.training.recipe import load_recipe

    kinds = [kind.strip() for kind in args.robustness.split(",") if kind.strip()]
    recipe = args.attack_recipe or ("janus_nano" if args.model == BUNDLED else None)
    config = RobustnessConfig()
    if recipe:
        try:
            adversary = adversary_for(load_recipe(recipe, here=False).training)
        except UserError as error:
            raise UserError(f"--attack-recipe {recipe}: {error}") from error
        config = replace(config, adversary=adversary)
    if args.batch_size is not None:
        config = replace(config, batch_size=args.batch_size)
    return config.only(kinds)


def _content_check(args: argparse.Namespace, backbone: Any) -> Any:
    """Who says that an attacked picture kept its content: on the synthetic world, its reader."""
    from unigame.evaluation.world import ReaderCheck
    from unigame.synthetic.world import SIDE

    fits = _data_root(args) == SYNTHETIC and backbone.facts.image_size == SIDE
    return ReaderCheck() if fits else None


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


def _load_model(args: argparse.Namespace) -> tuple[Any, Mapping[str, Any]]:
    """The model, and what the record says of it."""
    import torch

    from unigame.backbones import load_backbone
    from unigame.backbones.folder import find_checkpoint
    from unigame.evaluation.record import model_entry

    dtype = args.dtype
    if dtype == "auto" and not torch.cuda.is_available():
        dtype = "float32"  # most CPUs only imitate bfloat16, ten times slower
    backbone = load_backbone(args.model, dtype=dtype, adapter=args.adapter)
    checkpoint = find_checkpoint(args.model)
    folder = checkpoint if isinstance(checkpoint, Path) else _downloaded(checkpoint)
    adapter = Path(args.adapter) if args.adapter else None
    entry = model_entry(backbone, id=str(args.model), folder=folder, adapter=adapter)
    return backbone, entry


def _downloaded(hub_id: str) -> Path:
    """The folder that loading the model from the Hub has just filled."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(hub_id, allow_patterns=["*.safetensors"], local_files_only=True))
