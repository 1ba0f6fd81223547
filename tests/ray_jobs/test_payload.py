"""Payload: the exact size of any part of an index in one container; what a distilled set takes; as many images as bytes hold."""

import json

import numpy as np
import pytest
from PIL import Image

from adq.container import pack
from adq.file_heads import split
from adq.synthetic import encoded
from palette.codec import encode
from palette.export import samples
from palette.quantize import median_cut
from ray_jobs.ingest import Index
from ray_jobs.payload import payload_bytes
from tests.ray_jobs.images import CLASSES, drawn, index_of


def test_every_part_of_a_set_has_its_exact_size(tmp_path):
    """PNGs, JPEGs and what is no image; in shards whose keys are not in order."""
    files = [image if n % 3 else encoded(0, n, ext="jpg") for n, (_, image, _) in enumerate(drawn(0, 20))]
    files[7], files[8] = b"no image", files[10]
    rows = [(f"k{n:02d}", data, n % 3) for n, data in enumerate(files)]
    index = index_of({"b.tar": rows[::2], "a.tar": rows[1::2]}, tmp_path / "data")
    kinds = ["png" if n % 3 else "jpg" for n in range(20)]
    assert len({split(data)[0] for data in files}) == 3

    def packed(rows: list[int], labels: np.ndarray) -> int:
        return len(pack([files[n] for n in rows], [kinds[n] for n in rows], labels[rows], CLASSES))

    hard, soft = np.arange(20) % 3, np.zeros((20, 3), np.float16)
    assert payload_bytes(index) == packed([*range(20)], hard)
    assert payload_bytes(index, soft=True) == packed([*range(20)], soft)
    for part in ([0], [7], [1, 2, 4], [0, 3, 6], [5, 7, 9, 19]):
        assert payload_bytes(index, np.array(part)) == packed(part, hard)
    with pytest.raises(ValueError, match="0 images"):
        payload_bytes(index, np.array([], dtype=np.int64))


@pytest.mark.parametrize("soft", [False, True])
def test_a_distilled_set_has_its_own_container(tmp_path, soft):
    images = np.stack([np.asarray(Image.effect_noise((8, 8), 50 + n).convert("RGB")) for n in range(6)])
    palettes, indices = median_cut(images, 4)
    learned = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float16)
    labels = learned if soft else np.arange(6) % 3
    files = list(samples(palettes, indices, labels, CLASSES))
    rows = [(key, one["png"], int(one["cls"]), *([one["npy"]] if soft else [])) for key, one in files]
    index = index_of({"train-000000.tar": rows}, tmp_path / "out")
    size = len(encode(palettes, indices, labels, CLASSES))
    pngs = payload_bytes(index)
    assert pngs > size

    def told(stage: str, **summary) -> Index:
        (tmp_path / "out" / ".tessera").mkdir(exist_ok=True)
        manifest = {"stage": stage, "summary": {"payload_bytes": size, "images": 6} | summary}
        (tmp_path / "out" / ".tessera" / "manifest.json").write_text(json.dumps(manifest))
        return index

    assert payload_bytes(told("distilled", colors=4)) == len(encode(palettes, indices, np.argmax(learned, 1), CLASSES))
    if soft:
        assert payload_bytes(index, soft=True) == size
    assert payload_bytes(index, np.arange(6)) == pngs, "a part has no container of its own"
    assert payload_bytes(told("distilled", colors=4, images=7)) == pngs, "other shards than those that were written"
    assert payload_bytes(told("distilled")) == pngs, "in full colour"
    assert payload_bytes(told("write", colors=4)) == pngs
