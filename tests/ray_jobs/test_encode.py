"""What `encode` does with a shard, without Ray."""

import gc
import io

import numpy as np
import pytest
import torch
from PIL import Image

from adq.extractor import input_transform
from adq.models import build
from adq.patches import grid
from adq.saliency import random_saliency
from palette.encodings import Encoding
from ray_jobs.encoder import How
from ray_jobs.saliency import Plan as Ranking
from ray_jobs.saliency import SaliencyActor
from tests.ray_jobs.images import index_of

SIZES = [(200, 190), (24, 40), (210, 190), (16_400, 8), (190, 230)]
KEYS = [str(number) for number in range(len(SIZES))]


def jpeg(width: int, height: int, **settings) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(buffer, "JPEG", **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("resize", [0, 100])
def test_patches_ranked_by_chance_need_no_pixels(resize):
    turned = Image.Exif()
    turned[0x112] = 6
    files = [("jpg", jpeg(*size, exif=turned)) for size in SIZES]
    chain = f"resize:{resize}+patches:25+webp:50" if resize else "patches:25"
    heads = [(extension, data[: data.index(b"\xff\xda")]) for extension, data in files]
    found = How(Encoding.parse(chain))._saliency(KEYS, heads, {})
    assert [scores.size > 0 for scores in found] == [True, True, True, False, True]
    for key, scores, (width, height) in zip(KEYS, found, SIZES, strict=True):
        if scores.size:
            scale = min(1, resize / min(width, height)) if resize else 1
            cut = grid(round(width * scale), round(height * scale))
            assert np.array_equal(scores, random_saliency(key, cut.rows, cut.columns, 0))
    assert {one.extension for one in How(Encoding.parse(chain)).encoded(KEYS, files, {})} <= {"patches", "jpg", "webp"}


def test_images_whose_patches_their_neighbours_tell_are_held_one_by_one(one_thread):
    alive: list[int] = []

    class Counted(list):
        def __iter__(self):
            return (self[at] for at in range(len(self)))

        def __getitem__(self, at):
            alive.append(sum(issubclass(type(one), Image.Image) for one in gc.get_objects()))
            return super().__getitem__(at)

    files = Counted(("jpg", jpeg(*size)) for size in SIZES)
    gc.collect()
    found = How(Encoding.parse("patches:25"), "fill-error")._saliency(KEYS, files, {})
    assert [scores.size > 0 for scores in found] == [True, True, True, False, True]
    assert max(alive) - alive[0] <= 2, "of which one is made while the one before is let go"


def test_a_network_that_ranks_patches_sees_small_inputs_of_large_images(tmp_path, one_thread):
    samples = [(key, jpeg(*size), 0) for key, size in zip(KEYS, SIZES, strict=True)]
    index = index_of({"a.tar": samples}, tmp_path / "data")
    transform = input_transform("convnet-d3-w8", 32)
    deterministic = torch.are_deterministic_algorithms_enabled()
    actor = SaliencyActor(Ranking(None, index.data, "convnet-d3-w8", transform, 0, "cpu", 4, 1, 1))
    torch.use_deterministic_algorithms(deterministic)
    assert actor._load(samples[3][1]) is None
    seen, size = actor._load(samples[2][1])
    assert seen.shape == (3, 32, 32) and size == (190, 210)
    actor.model = build("convnet-d3-w8", 3, 32).eval()
    rows = [
        (row["key"], 0, member["offset"], member["size"])
        for row in index.table().to_pylist()
        for member in [index.image_member(row["members"])]
    ]
    found = dict(pair for batch in actor._loaded("a.tar", rows) for pair in actor._ranked(*batch))
    for key, (width, height) in zip(KEYS, SIZES, strict=True):
        cut = grid(height, width) if max(width, height) < 16_384 else None
        assert found[key].shape == ((cut.rows, cut.columns) if cut else (0, 0))
