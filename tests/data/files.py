"""Tiny files in the real schemas."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)


def png(color=RED, size=(8, 6), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG", **options)
    return buffer.getvalue()


def jpeg(color=RED, size=(8, 6), mode="RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, str):
        path.write_text(data, encoding="utf-8")
    else:
        path.write_bytes(data)
    return path


def write_json(path: Path, content) -> Path:
    return write(path, json.dumps(content))


def write_jsonl(path: Path, rows) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_tar(path: Path, members: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            blob = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))
    return path


def ten(answers: list[str]) -> list[dict]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1}
        for i, answer in enumerate(answers)
    ]


def write_vqav2(root: Path, *, images=(9, 25), subset="train2014") -> dict[str, Path]:
    """Three questions about two images, in VQAv2's own files; ``images`` are those on disk."""
    questions = [
        {"image_id": 9, "question": "How many cookies?", "question_id": 9000},
        {"image_id": 9, "question": "What color is it?", "question_id": 9001},
        {"image_id": 25, "question": "Is it day?", "question_id": 25000},
    ]
    answers = {
        9000: ["2"] * 7 + ["two"] * 3,
        9001: ["red"] * 6 + ["pink"] * 4,
        25000: ["yes"] * 10,
    }
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": answers[item["question_id"]][0],
            "answers": ten(answers[item["question_id"]]),
            "image_id": item["image_id"],
            "answer_type": "other",
            "question_id": item["question_id"],
        }
        for item in reversed(questions)  # the join goes by id, not by position
    ]
    folder = root / subset
    folder.mkdir(parents=True)
    for image_id, color in zip((9, 25), (RED, BLUE), strict=True):
        if image_id in images:
            base = subset.replace("test-dev", "test")
            write(folder / f"COCO_{base}_{image_id:012d}.jpg", jpeg(color))
    info = {"description": "This is v2.0 of the VQA dataset."}
    return {
        "questions": write_json(
            root / "questions.json",
            {
                "info": info,
                "task_type": "Open-Ended",
                "data_type": "mscoco",
                "license": {},
                "data_subtype": subset,
                "questions": questions,
            },
        ),
        "annotations": write_json(
            root / "annotations.json",
            {"info": info, "data_subtype": subset, "annotations": annotations},
        ),
        "images": folder,
    }


def color_of(image: Image.Image, at=(2, 2)) -> str:
    """Which primary colour a picture has at a point."""
    red, green, blue = image.getpixel(at)
    if min(red, green, blue) > 230:
        return "white"
    return ("red", "green", "blue")[max(range(3), key=(red, green, blue).__getitem__)]
