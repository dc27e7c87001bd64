"""Every schema in its wild variants: read, laid out as the family's template says, and trained on.

Each schema is written from the same conversations, with an answer of its own, so that a test can
tell whose rows reached the model.
"""

import base64
import json

import datasets
import pytest
import yaml
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature

from tests.data.files import BLUE, RED, png, write
from tests.training.helpers import make_config
from unigame import UniGameTrainer, cli
from unigame.backbones import load_backbone
from unigame.backbones.janus.model import JanusBackbone
from unigame.data import build_dataset, load_image
from unigame.data.guess import guess_source
from unigame.data.records import num_pictures

RED_PATH, BLUE_PATH, GONE = "bilder/rot ü 红.png", "blue.png", "gone.png"
PICTURES = {RED_PATH: png(RED), BLUE_PATH: png(BLUE)}
QUESTION = "what colour is it"
TAGS = {"user": "Q", "assistant": "A"}


# ---- the conversations, the same in every schema -------------------------------------------------
def conversations(answer):
    """Turns with their pictures; <image> stands for a picture."""
    return [
        ([(f"<image>\n{QUESTION}", answer)], [RED_PATH]),
        ([("are there two", "no"), (f"{QUESTION}<image>", answer)], [BLUE_PATH]),
        ([(f"{QUESTION} <image> or <image>", answer)], [RED_PATH, BLUE_PATH]),
        ([("is the circle big", answer)], []),
        ([(f"<image><image>{QUESTION}", answer)], [BLUE_PATH]),
        ([(f"<image>{QUESTION}", answer)], [GONE]),
    ]


LEFT_OUT = {"more image marks than pictures": 1, "missing image": 1}


def template_messages(answer, earlier):
    """The records that must come of them, as messages of the model's own chat template."""
    text, picture = lambda words: {"type": "text", "text": words}, {"type": "image"}

    def user(*parts):
        return {"role": "user", "content": list(parts)}

    def reply(words):
        return {"role": "assistant", "content": [text(words)]}

    before = [user(text("are there two")), reply("no")]
    records = [
        [user(picture, text(QUESTION)), reply(answer)],
        [*(before if earlier else []), user(picture, text(QUESTION)), reply(answer)],
        [user(text(QUESTION), picture, text("or"), picture), reply(answer)],
        [user(text("is the circle big")), reply(answer)],
    ]
    return [*records, before] if earlier else records


# ---- the schemas ---------------------------------------------------------------------------------
def said(turns, who=("user", "assistant"), keys=("role", "content")):
    texts = [text for turn in turns for text in turn]
    return [{keys[0]: who[n % 2], keys[1]: text} for n, text in enumerate(texts)]


def llava(turns, pictures):
    named = (
        {"image": pictures[0]} if len(pictures) == 1 else {"image": pictures} if pictures else {}
    )
    return {**named, "conversations": said(turns, ("human", "gpt"), ("from", "value"))}


def llama_factory(turns, pictures):
    return {"images": pictures, "conversations": said(turns, ("Q", "A"), ("from", "value"))}


def parts_of(text, pictures, part):
    """A text as parts, its pictures taken from the list."""
    first, *others = text.split("<image>")
    found = [{"type": "text", "text": first.strip()}] if first.strip() else []
    for piece in others:
        found.append(part(pictures.pop(0) if pictures else None))
        found += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    return found


def trl(turns, pictures):
    turns = [[parts_of(t, [], lambda _: {"type": "image"}) for t in turn] for turn in turns]
    return {"images": pictures, "messages": said(turns)}


def trl_prompts(turns, pictures):
    messages = trl(turns, pictures)["messages"]
    return {"images": pictures, "prompt": messages[:-1], "completion": messages[-1:]}


def swift(turns, pictures):
    return {"images": pictures, "messages": said(turns)}


def swift_query(turns, pictures):
    *history, (query, response) = turns
    row = {"query": query, "response": response, "images": pictures}
    return {**row, "history": [list(turn) for turn in history]} if history else row


def openai(turns, pictures):
    def url(path):
        if path in PICTURES:
            path = "data:image/png;base64," + base64.b64encode(PICTURES[path]).decode()
        return {"type": "image_url", "image_url": {"url": path} if path else {}}

    left = list(pictures)
    return {"messages": said([[parts_of(text, left, url) for text in turn] for turn in turns])}


def align_anything(turns, pictures):
    question, answer = turns[-1]
    row = {"prompt": question.replace("<image>", "<image_placeholder>"), "response": answer}
    return {**row, "image": pictures[0] if len(pictures) == 1 else pictures}


SCHEMAS = {
    "llava": (llava, "red"),
    "trl": (trl, "green"),
    "trl prompt and completion": (trl_prompts, "blue"),
    "swift": (swift, "yellow"),
    "swift query": (swift_query, "circle"),
    "llama factory": (llama_factory, "square"),
    "openai": (openai, "triangle"),
    "align-anything": (align_anything, "cross"),
    "parquet": (swift, "two"),
    "save_to_disk": (swift, "three"),
}
ONE_TURN = ("align-anything",)
"""What has no earlier turns."""
CAPTION = "a small red square"


def save(folder, name):
    """The file of a schema, and its source, guessed as ``--data FILE`` guesses."""
    schema, answer = SCHEMAS[name]
    rows = [schema(turns, pictures) for turns, pictures in conversations(answer)]
    path = folder / f"{name} ü.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if name in ("parquet", "save_to_disk"):
        path = table(folder, name, rows)
    elif name == "llava":  # one list; the others a row a line, with the line ends of Windows
        path.write_bytes(b"\xef\xbb\xbf" + f"[{','.join(lines)}]".encode())
    else:
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    source = guess_source(str(path)).source
    return {**source, "tags": TAGS} if name == "llama factory" else source


def stored_picture(path):
    return {"bytes": PICTURES[path], "path": path} if path in PICTURES else None


def table(folder, name, rows):
    text = Value("string")
    features = Features(
        {"images": List(ImageFeature()), "messages": List({"role": text, "content": text})}
    )
    stored = [{**row, "images": [stored_picture(path) for path in row["images"]]} for row in rows]
    made = Dataset.from_list(stored, features=features)
    path = folder / (name if name == "save_to_disk" else f"{name} ü.parquet")
    made.save_to_disk(path) if name == "save_to_disk" else made.to_parquet(path)
    return path


def save_captions(folder):
    """BAGEL's: several captions of a picture as an object in json."""
    captions = json.dumps({"short": CAPTION, "long": "a red square and two circles"})
    rows = [{"image": RED_PATH, "captions": captions}, {"image": GONE, "captions": captions}]
    path = folder / "bagel ü.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode())
    return guess_source(str(path)).source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for path, content in PICTURES.items():
        write(tmp_path / path, content)
    return tmp_path


@pytest.fixture(scope="module")
def backbone(tiny_path):
    return load_backbone(tiny_path, device="cpu")


def by_template(backbone, name):
    """(prompt, answer) of all records of a schema, by transformers' processor: ids."""
    processor, picture = backbone.processor, load_image(RED_PATH)
    _, answer = SCHEMAS[name]

    def ids(messages, **settings):
        text = processor.apply_chat_template(messages, tokenize=False, **settings)
        pictures = [picture] * text.count("<image_placeholder>")
        return tuple(map(int, processor(text=text, images=pictures or None)["input_ids"][0]))

    found = []
    for messages in template_messages(answer, earlier=name not in ONE_TURN):
        whole = (*ids(messages), backbone.layout.eos_id)
        prompt = ids(messages[:-1], add_generation_prompt=True)
        assert whole[: len(prompt)] == prompt
        found.append((prompt, whole[len(prompt) :]))
    return found


@pytest.mark.parametrize("name", SCHEMAS)
def test_trained_tokens_are_those_of_the_answers(folder, backbone, name):
    data = build_dataset([save(folder, name)])
    found = []
    for record in data:
        number = num_pictures(record)
        asked = backbone.preprocessor.answer(record["question"], record["answer"], number)
        found.append((asked.prompt, asked.answer))
    expected = by_template(backbone, name)
    assert sorted(found) == sorted(expected)
    assert data.skips.counts() == LEFT_OUT
    assert "1 of several pictures" in data.skips.summary()
    assert list(map(num_pictures, data.iter_texts())) == list(map(num_pictures, data))


# ---- twenty steps --------------------------------------------------------------------------------
@pytest.fixture
def reached(monkeypatch):
    """(prompt, answer) of every answer that U learned from, and every drawing prompt: ids."""
    answers, prompts = set(), set()
    answered, drawn = JanusBackbone.answer_token_losses, JanusBackbone.generation_loss

    def answer(self, images, questions, *rest, **given):
        answers.update((asked.prompt, asked.answer) for asked in questions)
        return answered(self, images, questions, *rest, **given)

    def draw(self, images, captions, **given):
        prompts.update(prompt.ids for prompt in captions)
        return drawn(self, images, captions, **given)

    monkeypatch.setattr(JanusBackbone, "answer_token_losses", answer)
    monkeypatch.setattr(JanusBackbone, "generation_loss", draw)
    return answers, prompts


def check_reached(reached, backbone):
    answers, prompts = reached
    for name in SCHEMAS:
        missing = set(by_template(backbone, name)) - answers
        assert not missing, f"{len(missing)} rows of {name} did not reach the model"
    assert backbone.preprocessor.prompt(CAPTION).ids in prompts


STEPS = {"max_steps": 20, "per_device_train_batch_size": 3, "generation_weight": 1.0}


def test_twenty_steps_of_all_schemas_by_command(folder, backbone, tiny_path, reached, capsys):
    sources = [*(save(folder, name) for name in SCHEMAS), save_captions(folder)]
    settings = {**STEPS, "use_cpu": True, "disable_tqdm": True, "output_dir": "run"}
    tree = {"model": str(tiny_path), "data": [{"type": "synthetic"}], "methods": ["sft"]}
    (folder / "r.yaml").write_text(yaml.safe_dump({**tree, "training": settings}))
    assert cli.main(["train", "r.yaml", "--data", json.dumps(sources)]) == 0
    said = capsys.readouterr()
    assert "Trained 20 steps" in said.out
    lines = " ".join(said.err.split())
    assert "5 rows (2 of text alone, 1 of several pictures), 2 skipped" in lines
    check_reached(reached, backbone)


def test_twenty_steps_of_all_schemas_in_python(folder, backbone, tiny_path, reached):
    sources = [*(save(folder, name) for name in SCHEMAS), save_captions(folder)]
    args = make_config(folder / "run", **STEPS)
    trainer = UniGameTrainer(tiny_path, args, build_dataset(sources), methods=["sft"])
    trainer.train()
    assert trainer.state.global_step == 20
    check_reached(reached, backbone)


def test_a_file_is_enough_for_the_command(folder, tiny_path, reached, capsys):
    save(folder, "llava")
    tree = {"model": str(tiny_path), "data": [{"type": "synthetic"}], "methods": ["sft"]}
    settings = {"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "output_dir": "run"}
    (folder / "r.yaml").write_text(yaml.safe_dump({**tree, "training": settings}))
    assert cli.main(["train", "r.yaml", "--data", "llava ü.jsonl"]) == 0
    line = " ".join(capsys.readouterr().err.split())
    assert "type: chat" in line and "conversations" in line and "5 rows" in line
    assert reached[0]
