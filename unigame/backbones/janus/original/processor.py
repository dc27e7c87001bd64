"""The processor of an original Janus folder, as transformers' ``JanusProcessor``.

Three things a plain ``AutoTokenizer`` would lose. The folders call their byte-level tokenizer a
``LlamaTokenizerFast``; transformers 5 then puts SentencePiece's rules in the place of those of
``tokenizer.json`` and drops all spaces (transformers issue 45488). The begin mark comes from a
setting and not from that file. And what pads is the authors' own pad mark.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import GenerationConfig, JanusProcessor, PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unigame.backbones.model_files import check_numbers, read_json
from unigame.errors import UserError

IMAGE, BEGIN_IMAGE, END_IMAGE = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
PAD = "<｜▁pad▁｜>"
GUIDANCE = 5.0

# The authors' "deepseek" conversation: "<|User|>: ...\n\n<|Assistant|>: ...<end of sentence>".
# Line breaks around a picture are as in the converted checkpoints of deepseek-community.
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = message['role'] | lower -%}
{%- set marks = {'user': '<|User|>', 'assistant': '<|Assistant|>'} -%}
{{- marks.get(role, message['role'] | capitalize) ~ ':' -}}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- (' ' if loop.first else '\\n') ~ 'IMAGE' ~ ('' if loop.last else '\\n') -}}
{%- else -%}
{%- set after_image = not loop.first and loop.previtem['type'] == 'image' -%}
{%- set text = part['text'].lstrip() if loop.first else part['text'] -%}
{%- set text = text.rstrip() if loop.last else text -%}
{{- '' if after_image or text == '' else ' ' -}}
{{- text -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt or not loop.last -%}
{{- '\\n\\n' if role == 'user' else 'END' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|Assistant|>:' -}}{%- endif -%}"""


def hub_processor(folder: Path) -> JanusProcessor:
    """Tokenizer, image processor and chat template of an original folder.

    Raises:
        UserError: a file is missing or broken, a special token is not in the vocabulary, or the
            conversation format is another one.
    """
    settings = _read(folder, "processor_config.json", required=False)
    if settings.get("sft_format", "deepseek") != "deepseek":
        raise UserError(
            f"{str(folder / 'processor_config.json')!r} has sft_format="
            f"{settings['sft_format']!r}; only the 'deepseek' conversations of Janus are supported"
        )
    tokenizer = _tokenizer(folder, settings)
    template = _CHAT_TEMPLATE.replace("IMAGE", str(tokenizer.image_token))
    template = template.replace("END", str(tokenizer.eos_token))
    return JanusProcessor(
        image_processor=_image_processor(_read(folder, "preprocessor_config.json")),
        tokenizer=tokenizer,
        chat_template=template,
        # The authors open every question with their system prompt, and no drawing.
        use_default_system_prompt=True,
        num_image_tokens=int(settings.get("num_image_tokens", 576)),
    )


def hub_generation_config(tokenizer: Any) -> GenerationConfig:
    """What transformers' ``generate`` needs, for text and for ``generation_mode="image"``."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        guidance_scale=GUIDANCE,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(BEGIN_IMAGE)},
    )


def _tokenizer(folder: Path, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"folder {str(folder)!r} has no tokenizer.json; copy it there")
    config = _read(folder, "tokenizer_config.json")
    marks = _read(folder, "special_tokens_map.json", required=False) | config
    try:
        rules = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exceptions
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{str(file)!r} does not load ({reason}); download it again") from error
    named = {
        "bos_token": _text(marks.get("bos_token")),
        "eos_token": _text(marks.get("eos_token")),
        "pad_token": settings.get("pad_tag", PAD),
        "boi_token": settings.get("image_start_tag", BEGIN_IMAGE),
        "eoi_token": settings.get("image_end_tag", END_IMAGE),
    }
    for name, mark in named.items():
        if mark is None or rules.token_to_id(mark) is None:
            raise UserError(
                f"{str(file)!r} has no token for {name}={mark!r}; tokenizer.json and the other "
                "files are not of the same checkpoint: download them again"
            )
    # The placeholder alone may be new: the authors' code adds it where it is not there.
    placeholder = {"image_token": settings.get("image_tag", IMAGE)}
    text_marks = {name: named.pop(name) for name in ("bos_token", "eos_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=rules,
        **text_marks,
        # LlamaTokenizerFast, by whose name the folders go, adds it unless told otherwise.
        add_bos_token=config.get("add_bos_token") is not False,
        model_max_length=config.get("model_max_length"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=placeholder | named,
    )


def _image_processor(config: dict[str, Any]) -> JanusImageProcessorPil:
    kept = ("min_size", "image_mean", "image_std", "rescale_factor", "do_normalize")
    size = int(config.get("image_size", 384))
    return JanusImageProcessorPil(
        size={"height": size, "width": size}, **{k: config[k] for k in kept if k in config}
    )


def _read(folder: Path, name: str, required: bool = True) -> dict[str, Any]:
    file = folder / name
    if not file.is_file():
        if required:
            raise UserError(f"folder {str(folder)!r} has no {name}; copy it there")
        return {}
    settings = read_json(file, "is broken")
    check_numbers(settings, file)
    return settings


def _text(mark: Any) -> str | None:
    """A special token, which may be written with its settings."""
    return mark["content"] if isinstance(mark, dict) else mark
