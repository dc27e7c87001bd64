"""The lmms-eval plug-in, against a small package with lmms-eval's base class surface.

The last test runs lmms-eval itself, where it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import unigame
from tests.tiny import shared_tiny_janus, stir_lora, tiny_backbone
from unigame.errors import UserError

FAKE = {
    "__init__.py": "",
    "api/__init__.py": "",
    "api/model.py": """
        import abc

        class lmms(abc.ABC):
            is_simple = True

            def __init__(self):
                self._rank, self._world_size = 0, 1
                self.cache_hook = Hook()
                self.task_dict = {}

            @abc.abstractmethod
            def loglikelihood(self, requests): ...

            @abc.abstractmethod
            def generate_until(self, requests): ...

            @abc.abstractmethod
            def generate_until_multi_round(self, requests): ...

            @property
            def rank(self):
                return self._rank

            @property
            def world_size(self):
                return self._world_size

        class Hook:
            def __init__(self):
                self.seen = []

            def add_partial(self, attr, req, res):
                self.seen.append((attr, req, res))
        """,
    "models/__init__.py": "",
    "models/registry_v2.py": """
        from dataclasses import dataclass

        @dataclass(frozen=True)
        class ModelManifest:
            model_id: str
            simple_class_path: str | None = None
            chat_class_path: str | None = None
            aliases: tuple = ()
        """,
}
MODULES = ("unigame.evaluation.lmms.models", "lmms_eval")


def forget(monkeypatch):
    for name in list(sys.modules):
        if name.startswith(MODULES):
            monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """``lmms_models`` on the fake package, whether or not the real one is installed."""
    for name, text in FAKE.items():
        path = tmp_path / "fake/lmms_eval" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path / "fake")
    forget(monkeypatch)
    yield importlib.import_module("unigame.evaluation.lmms.models")
    forget(monkeypatch)


def picture(seed):
    noise = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.byte().numpy())


DOCS = [
    {"question": "what colour is the circle", "images": [picture(0)]},
    {"question": "how many", "images": [picture(1)]},
    {"question": "is the circle left of the square in this picture", "images": [picture(2)]},
    {"question": "what is it", "images": [picture(3)]},
    {"question": "how many triangle", "images": [picture(0)]},
]


def simple_requests(docs=DOCS, task="toy", **how):
    """As lmms-eval makes them: the context, and a function from the document to its pictures."""
    return [
        SimpleNamespace(
            args=(doc["question"], dict(how), lambda d: d["images"], number, task, "test")
        )
        for number, doc in enumerate(docs)
    ]


def messages(doc):
    images = [{"type": "image", "url": image} for image in doc["images"]]
    return [{"role": "user", "content": [*images, {"type": "text", "text": doc["question"]}]}]


def chat_requests(docs=DOCS, task="toy", look=messages, **how):
    return [
        SimpleNamespace(args=(doc["question"], look, dict(how), number, task, "test"))
        for number, doc in enumerate(docs)
    ]


def make(cls, docs=DOCS, task="toy", **args):
    args = {"pretrained": str(shared_tiny_janus()), "dtype": "float32", "device": "cpu", **args}
    model = cls(**args)
    model.task_dict = {task: {"test": docs}}
    return model


def expected(docs=DOCS, max_new_tokens=5):
    backbone = tiny_backbone()
    return [
        backbone.answer(
            backbone.preprocess(doc["images"]), [doc["question"]], max_new_tokens=max_new_tokens
        )[0]
        for doc in docs
    ]


@pytest.mark.parametrize("batch_size", [1, "2", "auto"])
def test_both_ways_give_the_backbones_answers_in_order(models, batch_size):
    right = expected()
    assert len(set(right)) > 1
    simple = make(models.UniGameSimple, batch_size=batch_size)
    assert simple.generate_until(simple_requests(max_new_tokens=5)) == right
    chat = make(models.UniGameChat, batch_size=batch_size)
    assert chat.generate_until(chat_requests(max_new_tokens=5)) == right
    assert simple.is_simple and not chat.is_simple


def test_settings_of_each_request_are_kept(models):
    model = make(models.UniGameSimple, batch_size=4)
    mixed = [
        *simple_requests(DOCS[:2], max_new_tokens=2),
        *simple_requests(max_new_tokens=5)[2:],
    ]
    assert model.generate_until(mixed) == expected(DOCS[:2], 2) + expected(DOCS[2:], 5)


def test_until_cuts_the_reply(models):
    (whole,) = expected(DOCS[:1], 6)
    first, rest = whole.split(" ", 1)
    word = next(word for word in rest.split() if word != first)
    model = make(models.UniGameSimple)
    for until in (word, ["\n\n", word]):
        (cut,) = model.generate_until(simple_requests(DOCS[:1], max_new_tokens=6, until=until))
        assert cut == whole[: whole.index(word)].strip()
    assert model.cache_hook.seen[-1][2] == cut


def test_an_adapter_changes_the_answers(models, tmp_path):
    backbone = tiny_backbone()
    backbone.add_lora()
    stir_lora(backbone, scale=0.3)
    backbone.save_pretrained(tmp_path)
    model = make(models.UniGameSimple, adapter=str(tmp_path))
    assert model.generate_until(simple_requests(max_new_tokens=5)) != expected()


def test_visuals_come_in_many_forms(models, tmp_path):
    path = tmp_path / "a.png"
    DOCS[0]["images"][0].save(path)
    image = DOCS[0]["images"][0]
    docs = [
        {**DOCS[0], "images": form}
        for form in (image, [image], [[image]], str(path), image.convert("RGBA"))
    ]
    model = make(models.UniGameSimple, docs)
    replies = model.generate_until(simple_requests(docs, max_new_tokens=5))
    assert replies == expected(DOCS[:1]) * len(docs)


def test_what_is_no_picture_is_refused(models):
    model = make(models.UniGameSimple, [{"question": "a", "images": "film.mp4"}])
    with pytest.raises(UserError, match="'toy' shows something that is no picture"):
        model.generate_until(simple_requests(model.task_dict["toy"]["test"]))
    model = make(models.UniGameSimple, [{"question": "a", "images": []}])
    with pytest.raises(UserError, match="shows no picture.*draw_tasks=toy"):
        model.generate_until(simple_requests(model.task_dict["toy"]["test"]))


def test_a_broken_picture_file_costs_its_reply_only(models, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    docs = [{**DOCS[0], "images": str(tmp_path / "a.png")}, DOCS[1]]
    model = make(models.UniGameSimple, docs, batch_size=2)
    with pytest.warns(UserWarning, match="toy: corrupt image; the reply is empty"):
        replies = model.generate_until(simple_requests(docs, max_new_tokens=5))
    assert replies == ["", *expected(DOCS[1:2])]


def test_several_pictures(models):
    two = [picture(5), picture(6)]
    backbone = tiny_backbone()
    images = backbone.preprocess(two)

    def ask(question):
        return backbone.answer(images, [question], max_new_tokens=5, image_index=[[0, 1]])[0]

    docs = [{"question": "is this the big circle", "images": two}]
    model = make(models.UniGameSimple, docs)
    before = model.generate_until(simple_requests(docs, max_new_tokens=5))
    assert before == [ask("is this the big circle")]

    def interleaved(doc):
        parts = [("text", "is this"), ("image", two[0]), ("text", "or"), ("image", two[1])]
        content = [{"type": kind, "text" if kind == "text" else "url": v} for kind, v in parts]
        return [{"role": "user", "content": content}]

    model = make(models.UniGameChat, docs)
    (reply,) = model.generate_until(chat_requests(docs, look=interleaved, max_new_tokens=5))
    assert reply == ask("is this\n<image 1>\nor\n<image 2>")
    one = make(models.UniGameSimple, docs, max_images=1)
    assert one.generate_until(simple_requests(docs, max_new_tokens=5)) == expected(
        [{**docs[0], "images": two[:1]}]
    )


def test_where_the_marks_go(models):
    model = make(models.UniGameChat)
    text, image = {"type": "text", "text": "a\n"}, {"type": "image", "url": None}
    assert model._text([text, image, text, image], 2) == "a\n<image 1>\na\n<image 2>"
    assert model._text([image, image, text], 2) == "a\n", "all pictures first: as simple has it"
    assert model._text([text, image], 1) == "a\n", "one picture needs no mark"
    assert "<image" not in model._text([text, *[image] * 9], 9), "more than the backbone takes"


@pytest.mark.parametrize("task", ["WISE", "wise_local"])
def test_text_to_image_tasks_give_the_files_of_their_drawings(models, tmp_path, task):
    docs = [{"question": text, "images": []} for text in ("red circle", "blue square", "green")]
    drawn = {}
    for cls, requests, size in (
        (models.UniGameSimple, simple_requests, 1),
        (models.UniGameChat, chat_requests, 3),
    ):
        folder = tmp_path / cls.__name__
        model = make(cls, docs, task, batch_size=size, output_dir=str(folder))
        replies = [json.loads(r) for r in model.generate_until(requests(docs, task))]
        assert [reply["text"] for reply in replies] == [""] * 3
        paths = [Path(reply["images"][0]) for reply in replies]
        assert paths == [folder / task / f"{i}.png" for i in range(3)]
        drawn[cls] = [path.read_bytes() for path in paths]
    simple, chat = drawn.values()
    assert simple == chat, "the same pictures in any batch"
    assert len(set(simple)) == 3


def test_drawing_can_be_asked_for_and_seeded(models, tmp_path):
    docs = [{"question": "red circle", "images": []}]
    bytes_of = []
    for seed in (0, 1):
        model = make(
            models.UniGameSimple, docs, "my_t2i", draw_tasks="other+my", seed=seed,
            output_dir=str(tmp_path / str(seed)),
        )  # fmt: skip
        (reply,) = model.generate_until(simple_requests(docs, "my_t2i"))
        bytes_of.append(Path(json.loads(reply)["images"][0]).read_bytes())
    assert bytes_of[0] != bytes_of[1]


@pytest.mark.parametrize("task", ["ueval_draw", "t2i-bench"])
def test_the_whole_name_of_a_task_asks_for_drawing(models, task, tmp_path):
    model = make(models.UniGameSimple, [], task, draw_tasks=task, output_dir=str(tmp_path))
    assert model._is_drawn(task)


def test_a_name_that_only_contains_the_word_is_not_drawn(models):
    model = make(models.UniGameSimple, task="pairwise_vqa")
    assert (
        model.generate_until(simple_requests(task="pairwise_vqa", max_new_tokens=5)) == expected()
    )


def test_what_is_not_offered_says_so(models):
    model = make(models.UniGameSimple)
    with pytest.raises(NotImplementedError, match="loglikelihood or multiple_choice"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="without rounds"):
        model.generate_until_multi_round([])


def test_a_misspelled_argument_is_an_error(models):
    with pytest.raises(UserError, match="does not know adaptor; it takes pretrained, adapter"):
        make(models.UniGameSimple, adaptor="runs/x")
    make(models.UniGameSimple, max_batch_size=4)  # lmms-eval passes it


def test_the_manifest_names_classes_that_exist(models):
    from unigame.evaluation.lmms.plugin import manifest

    made = manifest()
    assert made.model_id == "unigame"
    for path, simple in ((made.simple_class_path, True), (made.chat_class_path, False)):
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name).is_simple is simple


def test_the_entry_point_leads_to_the_manifest():
    from unigame.evaluation.lmms.plugin import manifest

    pyproject = Path(unigame.__file__).parents[1] / "pyproject.toml"
    entry_points = tomllib.loads(pyproject.read_text())["project"]["entry-points"]
    module, _, name = entry_points["lmms_eval.models"]["unigame"].partition(":")
    assert getattr(importlib.import_module(module), name) is manifest


def test_without_lmms_eval(monkeypatch):
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(UserError, match=r"unigame\[lmms\]"):
        importlib.import_module("unigame.evaluation.lmms.models")
    monkeypatch.delitem(sys.modules, "unigame.evaluation.lmms.models", raising=False)


TASK = """
task: toy_pope
dataset_path: {data}
dataset_kwargs: {{}}
test_split: test
output_type: generate_until
doc_to_visual: !function toy_utils.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, until: ["\\n\\n"]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}
"""


@pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed"
)
def test_lmms_eval_itself_runs_a_task(tmp_path):
    from unigame.synthetic.benchmarks import write_benchmarks

    write_benchmarks(tmp_path / "data", size=24, names=["pope"])
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "toy.yaml").write_text(TASK.format(data=tmp_path / "data/pope"))
    (tasks / "toy_utils.py").write_text('def visual(doc):\n    return [doc["image"]]\n')
    # The entry point is that of an installed package; where this one is not installed anew since it
    # came, the environment of the test provides it.
    info = tmp_path / "path/unigame_test-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unigame-test\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[lmms_eval.models]\nunigame = unigame.evaluation.lmms.plugin:manifest\n"
    )
    path = os.pathsep.join([str(tmp_path / "path"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [
        *(sys.executable, "-m", "lmms_eval", "--model", "unigame", "--tasks", "toy_pope"),
        *("--model_args", "pretrained=janus-nano", "--include_path", str(tasks)),
        *("--batch_size", "8", "--output_path", str(tmp_path / "out")),
    ]
    env = {**os.environ, "PYTHONPATH": path, "HF_DATASETS_OFFLINE": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("*_results.json")
    found = json.loads(results.read_text())["results"]["toy_pope"]
    assert found["exact_match,none"] > 0.7
