"""Pictures of "your own" for docs/tutorial.md: shapes seen by a bad camera, with questions.

python examples/draw_pictures.py my_pictures --train 600 --held-out 240

    my_pictures/train.json, *.png               a list of image, question, answer, caption
    my_pictures/held_out/table.jsonl, *.png     other pictures, in the columns of VQAv2's data
"""

import argparse
import json
from pathlib import Path

import numpy as np

from unigame.synthetic.dataset import scene_of, to_pil
from unigame.synthetic.questions import KINDS, ask
from unigame.synthetic.world import caption

CAMERA = ("noise", "blur", "contrast")  # what this camera does to a picture
QUESTIONS = 6  # of each picture
ANNOTATORS = 10  # VQAv2 has ten, and counts an answer as right that three of them gave


def draw(folder: Path, count: int, seed: int) -> list[dict[str, str]]:
    """Write pictures until they have ``count`` questions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, str]] = []
    for number in range(count):
        scene = scene_of(CAMERA[number % len(CAMERA)], rng)
        name = f"{number:04}.png"
        to_pil(scene).save(folder / name)
        for kind in KINDS[:QUESTIONS]:
            asked = ask(scene, kind, rng)  # None: nothing of that kind can be asked
            if asked is not None:
                question, answer = asked
                text = {"question": question, "answer": answer, "caption": caption(scene)}
                rows.append({"image": name, **text})
        if len(rows) >= count:
            break
    return rows[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=600, help="questions to learn from")
    parser.add_argument("--held-out", type=int, default=240, help="questions of other pictures")
    args = parser.parse_args()

    rows = draw(args.folder, args.train, seed=1)
    (args.folder / "train.json").write_text(json.dumps(rows, indent=1))

    held_out = args.folder / "held_out"
    lines = [
        {
            "question_id": number,
            "image_id": row["image"],  # questions of one picture are counted together
            "image": row["image"],
            "question": row["question"],
            "answers": [row["answer"]] * ANNOTATORS,
        }
        for number, row in enumerate(draw(held_out, args.held_out, seed=2))
    ]
    (held_out / "table.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{args.folder}: {len(rows)} questions to learn from, {len(lines)} held out")


if __name__ == "__main__":
    main()
