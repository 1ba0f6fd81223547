"""Copies of a data set in other encodings, without Ray: what a part of one costs, and whose rows are whose."""

import io

import numpy as np
from PIL import Image

from palette.encodings import Encoding, encode
from ray_jobs.copies import Copies
from ray_jobs.encode import Storage
from ray_jobs.evaluate import Evaluation
from ray_jobs.grid import Comparison, Grid, Selected, Variant
from ray_jobs.ingest import Index
from ray_jobs.job import Job
from ray_jobs.options import Backbone, Compute, Data, Selection
from ray_jobs.payload import compact_bytes, payload_bytes
from ray_jobs.store import Store
from tests.ray_jobs.images import drawn, index_of

STORAGE = Storage("palette:8")


def palettised(rows: list[tuple]) -> list[tuple]:
    made = encode([("png", data) for _, data, _ in rows], Encoding.parse(STORAGE.encode))
    return [(key, one.data, label) for (key, _, label), one in zip(rows, made, strict=True)]


def copies_of(index: Index, copy: Index) -> Copies:
    copies = Copies(None, index, Backbone())
    copies._made[f"{STORAGE.encoding()} {STORAGE.saliency}"] = copy
    return copies


def test_a_part_of_a_palettised_copy_costs_what_its_own_shards_are_said_to(tmp_path):
    rows = drawn(0, 30)
    index, copy = index_of({"a.tar": rows}, tmp_path / "a"), index_of({"a.tar": palettised(rows)}, tmp_path / "b")
    copies = copies_of(index, copy)
    some = np.array([3, 4, 10, 20, 29])
    alone = index_of({"x.tar": palettised([rows[n] for n in some[::-1]])}, tmp_path / "c")
    assert copies.payload(STORAGE, some) == payload_bytes(alone) < compact_bytes(alone, np.arange(5))
    assert abs(copies.guess(STORAGE, some) / payload_bytes(alone) - 1) < 0.1


def test_rows_of_a_copy_that_leaves_images_out_are_found_by_their_keys(tmp_path):
    rows = drawn(0, 12)
    kept = [row for n, row in enumerate(rows) if n not in (2, 7)]
    index, copy = index_of({"a.tar": rows}, tmp_path / "a"), index_of({"a.tar": palettised(kept)}, tmp_path / "b")
    copies = copies_of(index, copy)
    found = copies.rows(STORAGE, np.array([1, 2, 3, 7, 11]))
    assert copy.table()["key"].take(found).to_pylist() == ["image0001", "image0003", "image0011"]
    assert copies.payload(STORAGE, np.array([1, 2, 3])) == payload_bytes(copy, np.array([1, 2]))
    assert copies_of(index, index).rows(STORAGE, np.array([5, 6])).tolist() == [5, 6]


def test_a_copy_of_several_sizes_has_a_payload(tmp_path):
    rows = drawn(0, 12)
    cut = []
    for n, (key, data, label) in enumerate(rows):
        Image.open(io.BytesIO(data)).crop((0, 0, 20 + n % 3, 20)).save(buffer := io.BytesIO(), "PNG")
        cut.append((key, buffer.getvalue(), label))
    copy = index_of({"a.tar": palettised(cut)}, tmp_path / "b")
    copies = copies_of(index_of({"a.tar": rows}, tmp_path / "a"), copy)
    assert (
        copies.payload(STORAGE, np.arange(12))
        == copies.guess(STORAGE, np.arange(12))
        < compact_bytes(copy, np.arange(12))
    )


def test_a_budget_is_filled_from_a_source_of_indexed_images_too(tmp_path):
    index = index_of({"a.tar": palettised(drawn(0, 120))}, tmp_path / "a")
    job = Job(Store(str(tmp_path / "runs")), None, Compute(), "cpu", None, None)
    grid = Grid(Comparison(), Evaluation(seeds=1), Data(), Selection(), Backbone(), (), "")
    copies, selected = Copies(job, index, Backbone()), Selected(job, index, grid)
    random, budget = Variant.of("random", Selection()), payload_bytes(index, np.arange(120)) // 2
    rows, payload, _ = copies.fitting(selected, random, Storage(), budget, 0)
    assert payload == payload_bytes(index, rows.positions)
    assert 0.95 * budget < payload <= budget < 0.8 * compact_bytes(index, rows.positions)
    # Few images take less than their files, too.
    rows, payload, _ = copies.fitting(selected, random, Storage(), compact_bytes(index, np.arange(3)) - 1, 0)
    assert rows.images >= 3
