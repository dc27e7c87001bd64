"""The ``unigame`` command. Arguments are checked before anything heavy is imported.

What a user got wrong ends in one line on stderr and exit code 2, without a traceback; Ctrl-C,
SIGTERM and SIGHUP in one line that says what was kept, and exit code 128 + the signal's number (130
for Ctrl-C). Of several processes that meet the same mistake the first says it. Any other exception
is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Never

from unigame import __version__
from unigame.cli import compose_arguments, evaluate_arguments, values
from unigame.errors import OneProcessError, UserError
from unigame.system import signals
from unigame.system.threads import share_cores

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

DEFAULT_MODEL = "janus-nano"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` defaults to the process's arguments."""
    with signals.raised():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    args = argparse.Namespace()
    try:
        parser = build_parser()
        args, extra = parser.parse_known_args(argv)
        if extra and args.command != "pretrain":
            raise UserError(
                f"unknown argument {extra[0]!r}; `unigame {args.command} --help` lists them"
            )
        args.extra = extra
        _quiet_libraries()
        _require_current_folder()
        share_cores()  # before anything imports torch
        run: Callable[[argparse.Namespace], int | None] = args.run
        return run(args) or EXIT_OK
    except UserError as error:
        return _fail(error)
    except KeyboardInterrupt as error:
        if _is_first_process():
            print(f"\n{_what_was_kept(args)}", file=sys.stderr)  # noqa: T201
        return 128 + error.signum if isinstance(error, signals.Stopped) else EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) went away; point stdout at nothing so that exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        from unigame.cli.faults import fault_line

        line = fault_line(error)
        if line is None or os.environ.get("UNIGAME_TRACEBACK"):
            raise
        return _fail(UserError(f"{line}; {_what_was_kept_if_known(args)}"))


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are ``UserError``: one line instead of a usage block."""

    def error(self, message: str) -> Never:
        raise UserError(f"{message}; `{self.prog} --help` shows what it takes")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = _Parser(
        prog="unigame",
        description="Post-train a unified multimodal model by letting it play its own adversary.",
        epilog="Start with: unigame demo --quick",
    )
    parser.add_argument("--version", action="version", version=f"unigame {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="command", parser_class=_Parser
    )
    _add_demo(commands)
    _add_train(commands)
    _add_compose(commands)
    _add_convert(commands)
    _add_generate(commands)
    _add_answer(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_doctor(commands)
    _add_backbones(commands)
    pretrain = commands.add_parser(
        "pretrain", add_help=False, help="train the bundled model janus-nano from scratch"
    )
    pretrain.set_defaults(run=_pretrain)
    return parser


# ---- the commands: their arguments, and what they call -------------------------------------------


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "demo",
        help="play the game on the bundled model and print an honest before/after table",
        description="Train SFT, UniGame and the controls at the same budget, evaluate them all, "
        "and write table, gallery, curves and adapter.",
    )
    command.add_argument("--quick", action="store_true", help="about a third of the time")
    command.add_argument(
        "--seed", type=values.seed, default=0, help="of data, training and evaluation"
    )
    command.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write")
    command.add_argument("--model", default=DEFAULT_MODEL, help="bundled name, folder or Hub id")
    command.add_argument(
        "--overwrite", action="store_true", help="replace a demo of other settings in --output"
    )
    command.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    _check_output_folder(args.output)
    from unigame.cli.console import next_step
    from unigame.demo.run import run_demo

    asked = {"overwrite": True} if args.overwrite else {}
    run_demo(output=args.output, quick=args.quick, seed=args.seed, model=args.model, **asked)
    next_step(
        f"look at {args.output}/gallery.png and {args.output}/curves.png",
        "change one number and train again:  unigame train janus_nano --beta 0.25",
    )


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "train",
        help="train from a recipe: unigame train janus_nano --learning_rate 1e-4",
        description="Train from a YAML recipe (a file, or the name of a shipped one). Any setting "
        "of the recipe can follow as --key value; a dotted path reaches inside: --lora.r 8.",
        epilog="All settings, with the values of a recipe: unigame train RECIPE --help",
    )
    command.add_argument("recipe", help="YAML file or the name of a shipped recipe")
    command.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="--key value", help="settings to change"
    )
    command.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    if {"--help", "-h"} & {args.recipe, *args.overrides}:
        from unigame.cli.settings_help import print_settings

        return print_settings(args.recipe, args.overrides)
    from unigame.cli.train import train

    train(args.recipe, args.overrides)


def _add_compose(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "compose",
        help="make a model from a VLM or LLM and a diffusion image branch",
        description="Check that the parts fit and write config.json and an untrained connector; "
        "the parts stay where they are. See docs/backbones/composed.md.",
    )
    compose_arguments.add_arguments(command)
    command.set_defaults(run=_compose)


def _compose(args: argparse.Namespace) -> None:
    from unigame.cli.compose import compose

    _check_output_folder(args.folder)
    compose(
        args.folder,
        language=args.language,
        denoiser=args.denoiser,
        vision_encoder=args.vision_encoder,
        vae=args.vae,
        image_size=args.image_size,
        vision_size=args.vision_size,
        num_queries=args.num_queries,
        strength=args.strength,
        draw_steps=args.draw_steps,
        seed=args.seed,
    )


def _add_convert(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "convert",
        help="turn an original deepseek-ai Janus into the Hub format",
        description="Write Janus-1.3B or Janus-Pro as load_backbone and transformers read it, "
        "and compare every value. See docs/backbones/janus.md.",
    )
    command.add_argument("source", help="folder or Hub id: deepseek-ai/Janus-Pro-1B")
    command.add_argument("output", type=Path, help="folder to write; new or empty")
    command.add_argument(
        "--dtype", choices=("keep", "float32", "bfloat16"), default="keep", help="of the weights"
    )
    command.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> None:
    from unigame.cli.convert import convert

    _check_output_folder(args.output)
    convert(args.source, args.output, dtype=args.dtype)


def _add_generate(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser("generate", help="draw pictures from a text prompt")
    command.add_argument("prompt", type=values.text, help="what to draw")
    _add_model_arguments(command)
    command.add_argument("--num-images", type=values.few, default=1, help="pictures to draw")
    command.add_argument("--seed", type=values.seed, default=0, help="same seed, same pictures")
    command.add_argument(
        "--guidance-scale",
        type=values.guidance,
        default=5.0,
        help="how strictly to follow the prompt",
    )
    command.add_argument(
        "--temperature",
        type=values.temperature,
        default=1.0,
        help="0 draws the most likely picture",
    )
    command.add_argument(
        "--output", type=Path, default=Path("runs/generated.png"), help="picture file to write"
    )
    command.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> None:
    from unigame.cli.inference import generate

    _check_output_folder(args.output.parent)
    generate(
        args.prompt,
        model=args.model,
        adapter=args.adapter,
        dtype=args.dtype,
        num_images=args.num_images,
        seed=args.seed,
        guidance_scale=args.guidance_scale,
        temperature=args.temperature,
        output=args.output,
    )


def _add_answer(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser("answer", help="answer a question about a picture")
    command.add_argument("image", type=Path, help="picture file")
    command.add_argument("question", type=values.text, help="what to ask about it")
    _add_model_arguments(command)
    command.add_argument(
        "--max-new-tokens", type=values.positive_int, default=32, help="longest answer, in tokens"
    )
    command.set_defaults(run=_answer)


def _answer(args: argparse.Namespace) -> None:
    from unigame.cli.inference import answer

    answer(
        args.image,
        args.question,
        model=args.model,
        adapter=args.adapter,
        dtype=args.dtype,
        max_new_tokens=args.max_new_tokens,
    )


def _add_evaluate(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "evaluate",
        help="run benchmarks: unigame evaluate --model PATH --benchmarks pope,naturalbench",
        description="Ask a model the items of one or several benchmarks, score its replies, and "
        "write predictions and results.json. A run that was stopped goes on where it was.",
    )
    _add_model_arguments(command)
    evaluate_arguments.add_arguments(command)
    command.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> None:
    from unigame.cli.evaluate import evaluate, output_folder

    _check_output_folder(output_folder(args))
    evaluate(args)


def _add_compare(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "compare",
        help="lay evaluations side by side: tables with paired differences",
        description="Print the paper's tables for several results.json of `unigame evaluate`, with "
        "paired differences to one of them, and write them as Markdown, CSV and LaTeX.",
    )
    command.add_argument(
        "records", type=Path, nargs="+", metavar="RESULTS", help="results.json, or its folder"
    )
    command.add_argument(
        "--output", type=Path, default=Path("runs/compare"), help="folder to write"
    )
    command.add_argument(
        "--baseline",
        type=values.positive_int,
        default=1,
        help="which file the differences are to, from 1",
    )
    command.add_argument(
        "--labels", type=values.names, help="names of the models: base,sft,unigame"
    )
    command.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> None:
    _check_output_folder(args.output)
    from unigame.cli.compare import compare_records

    compare_records(args.records, output=args.output, baseline=args.baseline, labels=args.labels)


def _add_doctor(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "doctor", help="check the installation, the devices, and what fits in memory"
    )
    command.add_argument("--model", help="also check this checkpoint (folder or Hub id)")
    command.add_argument("--recipe", help="also check this recipe (file or shipped name)")
    command.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from unigame.cli.doctor import doctor

    return doctor(model=args.model, recipe=args.recipe)


def _add_backbones(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "backbones", help="list the model families: what each can do, what is installed"
    )
    command.add_argument("--json", action="store_true", help="the same for programs")
    command.set_defaults(run=_backbones)


def _backbones(args: argparse.Namespace) -> None:
    from unigame.cli.backbones import backbones

    backbones(as_json=args.json)


def _pretrain(args: argparse.Namespace) -> int | None:
    from unigame.synthetic.pretrain import main as pretrain

    return pretrain(args.extra)


def _add_model_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default=DEFAULT_MODEL, help="bundled name, folder or Hub id")
    command.add_argument("--adapter", help="LoRA adapter folder, such as one that train wrote")
    command.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the weights"
    )


def _check_output_folder(path: Path) -> None:
    """Before any work: is it a folder, and can it be written to?"""
    from unigame.system.writable import require_writable

    if path.is_file():
        raise UserError(f"--output {path} is a file; name a folder")
    require_writable(path, "--output")


# ---- endings -------------------------------------------------------------------------------------


def _quiet_libraries() -> None:
    """Keep library chatter out of our output, unless the user asked for it in the environment."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A file's name or a reply may hold half a character: shown as an escape, and no traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Deprecations between transformers and peft concern neither the user nor us.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no")


def _require_current_folder() -> None:
    """Libraries ask for it in many places, and fail one by one where it was deleted."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the current folder is gone or closed to you ({error.strerror}); cd to another one"
        ) from error


def _fail(error: UserError) -> int:
    if _is_first_process() or isinstance(error, OneProcessError):
        line = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode("utf-8")
        print(f"unigame: error: {line}", file=sys.stderr)  # noqa: T201
    return EXIT_USER_ERROR


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun numbers the processes of a run


def _what_was_kept_if_known(args: argparse.Namespace) -> str:
    """The same after a fault of the machine, which may reach here too."""
    try:
        return _what_was_kept(args)
    except Exception:
        return "Stopped."


def _what_was_kept(args: argparse.Namespace) -> str:
    """One line for a signal: what is on disk, and the command that goes on from there."""
    command = getattr(args, "command", None)
    if command == "train":
        from unigame.cli.train import interrupted_note

        return interrupted_note(args.recipe, args.overrides)
    if command == "evaluate":
        from unigame.cli.evaluate import interrupted_note as kept_predictions

        return kept_predictions(args)
    if command == "convert":
        return f"Stopped; {args.output} was not written. Run the same command again."
    if command == "demo":
        from unigame.demo.folder import finished_arms

        folder, arms = finished_arms(args.output)
        kept = f"kept in {folder}: {', '.join(arms)}" if arms else "no arm was finished yet"
        return f"Stopped; {kept}. Run the same command again to go on from there."
    if command == "pretrain":
        return "Stopped; finished stages are kept. Name the others with --stages to go on."
    return "Stopped. Pictures already written are kept; run the same command again."


if __name__ == "__main__":  # torchrun -m unigame.cli train ...
    sys.exit(main())
