"""Payload: the exact size of any part of an index; indexed images in containers of their own; distilled and filled sets."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from adq import container
from adq.container import pack
from adq.file_heads import split
from adq.images import UndecodableImage, decode
from adq.shards import tar_bytes as shard_bytes
from adq.synthetic import encoded
from palette.codec import encode
from palette.export import png_bytes, samples
from palette.quantize import median_cut
from ray_jobs.containers import LARGEST_SIDE, cut
from ray_jobs.ingest import Index
from ray_jobs.payload import compact_bytes, payload_bytes, tar_bytes
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


def test_a_set_that_one_container_cannot_hold_has_several(tmp_path, monkeypatch):
    files = [image for _, image, _ in drawn(0, 20)]
    index = index_of({"a.tar": [(f"k{n:02d}", data, n % 3) for n, data in enumerate(files)]}, tmp_path / "data")
    whole = payload_bytes(index)
    monkeypatch.setattr(container, "LARGEST", sum(map(len, files[:8])) + 8 * container.OVERHEAD)
    with pytest.raises(ValueError, match="more than one container holds"):
        pack(files, ["png"] * 20, np.arange(20) % 3, CLASSES)
    parts = cut(index, np.random.default_rng(0).permutation(20))
    assert len(parts) > 2 and parts[0].rows.tolist() == list(range(8))
    assert np.concatenate([part.rows for part in parts]).tolist() == list(range(20))
    for part in parts:
        some = [files[row] for row in part.rows]
        assert part.bytes == len(pack(some, ["png"] * len(some), part.rows % 3, CLASSES))
    assert payload_bytes(index) == sum(part.bytes for part in parts) > whole


def test_an_image_larger_than_a_container_has_one_of_its_own():
    assert container.containers(np.array([1, container.LARGEST, 1, 1])) == [slice(0, 1), slice(1, 2), slice(2, 4)]


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
    hard = len(encode(palettes, indices, np.argmax(learned, 1) if soft else labels, CLASSES))
    assert compact_bytes(index, np.arange(6)) > hard == payload_bytes(index) == payload_bytes(index, np.arange(6)[::-1])

    def told(stage: str, **summary) -> Index:
        (tmp_path / "out" / ".tessera").mkdir(exist_ok=True)
        manifest = {"stage": stage, "summary": {"payload_bytes": size + 1000, "images": 6} | summary}
        (tmp_path / "out" / ".tessera" / "manifest.json").write_text(json.dumps(manifest))
        return index

    assert payload_bytes(told("distilled", colors=4)) == hard + 1000, (
        "what it says, as a set may be in several containers"
    )
    if soft:
        assert payload_bytes(index, soft=True) == size + 1000
    assert payload_bytes(index, np.arange(6)) == hard, "a part has a container of its own"
    assert payload_bytes(told("distilled", colors=4, images=7)) == hard, "other shards than those that were written"
    assert payload_bytes(told("distilled")) == hard, "in full colour, where the manifest counts files"
    assert payload_bytes(told("write", colors=4)) == hard


def test_a_filled_set_costs_its_patches(tmp_path):
    index = index_of({"train-000000.tar": drawn(0, 6)}, tmp_path / "out")
    pngs = payload_bytes(index)
    (tmp_path / "out" / ".tessera").mkdir()
    manifest = {"stage": "fill", "summary": {"payload_bytes": 123, "images": 6}}
    (tmp_path / "out" / ".tessera" / "manifest.json").write_text(json.dumps(manifest))
    assert payload_bytes(index) == 123 and payload_bytes(index, soft=True) == 123 + 6 * (2 * 3 - 1)
    assert payload_bytes(index, np.arange(6)) == pngs, "of a part, the manifest says nothing"


def test_indexed_images_of_several_sizes_have_a_container_each(tmp_path):
    """Beside JPEGs, images in full colour, and indexed ones that no container of few colours can hold as they are."""
    rows, sets = [], {}
    for side in (8, 12):
        images = np.stack([np.asarray(Image.effect_noise((side, 8), 50 + n).convert("RGB")) for n in range(5)])
        palettes, indices = median_cut(images, 4)
        sets[side] = palettes, indices
        rows += [
            (f"s{side:02d}-{n}", png_bytes(*one), n % 3) for n, one in enumerate(zip(palettes, indices, strict=True))
        ]
    transparent, tall = Image.open(io.BytesIO(rows[0][1])), Image.new("P", (1, LARGEST_SIDE + 1))
    tall.putpalette([1, 2, 3])
    for name, image, settings in (("transparent", transparent, {"transparency": 0}), ("tall", tall, {})):
        image.save(buffer := io.BytesIO(), "PNG", **settings)
        rows.append((f"x-{name}", buffer.getvalue(), 0))
    rows += [("y-jpeg", encoded(0, 1, ext="jpg"), 1), ("z-full", encoded(0, 2, ext="png"), 2)]
    index = index_of({"a.tar": rows[::2], "b.tar": rows[1::2]}, tmp_path / "data")
    coded = sum(len(encode(*one, np.arange(5) % 3, CLASSES)) for one in sets.values())
    rest = [data for _, data, _ in rows[10:]]
    assert payload_bytes(index) == coded + len(pack(rest, ["png", "png", "jpg", "png"], np.zeros(4, int), CLASSES))
    assert payload_bytes(index, np.arange(5)) == len(encode(*sets[8], np.arange(5) % 3, CLASSES))
    assert payload_bytes(index, np.arange(5), soft=True) == len(encode(*sets[8], np.zeros((5, 3), np.float16), CLASSES))


def test_indexed_images_that_a_container_would_not_make_smaller_or_cannot_hold_stay_files(tmp_path):
    flat = png_bytes(np.zeros((1, 3), np.uint8), np.zeros((2, 2), np.uint8))
    many = tuple(f"a class with a long name, number {n}" for n in range(50))
    one = index_of({"a.tar": [("a", flat, 0), ("b", encoded(0, 2, ext="jpg"), 1)]}, tmp_path / "one", many)
    assert payload_bytes(one) == compact_bytes(one, np.arange(2)), "class names a second time are more than the image"
    noise = np.random.default_rng(0).integers(0, 4, (32, 32)).astype(np.uint8)
    damaged = png_bytes(np.arange(12, dtype=np.uint8).reshape(4, 3), noise)
    damaged = damaged[:90] + bytes(40) + damaged[130:]
    with pytest.raises(UndecodableImage):
        decode(damaged)
    two = index_of({"a.tar": [("a", damaged, 0)]}, tmp_path / "two")
    assert payload_bytes(two) == compact_bytes(two, np.arange(1))


@pytest.mark.parametrize("count", [1, 7, 20])
def test_the_size_as_a_tar_is_that_of_the_tar(tmp_path, count):
    rows = [(*one, b"soft" * n) for n, one in enumerate(drawn(0, 20))]
    index = index_of({"b.tar": rows[::2], "a.tar": rows[1::2]}, tmp_path / "data")
    members = [
        (f"{key}.{extension}", data)
        for key, image, label, soft in rows[:count]
        for extension, data in (("png", image), ("cls", str(label).encode()), ("npy", soft))
    ]
    assert tar_bytes(index, np.arange(count)) == len(shard_bytes(members))
    assert count < 20 or tar_bytes(index) == len(shard_bytes(members))
