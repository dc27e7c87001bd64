"""Wild conversations: trained on by the command, and token for token what they say."""

import base64
import json

import pytest
import yaml

from tests.data.files import BLUE, RED, png, write
from unigame import cli
from unigame.backbones import load_backbone
from unigame.data import Chat, load_image

DATA = "data:image/png;base64," + base64.b64encode(png(RED)).decode()
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bilder/rot ü 红.png", png(RED))
    write(tmp_path / "blue.png", png(BLUE))
    return tmp_path


def said(*texts, who=("user", "assistant"), keys=("role", "content")):
    return [{keys[0]: who[n % 2], keys[1]: text} for n, text in enumerate(texts)]


def gpt(*texts):
    return said(*texts, who=("human", "gpt"), keys=("from", "value"))


def part(text):
    return {"type": "text", "text": text}


def url(link):
    return {"type": "image_url", "image_url": {"url": link}}


RED_PATH, QUESTION = "bilder/rot ü 红.png", "what colour is it"
# Of each: a good row, a picture in the second turn, more marks than pictures, a missing picture,
# and a last question without an answer.
WILD = {
    "llava": [
        {"image": RED_PATH, "conversations": gpt(f"<image>\n{QUESTION}", "red")},
        {"image": "blue.png", "conversations": gpt("a b", "no", f"{QUESTION}<image>", "blue")},
        {"image": "blue.png", "conversations": gpt("<image><image>which", "blue")},
        {"image": "gone.png", "conversations": gpt(QUESTION, "green")},
        {"image": "blue.png", "conversations": gpt(QUESTION, "blue", "how many")},
    ],
    "swift": [
        {"images": [RED_PATH], "messages": said(f"<image>{QUESTION}", "red")},
        {"images": ["blue.png"], "messages": said("a b", "no", f"<image>{QUESTION}", "blue")},
        {"images": ["blue.png"], "messages": said("<image><image>which", "blue")},
        {"images": ["gone.png"], "messages": said(f"<image>{QUESTION}", "green")},
        {"images": ["blue.png"], "messages": [SYSTEM, *said(QUESTION, "blue", "how many")]},
    ],
    "parts": [
        {"messages": said([url(DATA), part(QUESTION)], "red")},
        {"messages": said("a b", "no", [part(QUESTION), url(DATA)], "red")},
        {"messages": said([url(DATA), part("<image>which")], "blue")},
        {"messages": said([url("gone.png"), part(QUESTION)], "green")},
        {"messages": said([url(DATA), part(QUESTION)], "blue", "how many")},
    ],
    "pairs": [
        {"image": RED_PATH, "query": QUESTION, "response": "red"},
        {
            "image": "blue.png",
            "history": [["a b", "no"]],
            "query": f"<image>{QUESTION}",
            "response": "blue",
        },
        {"image": "blue.png", "query": "<image><image>which", "response": "blue"},
        {"image": "gone.png", "query": QUESTION, "response": "green"},
        {"image": "blue.png", "messages": said(QUESTION, "blue", "how many")},
    ],
}


@pytest.mark.parametrize("schema", WILD)
def test_two_steps_on_wild_rows(folder, schema, tiny_path, capsys):
    lines = [json.dumps(row, ensure_ascii=False) for row in WILD[schema]]
    path = folder / f"{schema} ü.jsonl"
    if schema == "llava":  # one list; the others a row a line, with the line ends of Windows
        path.write_bytes(b"\xef\xbb\xbf" + f"[{','.join(lines)}]".encode())
    else:
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    tree = {"model": str(tiny_path), "data": [{"type": "synthetic"}], "methods": ["sft"]}
    settings = {"max_steps": 2, "use_cpu": True, "per_device_train_batch_size": 2}
    tree["training"] = {**settings, "disable_tqdm": True, "output_dir": "run"}
    (folder / "r.yaml").write_text(yaml.safe_dump(tree))
    words = ["train", "r.yaml", "--data", path.name, "--max_skipped_share", "1"]
    assert cli.main(words) == 0
    found = capsys.readouterr()
    assert "Trained 2 steps" in found.out
    line = " ".join(found.err.split())
    assert "type: chat" in line and "3 rows, 4 skipped" in line
    for reason in ("text without", "more image marks", "missing image", "question without an"):
        assert f"1 {reason}" in line


def test_trained_tokens_are_those_of_the_answers(folder, tiny_path):
    """The family's own template, over the whole conversation, says what has to be read."""
    path = folder / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in WILD["swift"]))
    data, backbone = Chat(path), load_backbone(tiny_path)
    processor, layout = backbone.processor, backbone.layout
    picture = load_image(RED_PATH)

    def ids(messages, **settings):
        text = processor.apply_chat_template(messages, tokenize=False, **settings)
        return processor(text=text, images=[picture])["input_ids"][0]

    def spoken(*texts):
        who = ("user", "assistant")
        turns = [{"role": who[n % 2], "content": [part(text)]} for n, text in enumerate(texts)]
        turns[0]["content"].insert(0, {"type": "image"})
        return turns

    later = said("a b", "no", f"<image>{QUESTION}", "blue", "how many", "one", "is it red", "no")
    path.write_text(json.dumps({"image": "blue.png", "messages": later}))
    last = Chat(path)[2]
    asked = backbone.preprocessor.answer(last["question"], last["answer"])
    context = spoken(QUESTION, "blue", "how many", "one", "is it red", "no")
    assert list(asked.prompt) == list(ids(context[:-1], add_generation_prompt=True))
    assert list(asked.prompt + asked.answer) == [*ids(context), layout.eos_id]
    prompt = backbone.preprocessor.prompt(last["question"])
    assert prompt == backbone.preprocessor.prompt("is it red")
    for row, answer in zip(data, ("red", "blue", "blue"), strict=True):
        asked = backbone.preprocessor.answer(row["question"], row["answer"])
        user = {"role": "user", "content": [{"type": "image"}, part(QUESTION)]}
        reply = {"role": "assistant", "content": [part(answer)]}
        assert list(asked.prompt) == list(ids([user], add_generation_prompt=True))
        assert list(asked.prompt + asked.answer) == [*ids([user, reply]), layout.eos_id]
        assert layout.tokenizer.decode(asked.answer, skip_special_tokens=True).strip() == answer
