"""Files of strangers: what is wrong with them is one line, whatever it is."""

from __future__ import annotations

import pytest

from unigame.system.json_text import parse_json


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"", "Expecting value"),
        (b'{"a": 1', "delimiter"),
    ],
)
def test_what_is_no_json_is_one_line(text, says):
    with pytest.raises(ValueError, match=says) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b"[1e400]", "1e400"),
        (b"[" + b"9" * 5000 + b"]", "99999"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' occurs twice"),
    ],
)
def test_what_the_standard_does_not_allow_is_taken_only_where_it_does_no_harm(text, says):
    with pytest.raises(ValueError, match=says):
        parse_json(text, strict=True)
    if b"9999" not in text:
        parse_json(text)


def test_a_byte_order_mark_is_no_part_of_it():
    assert parse_json(b'\xef\xbb\xbf{"a": 1.5}', strict=True) == {"a": 1.5}
