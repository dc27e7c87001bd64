"""Our backbones as lmms-eval models, so that all its tasks run on them.

lmms-eval has two ways to hand over a question: *simple* (a text and a list of pictures) and *chat*
(messages whose parts are text and pictures in order). Both end in the same questions to a backbone,
asked as our own benchmarks are: shortest first, batched, pictures decoded ahead.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from rich.progress import Progress

from unigame.backbones import load_backbone
from unigame.data.images import IMAGE_SUFFIXES
from unigame.data.pictures import picture
from unigame.errors import UserError
from unigame.evaluation.ask import Asker, Drawing
from unigame.evaluation.base import Item, Prediction
from unigame.evaluation.batching import BatchSize, automatic_size

if TYPE_CHECKING:

    class lmms:  # noqa: N801  lmms-eval's name
        """What is used of the base class."""

        rank: int
        task_dict: Any
        cache_hook: Any

else:
    try:
        from lmms_eval.api.model import lmms
    except ImportError as error:
        raise UserError(
            f"lmms-eval cannot be imported ({error}); install it: pip install 'unigame[lmms]'"
        ) from error

BATCHES_AT_ONCE = 4
"""Whose pictures are in memory together: lmms-eval decodes all pictures of a document."""
MOST_NEW_TOKENS = 1024
"""Where a task does not say; what lmms-eval's own models take."""


@dataclass(frozen=True)
class Request:
    """One of lmms-eval's requests, the same for both ways.

    Attributes:
        number: its place among all requests.
        context: the text as the task wrote it.
        how: the task's generation settings.
        look: gives the document's visuals or messages.
        doc_id: number of the document.
        task: name of the task.
        split: of its data.
    """

    number: int
    context: str
    how: Mapping[str, Any]
    look: Any
    doc_id: int
    task: str
    split: str

    @property
    def stop(self) -> tuple[str, ...]:
        """Where a reply is cut off."""
        until = self.how.get("until") or ()
        return (until,) if isinstance(until, str) else tuple(until)

    @property
    def max_new_tokens(self) -> int:
        """Longest reply."""
        return int(self.how.get("max_new_tokens") or MOST_NEW_TOKENS)


class _UniGame(lmms):
    """What both ways share.

    Args:
        pretrained: as ``unigame evaluate --model`` takes it.
        adapter: folder of a LoRA adapter.
        dtype: "auto", "float32" or "bfloat16".
        device: such as ``"cuda:0"``; None: the accelerator if there is one.
        batch_size: requests at once; ``"auto"`` takes what should fit.
        max_images: pictures that a question may show; None: all that the backbone takes.
        draw_tasks: words, joined by ``+``; tasks with one of them in their name are drawn.
        output_dir: where drawings go.
        seed: of the drawings.
        guidance_scale: of the drawings; None: the usual one of the model's family.
        temperature: of the drawings; answers are greedy.
        max_batch_size: lmms-eval passes it; it is not used.
        **unknown: anything else is an error.

    Raises:
        UserError: an unknown argument, or a model that does not load.
    """

    def __init__(
        self,
        pretrained: str = "janus-nano",
        *,
        adapter: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        max_images: int | None = None,
        draw_tasks: str = "wise",
        output_dir: str = "lmms_eval_drawings",
        seed: int = 0,
        guidance_scale: float | None = None,
        temperature: float = 1.0,
        max_batch_size: int | str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(
                f"--model_args: unigame does not know {', '.join(sorted(unknown))}; it takes "
                "pretrained, adapter, dtype, max_images, draw_tasks, output_dir, seed, "
                "guidance_scale and temperature"
            )
        self.backbone = load_backbone(pretrained, dtype=dtype, device=device, adapter=adapter)
        self.batch_size = str(batch_size)
        self.max_images = min(max_images or self.backbone.max_images, self.backbone.max_images)
        self.draw_words = {word.strip().lower() for word in draw_tasks.split("+")} - {""}
        self.output_dir = Path(output_dir).absolute()
        usual = self.backbone.facts.guidance_scale
        guided = usual if guidance_scale is None else float(guidance_scale)
        self.drawing = Drawing(seed, guided, float(temperature))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.backbone.device

    # ---- what lmms-eval calls --------------------------------------------------------------------
    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One reply per request, in order: text, or JSON naming the drawing.

        Raises:
            UserError: a task that shows no picture and is not to be drawn, or shows a video.
        """
        read = [self._request(number, r.args) for number, r in enumerate(requests)]
        replies: dict[int, str] = {}
        with Progress(disable=self.rank != 0) as progress:
            bar = progress.add_task("unigame", total=len(read))
            for number, reply in self._replies(read):
                replies[number] = reply
                asked = (read[number].context, read[number].how)
                self.cache_hook.add_partial("generate_until", asked, reply)
                progress.advance(bar)
        return [replies[number] for number in range(len(read))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "unigame answers in words; it does not score given continuations, so tasks of the "
            "output type loglikelihood or multiple_choice do not run (most have a generate_until "
            "version)"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("unigame answers one question at a time, without rounds")

    # ---- inside ----------------------------------------------------------------------------------
    def _request(self, number: int, args: Sequence[Any]) -> Request:
        raise NotImplementedError

    def _content(self, request: Request) -> tuple[str, list[Any]]:
        """Text and visuals of a request."""
        raise NotImplementedError

    def _doc(self, request: Request) -> Any:
        return self.task_dict[request.task][request.split][request.doc_id]

    def _replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """Replies by request number, in an order that makes full batches."""
        answers: dict[tuple[int, tuple[str, ...]], list[Request]] = defaultdict(list)
        drawings: dict[str, list[Request]] = defaultdict(list)
        for request in sorted(requests, key=lambda r: len(r.context)):
            if self._is_drawn(request.task):
                drawings[request.task].append(request)
            else:
                answers[request.max_new_tokens, request.stop].append(request)
        for (tokens, stop), group in answers.items():
            step = BATCHES_AT_ONCE * self._size("answer")
            for at in range(0, len(group), step):
                yield from self._answers(group[at : at + step], tokens, stop)
        for task, group in drawings.items():
            yield from self._drawings(group, task)

    def _is_drawn(self, task: str) -> bool:
        name = task.lower()
        return bool(self.draw_words & {name, *re.split(r"[^a-z0-9]+", name)})

    def _answers(
        self, requests: Sequence[Request], max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, str]]:
        items = {str(request.number): self._item(request) for request in requests}
        asker = Asker(self.backbone, BatchSize(self._size("answer")), self.max_images)
        for batch in asker.answers(list(items.values()), max_new_tokens=max_new_tokens, stop=stop):
            for prediction in batch:
                if prediction.error:
                    task = items[prediction.id].reference["task"]
                    warnings.warn(f"{task}: {prediction.error}; the reply is empty", stacklevel=2)
                yield int(prediction.id), prediction.text

    def _item(self, request: Request) -> Item:
        text, visuals = self._content(request)
        if not visuals:
            raise UserError(
                f"task {request.task!r} shows no picture, and this model answers questions about "
                "pictures; if pictures are to be drawn, pass --model_args draw_tasks="
                f"{request.task.lower()}"
            )
        pictures = tuple(picture(_image(visual, request.task), None) for visual in visuals)
        return Item(str(request.number), text, pictures, {"task": request.task})

    def _size(self, task: Literal["answer", "draw"]) -> int:
        if self.batch_size.isdecimal():
            return max(1, int(self.batch_size))
        return automatic_size(self.backbone, task)

    def _drawings(self, requests: Sequence[Request], task: str) -> Iterator[tuple[int, str]]:
        """Draw each document of a task once, as ``output_dir/task/doc_id.png``."""
        numbers: dict[str, list[int]] = defaultdict(list)
        items = {}
        for request in requests:
            id = str(request.doc_id)
            numbers[id].append(request.number)
            items[id] = Item(id, self._content(request)[0])
        asker = Asker(self.backbone, BatchSize(self._size("draw")))
        folder = self.output_dir / re.sub(r"[^\w.-]", "_", task)
        for batch in asker.drawings(list(items.values()), self.drawing, folder, salt=task):
            for prediction in batch:
                for number in numbers[prediction.id]:
                    yield number, _drawn(prediction)


class UniGameSimple(_UniGame):
    """``--model unigame --force_simple``: a text and a list of pictures."""

    is_simple = True

    def _request(self, number: int, args: Sequence[Any]) -> Request:
        context, how, look, doc_id, task, split = args
        return Request(number, context, how or {}, look, doc_id, task, split)

    def _content(self, request: Request) -> tuple[str, list[Any]]:
        return request.context, _flat(request.look(self._doc(request)))


class UniGameChat(_UniGame):
    """``--model unigame``: messages. Where text precedes a picture, marks tell the places."""

    is_simple = False

    def _request(self, number: int, args: Sequence[Any]) -> Request:
        context, look, how, doc_id, task, split = args
        return Request(number, context, how or {}, look, doc_id, task, split)

    def _content(self, request: Request) -> tuple[str, list[Any]]:
        parts = [
            part for message in request.look(self._doc(request)) for part in message["content"]
        ]
        visuals = [part["url"] for part in parts if part["type"] != "text"]
        return self._text(parts, len(visuals)), visuals

    def _text(self, parts: Sequence[Mapping[str, Any]], pictures: int) -> str:
        """The text of all parts; of several pictures, each has its mark where it stands."""
        first_text = next((i for i, p in enumerate(parts) if p["type"] == "text"), len(parts))
        interleaved = any(part["type"] != "text" for part in parts[first_text:])
        marked = interleaved and 1 < pictures <= self.max_images
        texts, shown = [], 0
        for part in parts:
            if part["type"] == "text":
                texts.append(str(part["text"]).strip("\n") if marked else str(part["text"]))
            else:
                shown += 1
                texts += [f"<image {shown}>"] * marked
        return "\n".join(text for text in texts if text)


def _flat(visuals: Any) -> list[Any]:
    """A task gives a picture, a list of them, a list of such lists, or nothing."""
    if visuals is None:
        return []
    if isinstance(visuals, list | tuple):
        return [inner for visual in visuals for inner in _flat(visual)]
    return [visuals]


def _image(visual: Any, task: str) -> Image.Image | Path:
    """A picture, or the path of one."""
    if isinstance(visual, Image.Image):
        return visual
    if isinstance(visual, str | Path) and Path(visual).suffix.lower() in IMAGE_SUFFIXES:
        return Path(visual)
    raise UserError(
        f"task {task!r} shows something that is no picture ({type(visual).__name__}); choose "
        "tasks whose questions are about pictures"
    )


def _drawn(prediction: Prediction) -> str:
    """What lmms-eval's text-to-image tasks read."""
    return json.dumps({"text": "", "images": [str(path) for path in prediction.pictures]})
