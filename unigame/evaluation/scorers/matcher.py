"""MMBench's second stage: a text LLM says which option a reply means, where no rule could read it.

The references ask GPT (lmms-eval) or Qwen3-32B-AWQ (TorchUMM); scores are comparable within one
matcher only. The wording of the request is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from unigame.errors import UserError
from unigame.evaluation.scorers.pretrained import (
    checkpoint_name,
    clear_errors,
    commit_of,
    load_config,
    locate,
)
from unigame.evaluation.scorers.registry import is_scorer, open_scorer
from unigame.evaluation.tasks.mmbench.rules import REFUSED

Matcher = Callable[[str, Mapping[str, str], str], str]
"""Question, option texts by letter, the model's reply -> a reply that names a letter."""

_REQUEST = """\
A model was asked a single-choice question about a picture and did not reply with a letter.
Which option does its reply mean?

Question: {question}
Options:
{options}
Reply: {reply}

Answer with one capital letter: that of the option closest in meaning to the reply, or {none} if \
the reply means none of them."""


def matching_request(question: str, options: Mapping[str, str], reply: str) -> str:
    """What the text LLM is asked; ``Z`` stands for none of the options."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return _REQUEST.format(question=question, options=listed, reply=reply, none=REFUSED)


def matcher_name(matcher: Matcher | None) -> str:
    """For the record: ``hf:ID@COMMIT``, the name of a function, or ``none``."""
    if matcher is None:
        return "none"
    if isinstance(matcher, HFMatcher):
        return matcher.name
    return getattr(matcher, "__qualname__", type(matcher).__qualname__)


def resolve_matcher(matcher: Matcher | str | None) -> Matcher | None:
    """A matcher from ``hf:ID`` or a registered name; others as they are.

    Raises:
        UserError: another specification, or neither a Hub id nor a folder.
    """
    if not isinstance(matcher, str):
        return matcher
    kind, _, model_id = matcher.partition(":")
    if kind != "hf" and is_scorer(matcher):
        found: Matcher = open_scorer(matcher, "__call__")
        return found
    if kind != "hf" or not model_id:
        raise UserError(
            f"unknown matcher {matcher!r}; use hf:ID with the id or folder of a text model, such "
            "as hf:Qwen/Qwen3-4B-Instruct-2507"
        )
    return HFMatcher(model_id)


class HFMatcher:
    """A causal language model of the Hub or of a local folder, asked greedily.

    Weights are loaded at the first question, not before: until then the model under test needs the
    memory. A chat template is used where the tokenizer has one, with "thinking" off.

    Args:
        model_id: Hub id or folder.
        max_new_tokens: longest reply.

    Raises:
        UserError: neither a Hub id nor a folder.
    """

    def __init__(self, model_id: str, *, max_new_tokens: int = 32) -> None:
        self.source = locate(model_id)
        self.max_new_tokens = max_new_tokens
        self._pipeline: Any = None

    @cached_property
    def name(self) -> str:
        """With a digest of a folder's files or a Hub id's commit; see ``checkpoint_name``."""
        return f"hf:{checkpoint_name(self.source, commit_of(self._config))}"

    @cached_property
    def _config(self) -> Any:
        return load_config(self.source)

    def check(self) -> None:
        """Find the checkpoint and see that it is of a kind that can match; loads no weights.

        Raises:
            UserError: it cannot be had, or is no causal language model.
        """
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN,
        )

        if (kind := self._config.model_type) not in KNOWN:
            raise UserError(
                f"matcher hf:{self.source} is a {kind!r} model, which does not answer in words; "
                "take a text model such as hf:Qwen/Qwen3-4B-Instruct-2507"
            )

    def __call__(self, question: str, options: Mapping[str, str], reply: str) -> str:
        """The model's reply to the matching request."""
        pipeline = self._load()
        request = matching_request(question, options, reply)
        templated = pipeline.tokenizer.chat_template is not None
        if templated:
            request = pipeline.tokenizer.apply_chat_template(
                [{"role": "user", "content": request}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
        # Greedy whatever the checkpoint's own generation settings say.
        [said] = pipeline(
            request,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            return_full_text=False,
            add_special_tokens=not templated,
        )
        return said["generated_text"].rpartition("</think>")[2].strip()

    def _load(self) -> Any:
        if self._pipeline is None:
            import torch
            import transformers

            with clear_errors(self.source, "its weights or tokenizer"):
                self._pipeline = transformers.pipeline(
                    "text-generation",
                    model=self.source,
                    dtype="auto",
                    device_map="auto" if torch.cuda.is_available() else None,
                )
        return self._pipeline
