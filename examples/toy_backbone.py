"""A whole backbone in one file: reads the mean colours of four patches, draws flat patches."""

from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from unigame.backbones import base
from unigame.backbones.common.codes import draw_codes
from unigame.backbones.common.pixels import square_pixels
from unigame.seeds import seeds_of_rows

SIDE, N, H, END, FILE = 8, 4, 16, 0, "adapter_model.safetensors"
PALETTE = torch.tensor([[r, g, b] for r in (0.0, 1.0) for g in (0.0, 1.0) for b in (0.0, 1.0)])


class ToyPreprocessor:  # layout and image processor, no weights: it pickles
    pictures = square_pixels(SIDE).pictures

    def answer(self, question, answer):
        return base.AnswerTokens((END, *question.encode()), (*answer.encode(), END))

    def prompt(self, text):
        return base.PromptTokens((END, *text.encode()))


class ToyBackbone(base.Backbone):
    def __init__(self):
        super().__init__()
        self.words, self.places = torch.nn.Embedding(256, H), torch.nn.Embedding(N, H)
        self.eye, self.body, self.lora_body = (
            torch.nn.Linear(size, H, False) for size in (3, H, H)
        )
        self.text_head, self.image_head = torch.nn.Linear(H, 256), torch.nn.Linear(H, len(PALETTE))
        self.requires_grad_(False)
        self.preprocessor, self.adapted = ToyPreprocessor(), False
        of = (("lora_body",), ("eye",), torch.float32, sum(w.numel() for w in self.parameters()))
        self.facts = base.BackboneFacts("toy", SIDE, N, H, len(PALETTE), *of)

    def think(self, states):
        return torch.tanh(self.body(states) + (self.lora_body(states) if self.adapted else 0))

    def image_features(self, images):
        return F.avg_pool2d(images, SIDE // 2).flatten(2).mT

    def embed_images(self, images):
        return self.eye(self.image_features(images))

    def scores(self, seen_NH, prompt, before):  # of the byte behind each of the bytes `before`
        known_H = seen_NH.mean(0) + self.words(torch.tensor(prompt)).mean(0)
        return self.text_head(self.think(known_H + self.words(torch.tensor(before))))

    def answer_loss(self, images, questions, answers=None, *, embeds=None):
        seen_MNH = self.embed_images(images) if embeds is None else embeds
        rows = self.answer_tokens(questions, answers)  # texts become tokens here, and only here
        rows = [row for row in rows for _ in range(len(seen_MNH) // len(rows))]
        pairs = zip(seen_MNH, rows, strict=True)
        logits = [self.scores(seen, row.prompt, (END, *row.answer[:-1])) for seen, row in pairs]
        pairs = zip(logits, rows, strict=True)
        return torch.stack([F.cross_entropy(one, torch.tensor(row.answer)) for one, row in pairs])

    def answer(self, images, questions, *, max_new_tokens=16, image_index=None):
        pairs = zip(self.embed_images(images), self.prompt_tokens(questions), strict=True)
        return [chr(int(self.scores(seen, row.ids, [END]).argmax())) for seen, row in pairs]

    def encode_images(self, images):
        return (self.image_features(images) > 0.5).long() @ torch.tensor([4, 2, 1])

    def states(self, rows):
        asked = [self.words(torch.tensor(row.ids)).mean(0) for row in rows]
        return self.think(self.places.weight + torch.stack(asked)[:, None])

    @torch.no_grad()
    def visual_states(self, images, prompts, *, codes=None):
        rows, codes = self.rows_and_codes(images, prompts, codes)
        return base.VisualStates(self.states(rows), codes)

    def draw(self, states_BNH, codes, **choice):
        drawn = draw_codes(self.image_head(states_BNH), codes, PALETTE, **choice)
        return base.Drawing(self.render(drawn.vectors_MNE), drawn.codes_MN)

    def render(self, compact):  # codes, or the colours themselves
        colours = compact if compact.dim() == 3 else PALETTE[compact.long()]
        return F.interpolate(colours.mT.unflatten(2, (2, 2)), (SIDE, SIDE))

    def generation_loss(self, images, captions, *, codes=None):
        rows, codes = self.rows_and_codes(images, captions, codes)
        scores = self.image_head(self.states(rows)).mT
        return F.cross_entropy(scores, codes, reduction="none").mean(-1)

    def generate(self, prompts, *, seed=0, do_sample=True, seeds=None, **settings):
        drawn, seeds = [], seeds_of_rows(len(prompts), seed, seeds)
        for prompt, own in zip(prompts, seeds, strict=True):  # no picture hangs on its neighbours
            states, die = self.states(self.prompt_tokens([prompt])), torch.Generator()
            drawn.append(self.draw(states, None, sample=do_sample, generator=die.manual_seed(own)))
        return torch.cat([drawing.images for drawing in drawn])

    def add_lora(self, config=None):
        self.adapted = True
        torch.nn.init.zeros_(self.lora_body.requires_grad_(True).weight)
        return self

    @contextmanager
    def lora_disabled(self):
        self.adapted = False
        yield
        self.adapted = True

    def save_pretrained(self, folder):
        save_file(self.lora_body.state_dict(), Path(folder) / FILE)

    def load_adapter(self, folder):
        self.add_lora().lora_body.load_state_dict(load_file(Path(folder) / FILE))

    def gradient_checkpointing_enable(self, *settings):
        self.checkpointing = True  # nothing here is worth recomputing


def load(name_or_path, *, dtype, device):
    torch.manual_seed(0)  # a real one reads the folder's weights
    return ToyBackbone().to(device)
