"""Captions with questions of a task that the bundled model was never trained on: where is a thing?

python examples/captions_of_a_new_task.py captions.jsonl --captions 500

Each line is what method `imagine` reads, of your own captions too (docs/methods.md):

    {"caption": "northwest red disc, south blue cross",
     "questions": [{"question": "where is the red disc?", "answer": "northwest"}, ...]}
"""

import argparse
import shlex
from pathlib import Path

from unigame.synthetic.from_captions import new_scenes, write_captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=Path("captions.jsonl"))
    parser.add_argument("--captions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    write_captions(args.file, new_scenes(args.captions, args.seed), new_task=True)
    print(f"{args.file}: {args.captions} captions. Next: unigame train janus_nano_imagine")
    if args.file != Path("captions.jsonl"):
        print(f"  with --imagine.texts {shlex.quote(str(args.file))}")


if __name__ == "__main__":
    main()
