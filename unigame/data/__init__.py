"""Readers of the field's data formats: map-style torch datasets of picture-and-text records.

See ``docs/data.md``. Nothing here knows of models or training.
"""

from unigame.data.build import build_dataset
from unigame.data.captions import Captions
from unigame.data.chat import Chat
from unigame.data.hf import HFData
from unigame.data.images import CorruptImage, load_image
from unigame.data.mixture import Mixture
from unigame.data.picture_folder import PictureFolder
from unigame.data.records import (
    Record,
    SkippedRow,
    load_record_or_skip,
    load_rows,
    most_common_answer,
    split_rows,
)
from unigame.data.skips import SkipReport
from unigame.data.vqa import VQA
from unigame.data.webdataset import WebDataset

__all__ = [
    "VQA",
    "Captions",
    "Chat",
    "CorruptImage",
    "HFData",
    "Mixture",
    "PictureFolder",
    "Record",
    "SkipReport",
    "SkippedRow",
    "WebDataset",
    "build_dataset",
    "load_image",
    "load_record_or_skip",
    "load_rows",
    "most_common_answer",
    "split_rows",
]
