"""A judge on this machine, on a tiny random LLaVA that is made here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny import shared_tiny_janus
from unigame.errors import UserError
from unigame.evaluation.scorers import judge_hf as module
from unigame.evaluation.scorers.judge_hf import HFJudge
from unigame.evaluation.scorers.judges import JudgeRequest, JudgeUnavailable, Rubric, parse_judge
from unigame.evaluation.scorers.judging import collect
from unigame.evaluation.store import JsonlStore
from unigame.evaluation.tasks.wise.rules import read_official

GOOD = "Consistency: 2 Realism: 1 Aesthetic Quality: 0"  # one token of the tiny vocabulary
WORDS = [GOOD, "<unk>", "<pad>", "<s>", "</s>", "<image>", "ASSISTANT:", "a", "b", "c", "d", "e"]
TEMPLATE = (
    "{% for m in messages %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %} <image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
SHORT = Rubric("{prompt} {explanation}")


def tiny_llava(folder, *, says_good=False, template=TEMPLATE):
    """Random weights; with ``says_good`` every token it writes is GOOD."""
    base = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **sizes, num_hidden_layers=2, image_size=16, patch_size=8, projection_dim=32
        ),
        text_config=LlamaConfig(
            **sizes,
            vocab_size=len(WORDS),
            num_hidden_layers=1,
            num_key_value_heads=2,
            pad_token_id=2,
            bos_token_id=3,
            eos_token_id=4,
        ),
        image_token_index=5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() >= 2:
                    weight.normal_(0, 0.4)
            if says_good:
                model.lm_head.weight.zero_()  # all equal: the first token wins
    square = {"height": 16, "width": 16}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=square, crop_size=square),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def requests(tmp_path):
    made = []
    for i, words in enumerate(["a", "a b c d", "e e"]):
        path = tmp_path / f"{i}.png"
        noise = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(i))
        Image.fromarray(noise.byte().numpy()).save(path)
        made.append(JudgeRequest(str(i), words, "d", path))
    return made


def test_a_batch_gets_the_replies_of_its_pictures_alone(folder, requests):
    judge = HFJudge(str(folder), max_new_tokens=6)
    together = judge.replies(requests, SHORT)
    alone = [judge.reply(r.prompt, r.explanation, r.picture, SHORT) for r in requests]
    assert together == alone
    assert len(set(together)) == 3, "replies depend on the request"


def test_the_judge_sees_the_picture_and_the_text(folder, tmp_path):
    judge = HFJudge(str(folder), max_new_tokens=6)
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255), "grey": (90, 90, 90), "white": (255,) * 3}
    for name, rgb in colours.items():
        Image.new("RGB", (16, 16), rgb).save(tmp_path / f"{name}.png")
    same_text = {judge.reply("a", "d", tmp_path / f"{name}.png", SHORT) for name in colours}
    words = ("a", "b c", "e e")
    same_picture = {judge.reply(text, "d", tmp_path / "red.png", SHORT) for text in words}
    assert len(same_text) > 1
    assert len(same_picture) > 1


def test_judging_end_to_end(tmp_path, requests):
    folder = tiny_llava(tmp_path / "good", says_good=True)
    judge = parse_judge(f"hf:{folder}")
    judge.check()
    judge.max_new_tokens, judge.batch_size = 1, 2
    store = JsonlStore(tmp_path / "judgements.jsonl")
    found = collect(judge, requests, Rubric(), lambda r: read_official(r) or None, store)
    expected = {"consistency": 2, "realism": 1, "aesthetic_quality": 0}
    assert [j.scores for j in found.values()] == [expected] * 3
    assert {row["calls"] for row in store.values()} == {1}


def test_other_weights_at_the_same_path_are_asked_anew(tmp_path, requests):
    """Their name is another one, too, so that no record takes them for the same judge."""
    store, names, calls = JsonlStore(tmp_path / "judgements.jsonl"), [], []
    for says_good in (False, False, True):
        judge = HFJudge(str(tiny_llava(tmp_path / "m", says_good=says_good)), max_new_tokens=1)
        found = collect(judge, requests, Rubric(), lambda reply: {"good": reply == GOOD}, store)
        names.append(judge.name)
        calls.append(len(store))
    assert calls == [3, 3, 6] and all(each.scores["good"] for each in found.values())
    assert names[0] == names[1] != names[2] and names[0].startswith("hf:m@")


def test_a_judge_of_the_hub_is_known_by_its_commit(monkeypatch):
    for commit in ("0123456789abcdef", "fedcba9876543210"):
        config = SimpleNamespace(model_type="llava", _commit_hash=commit)
        monkeypatch.setattr(module, "load_config", lambda source, config=config: config)
        judge = HFJudge("me/judge")
        assert judge.name == f"hf:me/judge@{commit[:12]}"
        assert judge.settings()["revision"] == commit


def test_greedy_replies_are_not_asked_for_twice(tmp_path, folder, requests):
    judge = HFJudge(str(folder), max_new_tokens=2, batch_size=2)
    store = JsonlStore(tmp_path / "judgements.jsonl")
    found = collect(judge, requests, SHORT, lambda reply: None, store)
    assert {j.reason for j in found.values()} == {"judge: unreadable reply"}
    assert [row["calls"] for row in store.values()] == [1, 1, 1]


def test_out_of_memory_judges_one_by_one(tmp_path, folder, requests, monkeypatch):
    judge = HFJudge(str(folder), max_new_tokens=2, batch_size=3)
    model, _ = judge._load()
    generate, sizes = model.generate, []

    def small_only(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", small_only)
    store = JsonlStore(tmp_path / "judgements.jsonl")
    found = collect(judge, requests, SHORT, lambda reply: {"any": 1.0}, store)
    assert sizes == [3, 1, 1, 1]
    assert all(j.scores for j in found.values())
    with pytest.raises(JudgeUnavailable, match="out of memory"):
        judge.replies(requests, SHORT)


def test_a_model_that_cannot_judge(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'llama' model.*vision-language"):
        HFJudge(str(tmp_path)).check()
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="config.json"):
        HFJudge(str(tmp_path)).check()


def test_a_judge_without_weights_or_template(tmp_path, requests):
    folder = tiny_llava(tmp_path / "plain", template=None)
    with pytest.raises(UserError, match="no chat template"):
        HFJudge(str(folder)).replies(requests, SHORT)
    folder = tiny_llava(tmp_path / "light")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="its weights"):
        HFJudge(str(folder)).replies(requests, SHORT)


def test_a_unified_model_may_judge_too():
    HFJudge(str(shared_tiny_janus())).check()
