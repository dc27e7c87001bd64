"""The two methods of verified drawings in a run: rows, rounds, figures, exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.helpers import (
    Records,
    game_of,
    logs,
    make_game,
    make_trainer,
    whole_and_resumed,
)
from unigame.errors import UserError
from unigame.methods.drawings.advice import lines_at_start
from unigame.methods.drawings.readers import Reader
from unigame.methods.drawings.verifying import Verifier
from unigame.methods.imagine import Imagine
from unigame.methods.registry import build_methods
from unigame.methods.verify import Verify
from unigame.system.at_once import AtOnce

COLOURS = ("red", "green", "blue", "yellow")
CAPTIONS = [f"a {colour} circle" for colour in COLOURS]
DRAWN = {"guidance_scale": 1.0, "draw_batch": 5, "answer_tokens": 2}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [
        {"caption": c, "questions": [{"question": "what colour is it", "answer": c.split()[1]}]}
        for c in CAPTIONS
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(file)


def listed(texts: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Both methods; a random model confirms nothing by itself."""
    shared = {**DRAWN, "verifier": "none", "drawings": 2, "captions": 2, "every": 2, **more}
    return {"verify": {**shared, "rows": 3}, "imagine": {**shared, "texts": texts, "rows": 2}}


def test_confirmed_drawings_of_the_batch_are_learned_by_their_captions(
    tiny_path: Path, tmp_path: Path
) -> None:
    method = Verify(verifier="none", drawings=2, every=2, rows=3, weight=0.5, **DRAWN)
    data = Records(4, captions=True)
    trainer = make_trainer(tiny_path, tmp_path, data, methods=[method], max_steps=1)
    backbone = trainer.backbone
    learned: list[tuple[Any, list[str]]] = []
    original = backbone.generation_loss

    def watched(images: Any, captions: Any, *, codes: Any = None) -> torch.Tensor:
        learned.append((codes, list(captions)))
        return original(images, captions, codes=codes)

    backbone.generation_loss = watched  # type: ignore[method-assign]
    trainer.train()
    ((codes, captions),) = learned
    kept = {(one.caption, tuple(one.codes.tolist())) for one in method.store.drawings}
    assert len(method.store) == 8 and {caption for caption, _ in kept} == set(CAPTIONS)
    assert all(pair in kept for pair in zip(captions, map(tuple, codes.tolist()), strict=True))
    (entry,) = logs(trainer)
    assert entry["loss"] == pytest.approx(
        entry["clean_ce"] + 0.5 * entry["generation_loss"], abs=1e-5
    )
    assert entry["verify_kept"] == 1 and entry["verify_store"] == 8
    assert "8 of 8 drawings" in method.summary()
    shown = json.loads((tmp_path / "drawings" / "verify.json").read_text())["drawings"]
    assert {one["caption"] for one in shown} == set(CAPTIONS), "one of each"
    for one in shown:
        stored = [d for d in method.store.drawings if d.caption == one["caption"]][-1]
        picture = backbone.render(stored.codes[None].long())[0].clamp(0, 1).permute(1, 2, 0)
        seen = np.asarray(Image.open(tmp_path / "drawings" / one["picture"]), dtype=np.float32)
        assert np.abs(seen / 255 - picture.detach().numpy()).max() < 1 / 255
    kept = method.kept_pictures(3)["confirmed"]
    assert method.draws_pictures and len(kept) == 3


@pytest.mark.parametrize("name", ["verify", "imagine"])
def test_drawings_are_learned_beside_the_captions_of_records(
    tiny_path: Path, tmp_path: Path, texts: str, name: str
) -> None:
    """What U reads of the records' pictures is known by then; of drawings there are codes alone."""
    (method,) = build_methods({name: listed(texts)[name]})
    trainer = make_trainer(
        tiny_path,
        tmp_path,
        Records(4, captions=True),
        methods=[method],
        max_steps=1,
        generation_weight=1.0,
    )
    learned: list[list[str]] = []
    original = trainer.backbone.generation_loss

    def watched(images: Any, captions: Any, *, codes: Any = None) -> torch.Tensor:
        learned.append(list(captions))
        assert images is None and len(codes) == len(captions)
        return original(images, captions, codes=codes)

    trainer.backbone.generation_loss = watched  # type: ignore[method-assign]
    trainer.train()
    (asked,) = learned
    assert len(asked) == 4 + (3 if name == "verify" else 2), "records, then drawings"
    assert set(asked) <= set(CAPTIONS)
    (entry,) = logs(trainer)
    assert entry["generation_loss"] > 0


def test_imagined_rows_a_third_of_rehearsal_and_drawing_again_join_the_loss(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    (method,) = build_methods({"imagine": listed(texts, weight=0.5)["imagine"]})
    trainer = make_trainer(tiny_path, tmp_path, methods=[method], max_steps=1)
    trainer.train()
    new, old, again = method.step_rows()
    assert len(new) == 2 and new.questions == ["what colour is it"] * 2
    assert [f"a {answer} circle" for answer in new.answers] == new.captions
    assert len(old) == 3 == round((4 + 2) / 2), "a third of all rows"
    (entry,) = logs(trainer)
    kept = {(one.caption, tuple(one.codes.tolist())) for one in method.store.drawings}
    assert again.loss == "generation" and len(again) == 2, "half as many as the batch has"
    assert again.codes is not None and again.captions is not None
    assert kept >= set(zip(again.captions, map(tuple, again.codes.tolist()), strict=True))
    whole = entry["clean_ce"] + 0.5 * entry["imagine_ce"] + 3 / 4 * entry["imagine_rehearsal_ce"]
    whole += 2 / 4 * entry["generation_loss"]
    assert entry["loss"] == pytest.approx(whole, abs=1e-5)
    assert 0 <= entry["imagine_retained"] <= 1


def test_without_rows_of_drawing_the_caption_loss_is_not_run(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    (method,) = build_methods({"imagine": {**listed(texts)["imagine"], "drawing_rows": 0}})
    trainer = make_trainer(tiny_path, tmp_path, methods=[method], max_steps=1)
    trainer.train()
    assert [rows.loss for rows in method.step_rows()] == ["answer", "answer"]
    (entry,) = logs(trainer)
    assert "generation_loss" not in entry


def test_rehearsal_repeats_what_the_base_says_of_the_same_drawings(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    settings = listed(texts, captions=1, drawings=1)["imagine"]
    (method,) = build_methods({"imagine": settings})
    trainer = make_trainer(tiny_path, tmp_path, methods=[method], max_steps=3)
    trainer.train()  # U has moved since
    backbone = trainer.backbone
    for kept in method.store.drawings:
        picture = backbone.render(kept.codes[None].long())
        *short, (question, described) = kept.old
        assert question == "describe the image"
        with backbone.lora_disabled():
            assert backbone.caption(picture, max_new_tokens=64) == [described]
        for question, said in short:
            assert "is there" in question
            with backbone.lora_disabled():
                again = backbone.answer(picture, [question], max_new_tokens=64)
            assert again == [said]


def test_a_reply_that_did_not_end_is_not_rehearsed(
    tiny_path: Path, tmp_path: Path, texts: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = listed(texts, captions=4)["imagine"]
    (method,) = build_methods({"imagine": {**settings, "rehearsal_tokens": 12}})
    trainer = make_trainer(tiny_path, tmp_path, methods=[method], max_steps=1)
    endless = "what colour is the shape"  # the base never ends such a reply; one word ends at once

    def answer(images: Any, questions: Any, *, max_new_tokens: int, **more: Any) -> list[str]:
        assert max_new_tokens in (2, 12)
        words = (endless.split() * 9)[:max_new_tokens]
        return [" ".join(words) if n % 4 else "yes" for n, _ in enumerate(questions)]

    trainer.backbone.answer = answer  # type: ignore[method-assign]
    trainer.train()
    kept = [reply for drawing in method.store.drawings for _, reply in drawing.old]
    assert kept and set(kept) == {"yes"}
    (entry,) = logs(trainer)
    assert entry["imagine_cut"] == method.counts["cut"] / method.counts["replied"] > 0.5
    assert [f.symptom for f in method.health([]) if "rehearsal_tokens=12" in f.knob] == [
        "rehearsal cut"
    ]
    assert sum("rehearsal cut" in text for text in caplog.messages) == 1


def test_a_reply_that_fits_no_row_is_not_rehearsed(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    (method,) = build_methods({"imagine": listed(texts)["imagine"]})
    trainer = make_trainer(tiny_path, tmp_path, methods=[method], max_steps=1)
    asked = "is it red"
    assert method._can_be_learned(asked, "yes")
    needs = len(trainer.backbone.text_rules.layout.reading_row(asked, "yes", 1))
    for length, fits in ((needs, True), (needs - 1, False)):
        trainer.args.max_length = length
        assert method._can_be_learned(asked, "yes") == fits


def test_clip_verifies_by_its_floor(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"verifier": "clip", "similarity_model": "janus-nano-clip", "drawings": 2}
    settings |= {"guidance_scale": 1.0, "draw_batch": 5}
    method = Verify(clip_floor=-1.0, **settings)
    data = Records(4, captions=True)
    trainer = make_trainer(tiny_path, tmp_path, data, methods=[method], max_steps=1)
    trainer.train()
    (entry,) = logs(trainer)
    assert entry["verify_kept"] == 1 and -1 < entry["verify_similarity"] < 1
    assert "verify_agreement" not in entry
    assert "verifier=clip confirmed 8 of 8 drawings" in method.summary()
    strict = Verify(clip_floor=1.0, **settings)
    make_trainer(tiny_path, tmp_path / "strict", data, methods=[strict], max_steps=1).train()
    (finding,) = strict.found()
    assert finding.symptom == "nothing confirmed" and "lower clip_floor=1" in finding.knob
    assert not [text for text in caplog.messages if "without effect" in text]


def test_a_verifier_that_cannot_be_read_is_known_before_the_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="verifier=clip without similarity_model"):
        Verify(verifier="clip")
    method = Verify(verifier="clip", similarity_model=str(tmp_path))
    with pytest.raises(UserError, match="cannot be read"):
        method.check_machine(None)
    assert Verify(clip_floor=0.5).settings.inert() == [
        "clip_floor=0.5 (verifier=base compares nothing)"
    ]


def test_of_a_bare_caption_other_questions_are_learned_than_those_that_verified(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def agreement(self: Any, codes: Any, questions: Any, base: bool) -> Any:
        asked.extend([question for question, _ in own] for own in questions)
        return [1.0 if own else None for own in questions], 0, 0

    monkeypatch.setattr(Verifier, "_agreement", agreement)
    file = tmp_path / "texts.txt"
    file.write_text("a red circle and a green box\na circle", encoding="utf-8")
    more = {"drawings": 1, "captions": 2, "describe": False}
    method = Imagine(texts=str(file), question_maker="phrases", **more, **DRAWN)
    make_trainer(tiny_path, tmp_path, methods=[method], max_steps=1).train()
    assert sorted(asked) == [
        ["is there a circle?"],
        ["is there a red circle?", "is there a red box?"],
    ]
    (kept,) = method.store.drawings
    assert kept.questions == [("is there a green box?", "yes"), ("is there a green circle?", "no")]
    assert {question for question, _ in kept.old} <= {*asked[0], *asked[1]}
    assert method.tally.recent == [[2, 2, 0, 1]], "of one question nothing is left to learn"


def test_describing_is_rehearsed_unless_it_is_switched_off(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    (method,) = build_methods({"imagine": {**listed(texts)["imagine"], "describe": False}})
    make_trainer(tiny_path, tmp_path, methods=[method], max_steps=1).train()
    asked = {question for kept in method.store.drawings for question, _ in kept.old}
    assert asked and "describe the image" not in asked


def test_a_third_of_the_rehearsal_describes(tiny_path: Path, tmp_path: Path, texts: str) -> None:
    (method,) = build_methods({"imagine": listed(texts)["imagine"]})
    make_trainer(tiny_path, tmp_path, methods=[method], max_steps=1).train()
    for step in range(3):
        method._step = step
        _, old, _ = method._make_rows()
        assert len(old) == 3 and old.questions.count("describe the image") == 1


def test_both_beside_each_other_resume_bit_exactly(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    """What is resumed draws fewer pictures at a time, which nobody has to allow."""
    data, at_once = Records(8, captions=True), iter((5, 5, 3))
    whole, resumed = whole_and_resumed(
        tiny_path,
        tmp_path,
        data,
        lambda: build_methods(listed(texts, draw_batch=next(at_once))),
        steps=3,
    )
    assert resumed.method("verify").settings.draw_batch == 3
    for name in ("verify", "imagine"):
        one, other = (trainer.method(name) for trainer in (whole, resumed))
        assert one.counts == other.counts and one.choice.used == other.choice.used
        assert [d.caption for d in one.store.drawings] == [d.caption for d in other.store.drawings]
        pairs = zip(one.store.drawings, other.store.drawings, strict=True)
        assert all(torch.equal(a.codes, b.codes) for a, b in pairs)
    state, other = whole.method("imagine").state_dict(), resumed.method("imagine")
    other.choice.digest = "of another file"
    with pytest.raises(UserError, match="other captions"):
        other.load_state_dict(state)


def test_the_adversary_joins_where_it_is_asked_to(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    def sources(**game: Any) -> set[str]:
        methods = [*build_methods({"imagine": listed(texts)["imagine"]}), make_game(**game)]
        trainer = make_trainer(tiny_path, tmp_path, methods=methods, max_steps=1)
        trainer.train()
        read = game_of(trainer)._clean_drawings
        assert (read is not None and len(read) == 4) if game else read is None
        return {str(sample.source) for sample in game_of(trainer).buffer.samples}

    restyled = sources(challenge_drawings=True, buffer_per_source=None)
    assert restyled and all(source.startswith("imagine: a ") for source in restyled)
    assert not any(source.startswith("imagine") for source in sources())


@pytest.mark.parametrize("joins", [True, False])
def test_styles_draw_the_captions_of_confirmed_drawings_too(
    tiny_path: Path, tmp_path: Path, texts: str, joins: bool
) -> None:
    game = {"styles": ["faint : {caption}"], "similarity": "none", "guidance_scale": 1.0}
    game |= {"buffer_per_source": None, "challenge_share": 0.25, "styled_share": 0.75}
    listed_imagine = {**listed(texts)["imagine"], "rehearsal": 0, "drawing_rows": 0}
    methods = [
        *build_methods({"imagine": listed_imagine}),
        make_game(challenge_drawings=joins, **game),
    ]
    data = Records(4)
    for item in data.items:
        item["caption"] = "a cross"
    trainer = make_trainer(tiny_path, tmp_path, data, methods=methods, max_steps=1)
    drawn: list[str] = []
    original = trainer.backbone.generate_compact

    def watched(prompts: Any, **options: Any) -> torch.Tensor:
        drawn.extend(prompt for prompt in prompts if prompt.startswith("faint"))
        return original(prompts, **options)

    trainer.backbone.generate_compact = watched  # type: ignore[method-assign]
    trainer.train()
    styled = drawn[:3]  # three quarters of the batch; more are drawn for the report
    known = {f"faint : {caption}" for caption in CAPTIONS}
    assert set(styled) <= known if joins else set(styled) == {"faint : a cross"}
    buffer = game_of(trainer).buffer.samples
    assert len(buffer) == 4
    assert {str(one.source).startswith("imagine: a ") for one in buffer} == {joins}
    if joins:  # the truth of the caption goes with it
        assert all(f"a {one.answer} circle" in str(one.source) for one in buffer)


def test_methods_that_offer_drawings_take_turns(tiny_path: Path, tmp_path: Path) -> None:
    game = make_game(challenge_drawings=True)
    trainer = make_trainer(tiny_path, tmp_path, methods=[game])
    batch = trainer._read(trainer.data_collator([trainer.train_dataset[0]]))
    rows = batch.answers
    asked: list[tuple[str, int]] = []

    def offer(name: str, given: Any = rows) -> Any:
        def call(count: int) -> Any:
            asked.append((name, count))
            return given

        return call

    batch.offered = [offer("verify"), offer("imagine")]
    for turn in range(3):
        assert game._offered(batch, 5, turn) is rows
    assert asked == [("verify", 5), ("imagine", 5), ("verify", 5)]
    asked.clear()
    batch.offered[0] = offer("verify", None)
    assert game._offered(batch, 5, 0) is rows
    assert [name for name, _ in asked] == ["verify", "imagine"]


def test_an_adversary_without_drawings_says_so(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tiny_path, tmp_path, max_steps=1, challenge_drawings=True).train()
    assert "list imagine or verify first" in caplog.text


def test_a_round_leaves_the_runs_random_numbers_alone(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    trainer = make_trainer(tiny_path, tmp_path, Records(4, captions=True), methods=["sft"])
    batch = trainer._read(trainer.data_collator([trainer.train_dataset[i] for i in range(4)]))
    method = build_methods({"imagine": listed(texts)["imagine"]})[0]
    run = trainer._run()
    run.figures = None  # the trainer has no column for those of a method that it does not list
    method.setup(run)
    before = torch.get_rng_state()
    method.before_step(batch, 0)
    assert len(method.store) == 4 and torch.equal(before, torch.get_rng_state())
    own = method.store.generator.get_state()
    offered = [method.offer(3) for _ in range(4)]
    assert torch.equal(own, method.store.generator.get_state()), "it trains on what it would anyway"
    assert torch.equal(before, torch.get_rng_state())
    assert len({tuple(rows.codes.flatten().tolist()) for rows in offered}) > 1


def test_processes_draw_different_captions_of_one_file(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    trainer = make_trainer(tiny_path, tmp_path, methods=["sft"])
    drawn: list[set[str]] = []
    for rank in range(2):
        (method,) = build_methods({"imagine": listed(texts)["imagine"]})
        run = trainer._run()
        run.rank = rank
        run.args = type("Args", (), {**vars(run.args), "world_size": 2})()
        method.setup(run)
        drawn.append({method.choice.next()[0].caption for _ in range(2)})
    assert drawn[0].isdisjoint(drawn[1]) and set.union(*drawn) == set(CAPTIONS)


def test_a_round_draws_no_caption_of_another_pass(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    """Two processes share four captions: a round of sixteen draws two on each, not each thrice."""
    trainer = make_trainer(tiny_path, tmp_path, methods=["sft"])
    (method,) = build_methods({"imagine": {**listed(texts)["imagine"], "captions": 16}})
    run = trainer._run()
    run.args = type("Args", (), {**vars(run.args), "world_size": 2})()
    method.setup(run)
    drawn, _ = method.choice.choose(SimpleNamespace(), 0)
    assert len({text.caption for text in drawn}) == 2 and len(drawn) == 2 * 2
    assert method.choice.reached(1) == 4


def test_captions_that_are_left_are_told_with_a_knob_that_acts(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    """More captions in a round than a process has of the file would change nothing."""

    def said(**changed: Any) -> str:
        (method,) = build_methods({"imagine": {**listed(texts)["imagine"], **changed}})
        trainer = make_trainer(tiny_path, tmp_path, methods=["sft"])
        run = trainer._run()
        run.args = type("Args", (), {**vars(run.args), "world_size": 3})()
        method.setup(run)
        return lines_at_start(method, 1)[0]

    assert "will draw 3 of the 4 captions" in said(captions=16)
    assert "1 rounds of 1;" in said(captions=16) and "raise captions" not in said(captions=16)
    assert "lower every=2" in said(captions=16)


def test_a_reader_may_speak_in_numpys_booleans(tiny_path: Path, tmp_path: Path) -> None:
    backbone = make_trainer(tiny_path, tmp_path, methods=["sft"]).backbone
    reader = Reader("own", lambda images, captions: np.array([True, False])[: len(images)])
    verifier = Verifier(backbone, "reader", 1.0, reader, 2, AtOnce(8))
    codes = torch.zeros(2, backbone.facts.num_image_tokens, dtype=torch.long)
    found = verifier(codes, ["a", "b"], [[], []])
    assert found.right == found.confirmed == [True, False]
    assert all(type(right) is bool for right in found.right)


def test_nothing_confirmed_is_said_with_the_knob(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method = Verify(drawings=2, question_maker="world", **DRAWN)
    trainer = make_trainer(
        tiny_path, tmp_path, Records(4, captions=True), methods=[method], max_steps=2
    )
    trainer.train()
    (finding,) = [f for f in trainer.health() if f.symptom == "nothing confirmed"]
    assert "the captions of 8 gave no question" in finding.says and "question_maker" in finding.knob
    assert sum("nothing confirmed" in text for text in caplog.messages) == 1
    assert method.step_rows() == []


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        (Verify, {"question_maker": "given"}, "texts"),
        (Verify, {"question_maker": "rulez"}, "rules"),
        (Verify, {"question_maker": "endpoint"}, "endpoint"),
        (Verify, {"verifier": "reader"}, "reader"),
        (Verify, {"reader": "base"}, "itself"),
        (Verify, {"reader": "wrld"}, "world"),
        (Verify, {"confirm": 0}, "confirm"),
        (Verify, {"temperature": 0}, "temperature"),
        (Verify, {"temperature": None}, "temperature"),
        (Verify, {"weight": 0}, "weight"),
        (Verify, {"every": 10, "max_age": 9}, "max_age=9 below every=10"),
        (Imagine, {"rehearsal": 1}, "rehearsal"),
    ],
)
def test_settings_that_cannot_work_are_named(method: Any, settings: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        method(**settings)


def test_given_answers_that_no_reply_can_give_are_said(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "long.jsonl"
    row = {"caption": "a cat", "question": "what is it", "answer": "a cat that sits on a red box"}
    file.write_text(json.dumps(row), encoding="utf-8")
    method = Verify(
        texts=str(file), question_maker="given", captions=9, drawings=2, capacity=3, **DRAWN
    )
    make_trainer(tiny_path, tmp_path / "run", methods=[method])
    method.begin(1)
    said = "\n".join(caplog.messages)
    assert "1 of the 1 answers" in said and "longer than answer_tokens=2" in said
    assert "captions=9 is more than the 1 captions of a process's part" in said
    assert "capacity=3 below captions * drawings = 18" in said


@pytest.mark.parametrize("mark", ["<|User|>", "<image_placeholder>"])
def test_old_questions_with_a_mark_of_the_model_are_refused(
    tiny_path: Path, tmp_path: Path, texts: str, mark: str
) -> None:
    file = tmp_path / "old.txt"
    file.write_text(f"what is it\nwhere is {mark}", encoding="utf-8")
    (method,) = build_methods({"imagine": {**listed(texts)["imagine"], "old_questions": str(file)}})
    with pytest.raises(UserError, match="old_questions=.*where is"):
        make_trainer(tiny_path, tmp_path / "run", methods=[method])


def test_a_written_question_with_a_mark_of_the_model_is_not_asked(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method = Verify(**DRAWN)
    make_trainer(tiny_path, tmp_path, Records(4, captions=True), methods=[method])
    mark = method.run.backbone.text_rules.marks[0]
    good, bad = ("is it red?", "yes"), (f"is {mark} red?", "yes")
    assert method._that_fit([good, bad, good]) == [good, good]
    (told,) = [text for text in caplog.messages if "is not asked" in text]
    assert "mend its line in verify_questions.jsonl" in told


def test_imagine_goes_on_only_with_its_old_questions(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    def made(lines: str) -> Any:
        file = tmp_path / "old.txt"
        file.write_text(lines, encoding="utf-8")
        (method,) = build_methods(
            {"imagine": {**listed(texts)["imagine"], "old_questions": str(file)}}
        )
        make_trainer(tiny_path, tmp_path / "run", methods=[method])
        return method

    state = made("what is it").state_dict()
    made("what is it").load_state_dict(state)
    with pytest.raises(UserError, match="holds other questions"):
        made("where is it").load_state_dict(state)


def test_imagine_without_captions_is_refused() -> None:
    with pytest.raises(UserError, match="texts"):
        Imagine().check(None)


@pytest.mark.parametrize("verifier", ["base", "current", "none"])
def test_a_new_task_does_not_verify_itself(verifier: str) -> None:
    method = Imagine(texts="t.jsonl", question_maker="given", verifier=verifier)
    if verifier == "none":
        method.check(None)
        return
    with pytest.raises(UserError, match="question_maker=given with method imagine"):
        method.check(None)


def test_settings_without_effect_are_said(
    tiny_path: Path, tmp_path: Path, texts: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = listed(texts, per_caption=1, endpoint="m@http://x/v1")
    settings["imagine"] |= {"rehearsal": 0, "describe": False}
    methods = build_methods(settings)
    make_trainer(
        tiny_path,
        tmp_path,
        Records(4, captions=True),
        methods=methods,
        max_steps=1,
        gradient_accumulation_steps=2,
    )
    for method in methods:
        method.begin(1)
    of_verify, of_imagine = (
        "\n".join(text for text in caplog.messages if f"method {name}:" in text)
        for name in ("verify", "imagine")
    )
    for said in (of_verify, of_imagine):
        assert "answer_tokens=2 (verifier=none" in said and "endpoint=m@" in said
        assert "per_caption=1 below drawings=2" in said
    assert "describe=False (rehearsal=0)" in of_imagine and "confirm=" not in of_imagine
    assert "micro-batches" in of_verify and "micro-batches" not in of_imagine


# ---- nothing to draw, and nothing but drawings ---------------------------------------------------
def test_captions_alone_are_enough(tiny_path: Path, tmp_path: Path) -> None:
    data = Records(4, captions=True)
    for item in data.items:
        item["question"] = item["answer"] = None
    method = Verify(verifier="none", drawings=1, **DRAWN)
    trainer = make_trainer(
        tiny_path, tmp_path, data, methods=[method], max_steps=1, generation_weight=0.0
    )
    trainer.train()
    (entry,) = logs(trainer)
    assert entry["loss"] == pytest.approx(entry["generation_loss"], abs=1e-5) and len(method.store)
    assert entry["unused_rows"] == 0


def test_data_without_a_caption_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method verify has nothing to draw: none of 4 rows"):
        make_trainer(tiny_path, tmp_path, Records(4), methods=[Verify(**DRAWN)])


def test_rounds_without_a_caption_are_said(
    tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = Records(9)
    data.items[8]["caption"] = "a red circle"  # met by none of the first steps
    method = Verify(every=1, **DRAWN)
    more = {"max_steps": 2, "train_sampling_strategy": "sequential"}
    trainer = make_trainer(tiny_path, tmp_path, data, methods=[method], **more)
    trainer.train()
    (finding,) = [f for f in trainer.health() if f.symptom == "nothing confirmed"]
    assert "2 rounds met no caption" in finding.says
    assert sum("met no caption" in text for text in caplog.messages) == 1
    assert "nothing was drawn" in method.summary()


# ---- honesty in a run ----------------------------------------------------------------------------
def test_a_verifier_that_begins_to_confirm_what_is_wrong_is_told_in_the_run(
    tiny_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of six drawings of a caption the reader finds half wrong; from step 2 on U confirms all."""
    rounds: list[int] = []

    def agreement(self: Any, codes: Any, questions: Any, base: bool) -> Any:
        biased = len(rounds) >= 2
        rounds.append(len(questions))
        return [1.0 if biased or row % 2 else 0.0 for row in range(len(questions))], 0, 0

    def judge(images: Any, captions: Any) -> list[bool]:
        return [bool(row % 2) for row in range(len(images))]

    monkeypatch.setattr(Verifier, "_agreement", agreement)
    reader = Reader("world", judge)
    monkeypatch.setattr("unigame.methods.drawings.method.build_reader", lambda name: reader)
    more = {**DRAWN, "draw_batch": 32}
    method = Verify(every=1, drawings=6, verifier="current", reader="world", **more)
    data = Records(4, captions=True)
    trainer = make_trainer(tiny_path, tmp_path, data, methods=[method], max_steps=4)
    trainer.train()
    assert sum("verifier drifts" in text for text in caplog.messages) == 1
    (finding,) = [f for f in trainer.health() if f.symptom == "verifier drifts"]
    assert "100%, at first 0%" in finding.says and "verifier=base" in finding.knob
    assert [entry["verify_false_confirmed"] for entry in logs(trainer)] == [0, 0, 1, 1]
    method.settings.verifier = "base"  # it does not learn, so nobody is sent to it
    (finding,) = [f for f in trainer.health() if f.symptom == "verifier drifts"]
    assert "does not learn" in finding.says and "verifier=base" not in finding.knob


def test_a_verifier_that_stops_confirming_is_told(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the last rounds, not by the whole run."""
    rounds: list[int] = []

    def agreement(self: Any, codes: Any, questions: Any, base: bool) -> Any:
        rounds.append(len(questions))
        return [float(len(rounds) < 3)] * len(questions), 0, 0

    monkeypatch.setattr(Verifier, "_agreement", agreement)
    method = Verify(every=1, drawings=7, **{**DRAWN, "draw_batch": 28})
    data = Records(4, captions=True)
    trainer = make_trainer(tiny_path, tmp_path, data, methods=[method], max_steps=4)
    trainer.train()
    assert method.counts["kept"] == 2 * 28
    assert "0 of the last 56" in next(f.says for f in trainer.health() if "nothing" in f.symptom)


def test_a_text_that_the_model_cannot_lay_out_is_named(tiny_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    row = {"caption": "a red circle", "question": "is <image> red", "answer": "yes"}
    file.write_text(json.dumps(row), encoding="utf-8")
    trainer = make_trainer(tiny_path, tmp_path, methods=["sft"])
    mark = trainer.backbone.layout.picture_mark
    file.write_text(file.read_text().replace("<image>", mark), encoding="utf-8")
    with pytest.raises(UserError, match="a red circle.*question"):
        Imagine(texts=str(file), **DRAWN).setup(trainer._run())


# ---- what cannot be so, or does nothing ----------------------------------------------------------
def test_questions_that_verify_does_not_use_are_named(
    tiny_path: Path, tmp_path: Path, texts: str, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "bare.jsonl"
    pair = {"question": "is it night", "answer": "yes"}
    bare.write_text(json.dumps({"caption": "there it is", "questions": [pair]}), encoding="utf-8")
    for file, maker, number in (
        (str(bare), "rules", 1),
        (str(bare), "given", 0),
        (texts, "rules", 0),
    ):
        caplog.clear()
        method = Verify(verifier="none", texts=file, question_maker=maker, captions=1, **DRAWN)
        place = tmp_path / f"{maker}{number}{len(file)}"
        make_trainer(tiny_path, place, methods=[method], max_steps=1).train()
        assert sum("1 captions in" in text for text in caplog.messages) == number


def test_the_base_of_a_run_that_goes_on_with_an_adapter_is_named(
    tiny_path: Path, tmp_path: Path, texts: str, caplog: pytest.LogCaptureFixture
) -> None:
    def begun(place: str, trained: bool, **more: Any) -> int:
        caplog.clear()
        (method,) = build_methods({"imagine": {**listed(texts)["imagine"], **more}})
        trainer = make_trainer(tiny_path, tmp_path / place, methods=[method], max_steps=1)
        if trained:
            trainer.backbone.save_pretrained(tmp_path / place / "adapter")
            trainer.backbone.load_adapter(tmp_path / place / "adapter")
        method.setup(method.run)
        method.begin(1)
        return sum("any adapter" in text for text in caplog.messages)

    assert begun("fresh", trained=False) == 0
    assert begun("on", trained=True) == 1
    assert begun("alone", trained=True, rehearsal=0) == 0, "nobody asks the base"


def test_a_trained_projector_leaves_no_base_to_ask(texts: str) -> None:
    args = SimpleNamespace(train_parts=["projector"])
    with pytest.raises(UserError, match="set verifier=current$"):
        Verify().check(args)
    with pytest.raises(UserError, match="set verifier=current and rehearsal=0$"):
        Imagine(texts=texts).check(args)
    with pytest.raises(UserError, match="set reader=null$"):
        Verify(verifier="current", reader="base").check(args)
    Verify(verifier="current").check(args)
    Verify().check(SimpleNamespace(train_parts=["connector"]))


def test_a_run_without_an_old_question_to_rehearse_says_so(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    (method,) = build_methods(
        {"imagine": {**listed(texts)["imagine"], "question_maker": "given", "describe": False}}
    )
    trainer = make_trainer(tiny_path, tmp_path, methods=[method], max_steps=1)
    trainer.train()
    assert [f.symptom for f in trainer.health() if "rehearsed" in f.symptom] == [
        "nothing rehearsed"
    ]


def test_descriptions_that_are_cut_are_told_though_answers_are_not(
    tiny_path: Path, tmp_path: Path, texts: str
) -> None:
    (method,) = build_methods({"imagine": listed(texts)["imagine"]})
    make_trainer(tiny_path, tmp_path, methods=[method], max_steps=1)
    method.totals |= {"replied": 80, "cut": 9, "described": 10, "described_cut": 9}
    (finding,) = [f for f in method.found() if f.symptom == "rehearsal cut"]
    assert finding.says.startswith("9 of 10 descriptions")
    method.totals |= {"described_cut": 5, "cut": 5}
    assert not [f for f in method.found() if f.symptom == "rehearsal cut"]


def test_rehearsal_above_nothing_is_a_row_at_least(texts: str) -> None:
    settings = Imagine(texts=texts, rehearsal=0.1, rows=1).settings
    assert settings.rehearsed(1) == 1 and settings.rehearsed(17) == 2
    assert Imagine(texts=texts, rehearsal=0).settings.rehearsed(16) == 0
