"""MMBench's matcher: when it is asked, what is kept, and a tiny text model in its place."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.evaluation.tasks.test_mmbench import (
    ANIMALS,
    figures,
    load,
    own_cache,  # noqa: F401  a fixture that every test here takes
    question,
    right_letter,
    score,
)
from unigame.errors import UserError
from unigame.evaluation.scorers.matcher import HFMatcher, matching_request
from unigame.evaluation.tasks.mmbench.task import MMBench


class Says:
    """A matcher that says its lines in turn, and remembers what it was asked."""

    def __init__(self, *lines):
        self.lines, self.asked = list(lines), []

    def __call__(self, question, options, reply):
        self.asked.append((question, dict(options), reply))
        return self.lines[(len(self.asked) - 1) % len(self.lines)]


def feline(item):
    """Unreadable for the first rotation of question 1, right everywhere else."""
    return "a feline" if item.id == "1" else right_letter(item)


def test_the_matcher_reads_what_the_rules_cannot(tmp_path):
    loaded, matcher = load(tmp_path), Says("A")
    scored = score(loaded, feline, tmp_path, matcher=matcher)
    assert figures(scored) == {"circular": 100, "vanilla": 100}
    assert matcher.asked == [("What is it?", {"A": "cat", "B": "dog", "C": "bird"}, "a feline")]
    assert scored.unparsed == [] and scored.scorer == {"matcher": "Says"}
    assert MMBench(matcher=matcher).variant()["matcher"] == "Says"


def test_what_the_matcher_said_is_kept(tmp_path):
    loaded, second = load(tmp_path), Says("B")
    score(loaded, feline, tmp_path, matcher=Says("A"))
    assert figures(score(loaded, feline, tmp_path, matcher=second))["circular"] == 100
    assert second.asked == []
    other = score(loaded, lambda i: f"{feline(i)} ...", tmp_path, matcher=second)  # other replies
    assert len(second.asked) == 1 and figures(other)["vanilla"] == pytest.approx(200 / 3)


def test_none_of_the_options_is_an_answer(tmp_path):
    scored = score(load(tmp_path), feline, tmp_path, matcher=Says("Z."))
    assert figures(scored)["circular"] == pytest.approx(200 / 3)
    assert scored.unparsed == [] and scored.details["letters"]["Z"] == 1


def test_after_three_tries_a_letter_is_drawn_and_counted(tmp_path):
    loaded, matcher = load(tmp_path, [*question(1), *question(3)]), Says("hm", "well", "so", "A")
    scored = score(loaded, feline, tmp_path, matcher=matcher)
    assert len(matcher.asked) == 3 and scored.unparsed == ["1"]
    row = json.loads((tmp_path / "matches.jsonl").read_text())
    assert row["drawn"] and row["said"] == ["hm", "well", "so"] and row["letter"] in "ABCZ"
    again = score(loaded, feline, tmp_path / "again", matcher=Says("?"))
    assert again.details["letters"] == scored.details["letters"]  # by the id, not by chance


def test_one_that_repeats_itself_is_not_asked_a_third_time(tmp_path):
    matcher = Says("hm")
    score(load(tmp_path), feline, tmp_path, matcher=matcher)
    assert len(matcher.asked) == 2


def test_a_wrong_letter_settles_the_question(tmp_path):
    wrong = {"1000001": "A", "2000001": "a feline"}
    matcher = Says("C")
    scored = score(
        load(tmp_path), lambda i: wrong.get(i.id, right_letter(i)), tmp_path, matcher=matcher
    )
    assert matcher.asked == [] and scored.unparsed == ["2000001"]
    # The unrotated question is asked about all the same: the vanilla accuracy needs it.
    wrong["1"] = "a feline"
    scored = score(
        load(tmp_path), lambda i: wrong.get(i.id, right_letter(i)), tmp_path, matcher=Says("A")
    )
    assert figures(scored) == pytest.approx({"circular": 200 / 3, "vanilla": 100})


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory):
    """A Llama that says B, but C after the word REPLY, and then stops."""
    folder = tmp_path_factory.mktemp("llama")
    words = ["<s>", "</s>", "<unk>", "A", "B", "C", "D", "REPLY"]
    word = {name: number for number, name in enumerate(words)}
    model = Tokenizer(WordLevel(word, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    anything, letter, asked = torch.eye(32)[:3]
    with torch.no_grad():
        for layer in llama.model.layers:  # what goes in comes out: the last token decides
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        into, out = llama.model.embed_tokens.weight, llama.lm_head.weight
        into[:], out[:] = anything, 0
        into[word["B"]] = into[word["C"]] = letter
        into[word["REPLY"]] = asked
        out[word["B"]], out[word["C"]], out[word["</s>"]] = anything, asked, letter
    # A checkpoint that samples by default: the matcher must not.
    llama.generation_config.update(do_sample=True, temperature=9.0)
    llama.save_pretrained(folder)
    return folder


def test_a_text_model_as_matcher(tiny_llama, tmp_path):
    benchmark = MMBench(matcher=f"hf:{tiny_llama}")
    benchmark.prepare()
    name = benchmark.variant()["matcher"]
    assert name.startswith(f"hf:{tiny_llama.name}@")
    assert benchmark.matcher("What is it?", ANIMALS, "a puss") == "B"
    loaded = load(tmp_path)
    scored = score(loaded, lambda i: "a puss", tmp_path, matcher=benchmark.matcher)
    # Wrong at the first rotation of two questions, at the second of the third: then it is settled.
    assert scored.details["letters"] == {"B": 4, "unparsed": 4}
    assert scored.scorer == {"matcher": name}


def test_a_matcher_of_other_weights_is_asked_anew(tiny_llama, tmp_path, monkeypatch):
    folder = tmp_path / "llama"
    shutil.copytree(tiny_llama, folder)
    loaded, asked = load(tmp_path), []
    monkeypatch.setattr(HFMatcher, "__call__", lambda self, *about: asked.append(self) or "A")
    for weight in (None, None, b"other"):
        if weight:
            (folder / "model.safetensors").write_bytes(weight)
        score(loaded, feline, tmp_path, matcher=HFMatcher(str(folder)))
    assert len(asked) == 2 and asked[0].name != asked[1].name


def test_a_chat_template_is_used(tiny_llama):
    matcher = HFMatcher(str(tiny_llama))
    tokenizer = matcher._load().tokenizer
    tokenizer.chat_template = (
        "{% if not enable_thinking %}{{ messages[0]['content'] }} REPLY{% endif %}"
    )
    assert matcher("What is it?", ANIMALS, "a puss") == "C"


def test_the_request_names_what_is_to_be_matched():
    request = matching_request("What is it?", ANIMALS, "a puss")
    for part in ("Question: What is it?", "C. cat\nD. dog", "Reply: a puss", "or Z if"):
        assert part in request


@pytest.mark.parametrize(
    ("matcher", "message"),
    [
        ("gpt-4", "unknown matcher 'gpt-4'; use hf:ID"),
        ("hf:", "unknown matcher 'hf:'"),
        ("hf:nowhere", "no such folder"),
    ],
)
def test_matchers_that_do_not_exist(matcher, message):
    with pytest.raises(UserError, match=message):
        MMBench(matcher=matcher)


def test_a_matcher_of_another_kind_is_found_before_anything_is_asked(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    benchmark = MMBench(matcher=f"hf:{tmp_path}")
    with pytest.raises(UserError, match="is a 'clip_vision_model' model"):
        benchmark.prepare()
