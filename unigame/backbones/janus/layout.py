r"""Token layout of Janus: the one place that turns text into ids, for training and for inference.

Understanding: ``<bos><|User|>: <begin_of_image>[N placeholders]<end_of_image>\n{question}\n\n
<|Assistant|>:`` and then `` {answer}<eos>``. Generation: ``<bos><|User|>: {prompt}\n\n
<|Assistant|>:<begin_of_image>`` and then N image codes. The text comes from the checkpoint's own
chat template; the N placeholders are later *replaced* by image features, never kept beside them.
"""

from __future__ import annotations

from torch import Tensor
from transformers import JanusProcessor
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from unigame.backbones.common.layout import ChatLayout


class JanusLayout(ChatLayout):
    """Prompts and answers as token ids, exactly as ``JanusProcessor`` makes them.

    Args:
        processor: a ``JanusProcessor`` with a chat template.

    Raises:
        UserError: the processor has no chat template.
    """

    def __init__(self, processor: JanusProcessor) -> None:
        tokens = int(processor.num_image_tokens)
        super().__init__(processor, tokens, "deepseek-community/Janus-Pro-1B")
        start = processor.image_start_token
        self.begin_image_id = int(self.tokenizer.convert_tokens_to_ids(start))

    def opening(self) -> str:
        """The system prompt, where the checkpoint wants it."""
        return DEFAULT_SYSTEM_PROMPT if self.processor.use_default_system_prompt else ""

    def picture_text(self) -> str:
        """N placeholders between the marks of a picture."""
        processor = self.processor
        image = processor.image_token * self.num_image_tokens
        return f"{processor.image_start_token}{image}{processor.image_end_token}"

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a text -> image prompt, up to and with begin-of-image."""
        content = [{"type": "text", "text": prompt}]
        text = self.render([{"role": "user", "content": content}], add_generation_prompt=True)
        return [*self.tokenize(text), self.begin_image_id]

    def unconditional(self, ids_BL: Tensor) -> Tensor:
        """The same rows without their text, for classifier-free guidance as transformers has it."""
        keep = (ids_BL == self.bos_id) | (ids_BL == self.begin_image_id)
        return ids_BL.masked_fill(~keep, self.pad_id)
