"""A judge on this machine: any image-text-to-text checkpoint that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from unigame.data.images import CorruptImage, load_image
from unigame.errors import UserError
from unigame.evaluation.scorers.judges import Judge, JudgeRequest, JudgeUnavailable, Rubric
from unigame.evaluation.scorers.pretrained import (
    checkpoint_name,
    clear_errors,
    commit_of,
    load_config,
    locate,
)


class HFJudge(Judge):
    """A vision-language model through its own processor and chat template; greedy, batched.

    Weights are loaded at the first picture, not before: until then the model under test needs the
    memory. With several GPUs they are spread out.

    Args:
        model_id: Hub id or folder.
        batch_size: pictures judged at once.
        max_new_tokens: longest reply.
        dtype: of the weights; ``"auto"``: the checkpoint's own.

    Raises:
        UserError: neither a Hub id nor a folder.
    """

    deterministic = True

    def __init__(
        self,
        model_id: str,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 512,
        dtype: str = "auto",
    ) -> None:
        self.source = locate(model_id)
        self.batch_size, self.max_new_tokens, self.dtype = batch_size, max_new_tokens, dtype
        self._loaded: tuple[Any, Any] | None = None

    @cached_property
    def name(self) -> str:  # type: ignore[override]  # read once it is asked for
        """With a digest of a folder's files or a Hub id's commit; see ``checkpoint_name``."""
        return f"hf:{checkpoint_name(self.source, commit_of(self._config))}"

    @cached_property
    def _config(self) -> Any:
        return load_config(self.source)

    def check(self) -> None:
        """Find the checkpoint and see that it is of a kind that can judge; loads no weights."""
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN,
        )

        if (kind := self._config.model_type) not in KNOWN:
            raise UserError(
                f"hf:{self.source} is a {kind!r} model, which does not answer in words about "
                "pictures; take a vision-language model such as Qwen/Qwen2.5-VL-7B-Instruct"
            )

    def settings(self) -> dict[str, Any]:
        """Decoding and revision."""
        return {
            "decoding": "greedy",
            "max_new_tokens": self.max_new_tokens,
            "revision": commit_of(self._config),
        }

    def reply(self, prompt: str, explanation: str, picture: Path, rubric: Rubric) -> str:
        """One picture alone. See ``Judge.reply``."""
        return self.replies([JudgeRequest("", prompt, explanation, picture)], rubric)[0]

    def replies(self, requests: Sequence[JudgeRequest], rubric: Rubric) -> list[str]:
        """One batch, padded on the left. See ``Judge.replies``."""
        import torch

        model, processor = self._load()
        inputs = processor.apply_chat_template(
            # No system message: some templates know none.
            [[{"role": "user", "content": _content(r, rubric)}] for r in requests],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(model.device, dtype=model.dtype)  # only floating-point tensors change their type
        try:
            with torch.inference_mode():
                output_BL = model.generate(
                    **inputs, max_new_tokens=self.max_new_tokens, do_sample=False
                )
        except torch.OutOfMemoryError:
            # Of a batch: its pictures are then judged one by one.
            raise JudgeUnavailable("judge: out of memory", retryable=False) from None
        new_BL = output_BL[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in processor.batch_decode(new_BL, skip_special_tokens=True)]

    def _load(self) -> tuple[Any, Any]:
        """The model in evaluation mode, and its processor."""
        if self._loaded is None:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor

            with clear_errors(self.source, "its processor"):
                processor = AutoProcessor.from_pretrained(self.source)
            if not processor.chat_template:
                raise UserError(
                    f"hf:{self.source} has no chat template; take an instruction-tuned model"
                )
            with clear_errors(self.source, "its weights"):
                model = AutoModelForImageTextToText.from_pretrained(
                    self.source,
                    dtype=self.dtype,
                    device_map="auto" if torch.cuda.is_available() else None,
                )
            processor.tokenizer.padding_side = "left"
            self._loaded = (model.eval(), processor)
        return self._loaded


def _content(request: JudgeRequest, rubric: Rubric) -> list[dict[str, Any]]:
    """The parts of the message: text, then the picture, as the references send them."""
    try:
        image = load_image(request.picture)
    except (CorruptImage, OSError):
        raise JudgeUnavailable("unreadable picture", retryable=False) from None
    text = rubric.fill(request.prompt, request.explanation)
    return [{"type": "text", "text": text}, {"type": "image", "image": image}]
