r"""Token layout of Janus: the one place that turns text into ids, for training and for inference.

Understanding: ``<bos><|User|>: <begin_of_image>[N placeholders]<end_of_image>\n{question}\n\n
<|Assistant|>:`` and then `` {answer}<eos>``. Generation: ``<bos><|User|>: {prompt}\n\n
<|Assistant|>:<begin_of_image>`` and then N image codes. The text comes from the checkpoint's own
chat template; the N placeholders are later *replaced* by image features, never kept beside them.

``build_processor`` makes a small ``JanusProcessor`` from a list of words, for the bundled model and
for tests: the published checkpoints' special tokens, chat format and pixels, one token a word.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import JanusProcessor, PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from unigame.backbones.common.layout import ChatLayout

PAD, BOS, EOS, UNK = "<|pad|>", "<|begin_of_text|>", "<|end_of_text|>", "<|unknown|>"
IMAGE, BEGIN_IMAGE, END_IMAGE = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK, IMAGE, BEGIN_IMAGE, END_IMAGE, USER, ASSISTANT)
PUNCTUATION = (":", ".", ",", "?", "!")

# The chat format of the Janus checkpoints: "<|User|>: ...\n\n<|Assistant|>: ...", a line break
# between an image and its neighbour, and the end mark after a finished answer.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = message['role'] | lower -%}
{{- '<|User|>:' if role == 'user' else '<|Assistant|>:' -}}
{%- for part in message['content'] -%}
{{- ' ' if loop.first else '\n' -}}
{{- '<image_placeholder>' if part['type'] == 'image' else part['text'].strip() -}}
{%- endfor -%}
{%- if role == 'user' and (add_generation_prompt or not loop.last) -%}
{{- '\n\n' -}}
{%- elif role == 'assistant' and not loop.last -%}
{{- '<|end_of_text|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|Assistant|>:' -}}{%- endif -%}"""


class JanusLayout(ChatLayout):
    """Prompts and answers as token ids, exactly as ``JanusProcessor`` makes them."""

    def __init__(self, processor: JanusProcessor) -> None:
        tokens = int(processor.num_image_tokens)
        super().__init__(processor, tokens, "deepseek-community/Janus-Pro-1B")
        start = processor.image_start_token
        self.begin_image_id = int(self.tokenizer.convert_tokens_to_ids(start))

    def opening(self) -> str:
        # The system prompt, where the checkpoint wants it.
        return DEFAULT_SYSTEM_PROMPT if self.processor.use_default_system_prompt else ""

    def prompt_ids(self, prompt: str) -> list[int]:
        content = [{"type": "text", "text": prompt}]
        text = self.render([{"role": "user", "content": content}], add_generation_prompt=True)
        return [*self.tokenize(text), self.begin_image_id]

    def drawing_start(self) -> list[int]:
        return [self.begin_image_id]

    def unconditional(self, ids_BL: Tensor) -> Tensor:
        """The same rows without their text, for classifier-free guidance as transformers has it."""
        keep = (ids_BL == self.bos_id) | (ids_BL == self.begin_image_id)
        return ids_BL.masked_fill(~keep, self.pad_id)


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word: lower case, split at white space and punctuation.

    Args:
        words: the vocabulary beside special tokens and punctuation; repeats are ignored, order is
            kept. Words must hold neither white space nor punctuation, or they could never match.

    Raises:
        ValueError: a word would be split by the tokenizer and so never be produced.
    """
    known = dict.fromkeys((*SPECIAL_TOKENS, *PUNCTUATION, *(word.lower() for word in words)))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(known)}, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    tokenizer.pre_tokenizer = splitter
    for word in list(known)[len(SPECIAL_TOKENS) :]:
        if [piece for piece, _ in splitter.pre_tokenize_str(word)] != [word]:
            raise ValueError(
                f"vocabulary word {word!r} holds white space or punctuation and would be split; "
                "give its parts as separate words"
            )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, list(known).index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": IMAGE,
            "boi_token": BEGIN_IMAGE,
            "eoi_token": END_IMAGE,
        },
    )


def build_processor(words: Iterable[str], image_size: int, num_image_tokens: int) -> JanusProcessor:
    """A complete ``JanusProcessor`` for a small Janus, without the long default system prompt.

    Args:
        words: vocabulary of the tokenizer (see ``build_tokenizer``).
        image_size: side of the square image that the model reads and draws, in pixels.
        num_image_tokens: image tokens of one picture, ``(image_size // patch_size) ** 2``.
    """
    size = {"height": image_size, "width": image_size}
    return JanusProcessor(
        image_processor=JanusImageProcessorPil(
            size=size, min_size=1, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=build_tokenizer(words),
        chat_template=CHAT_TEMPLATE,
        use_default_system_prompt=False,
        num_image_tokens=num_image_tokens,
    )
