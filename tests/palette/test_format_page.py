"""The specification of the container: its example and its reader, as they stand on the page."""

import re
from pathlib import Path

import numpy as np

from palette.codec import decode, encode
from tests.palette.containers import CLASSES, sets

PAGE = (Path(__file__).resolve().parents[2] / "palette" / "FORMAT.md").read_text()


# --- the page


def test_the_example_of_the_page_is_what_the_code_writes():
    block = re.search(r"```hex\n(.*?)```", PAGE, re.DOTALL)[1]
    data = bytes.fromhex(" ".join(line.split("#")[0] for line in block.splitlines()))
    palettes, indices = np.zeros((2, 4, 3), dtype=np.uint8), np.zeros((2, 2, 3), dtype=np.uint8)
    palettes[0, :3] = [(16, 8, 0), (200, 40, 40), (0, 80, 160)]
    palettes[1, 0] = 90
    indices[0] = [[0, 0, 1], [0, 2, 1]]
    assert encode(palettes, indices, [1, 0], ["cat", "kůň"]) == data
    found = decode(data)
    np.testing.assert_array_equal(found[0], palettes)
    np.testing.assert_array_equal(found[1], indices)
    assert found[2].tolist() == [1, 0] and found[3] == ["cat", "kůň"]


def page_reader():
    page: dict = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], page)
    return page["read"]


def test_the_reader_of_the_page_reads_what_the_code_writes():
    read, rng = page_reader(), np.random.default_rng(0)
    for colors, count, height, width in ((1, 1, 2, 2), (2, 2, 5, 3), (7, 5, 6, 6), (64, 3, 9, 8), (256, 1, 17, 16)):
        palettes, indices = sets(count, colors, height, width, seed=colors)
        indices = np.minimum(indices, np.maximum.accumulate(indices, axis=1))  # some smoothness
        soft = rng.normal(size=(count, 3))
        for labels in (rng.integers(0, 3, count), soft):
            data = encode(palettes, indices, labels, CLASSES)
            found, places, numbers, classes = decode(data)
            tables, lists, flat, names = read(data)
            assert [table + [(0, 0, 0)] * (colors - len(table)) for table in tables] == [
                [tuple(colour) for colour in table] for table in found.tolist()
            ]
            assert lists == places.reshape(count, -1).tolist()
            assert list(flat) == numbers.flatten().tolist() and names == classes


def test_the_reader_of_the_page_halves_its_counts_as_the_code_does(monkeypatch):
    # Images of one row, all in one context, that grow restless to the right.
    indices = (np.random.default_rng(0).random((500, 1, 140)) < np.linspace(0, 0.5, 140)).astype(np.uint8)
    palettes = np.tile(np.array([[[0, 0, 0], [9, 99, 9]]], dtype=np.uint8), (500, 1, 1))
    data = encode(palettes, indices, np.zeros(500, dtype=int), ["a"])
    assert page_reader()(data)[1] == decode(data)[1].reshape(500, -1).tolist()
    monkeypatch.setattr("palette.entropy.RENEWAL", 1 << 40)
    assert len(encode(palettes, indices, np.zeros(500, dtype=int), ["a"])) != len(data)
