"""The contact sheet: pictures of all sources, none of rows of text alone."""

import pytest
from PIL import Image
from torch.utils.data import Dataset

from tests.data.files import BLUE, GREEN, RED, png, write, write_jsonl
from unigame.data import Mixture, build_dataset
from unigame.data.preview import _COLUMNS, _GAP, _SIDE, SHEET_ROWS, write_sheet


def colours(path):
    """The middle of each picture of the first line of a sheet."""
    with Image.open(path) as sheet:
        middles = range(_GAP + _SIDE // 2, sheet.width, _SIDE + _GAP)
        return [sheet.getpixel((x, _GAP + _SIDE // 2)) for x in middles]


def captions(folder, name, color, number):
    write(folder / f"{name}.png", png(color, size=(8, 8)))
    rows = [{"image": f"{name}.png", "caption": f"{name} {n}"} for n in range(number)]
    return {"type": "captions", "path": str(write_jsonl(folder / f"{name}.jsonl", rows))}


@pytest.mark.parametrize("limit", [None, 6])
def test_a_sheet_of_several_sources_shows_the_rows_of_each(tmp_path, limit):
    text = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]}
    chat = write_jsonl(tmp_path / "chat.jsonl", [text] * 6)
    sources = [
        {"type": "chat", "path": str(chat)},
        captions(tmp_path, "red", RED, 2),
        captions(tmp_path, "blue", BLUE, 3),
    ]
    sheet = tmp_path / "new folder" / "sheet.png"
    assert write_sheet(build_dataset(sources, limit=limit), sheet) == (5, [])
    assert colours(sheet)[:_COLUMNS] == [RED] * 2 + [BLUE] * 3 + [(255, 255, 255)]


def test_of_many_rows_some_are_taken_evenly_also_where_texts_cost_pictures(tmp_path):
    class Own(Dataset):
        def __len__(self):
            return 60

        def __getitem__(self, index):
            picture = Image.new("RGB", (8, 8), GREEN)
            return {"image": picture, "question": "?", "answer": "x", "id": str(index)}

    many = build_dataset([captions(tmp_path, "red", RED, 20)])
    assert write_sheet(Mixture([many, Own()]), tmp_path / "sheet.png").pictures == SHEET_ROWS
    assert colours(tmp_path / "sheet.png")[:_COLUMNS] == [RED] * 6
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.getpixel((sheet.width - _SIDE, sheet.height - _SIDE)) == GREEN
