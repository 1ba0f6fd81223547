"""What encodings are said to take, of a few images, beside what all of them take."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from palette.encodings import Encoded, Encoding, encode
from ray_jobs import encoding_cost
from ray_jobs.accuracy import as_bytes
from ray_jobs.cluster import Cluster
from ray_jobs.encode import Storage
from ray_jobs.encoding_cost import Sampled, sampled
from ray_jobs.ingest import Index
from ray_jobs.options import Compute
from ray_jobs.payload import payload_bytes
from tests.ray_jobs.conftest import CLASSES, real_samples
from tests.ray_jobs.images import drawn, index_of

IMAGES = 1000


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    samples = real_samples(IMAGES)
    halves = {"a.tar": samples[: IMAGES // 2], "b.tar": samples[IMAGES // 2 :]}
    return index_of(halves, tmp_path_factory.mktemp("encoding-cost") / "data", CLASSES)


def stored(chain: str, folder: Path) -> int:
    """What all of the images take, encoded."""
    samples = real_samples(IMAGES)
    made = encode([("jpg", data) for _, data, _ in samples], Encoding.parse(chain))
    rows = [(key, one.data, label) for (key, _, label), one in zip(samples, made, strict=True)]
    return payload_bytes(index_of({"a.tar": rows}, folder, CLASSES))


@pytest.mark.parametrize("chain", ["webp:20", "jpeg:10", "palette:8", "resize:16+webp:50"])
def test_a_few_images_tell_what_all_take(index, tmp_path, monkeypatch, chain):
    monkeypatch.setattr(encoding_cost, "SECONDS", 1e9)
    found, whole = sampled(index, Storage(chain)), stored(chain, tmp_path / "made")
    assert found.seconds > 0 and found.payload(IMAGES) == pytest.approx(whole, rel=0.06)
    assert found.fitting(whole // 4, IMAGES) == pytest.approx(IMAGES / 4, rel=0.1)
    assert found.fitting(2 * whole, IMAGES) == IMAGES and found.fitting(10, IMAGES) == 0


def test_files_as_they_are_take_what_they_take_and_no_time(index):
    assert sampled(index, Storage()) == Sampled(0.0, payload_bytes(index) / IMAGES)
    assert sampled(index, Storage(), skip_corrupt=True).seconds > 0, "all are decoded to find those that cannot be"


def test_patches_that_a_network_would_rank_are_dropped_by_chance(index):
    by_chance, by_network = (sampled(index, Storage("patches:25", name)) for name in ("random", "grad-cam"))
    assert by_chance.own == pytest.approx(by_network.own, rel=0.1)
    assert by_network.own < sampled(index, Storage()).own


def test_a_head_that_one_image_has_is_its_own_and_one_that_two_have_is_shared():
    heads = [b"\xff\xd8" + bytes([0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, kind]) for kind in (0, 0, 1, 2)]
    made = [Encoded("jpg", head + b"\x01" * 10 + b"\xff\xd9") for head in heads]
    found = encoding_cost._measured(made, ("one", "two"), 0.5)
    shared = len(heads[0]) + 2  # with the marker at the end
    assert found.shared == shared + 2 * (2 + 3)
    assert found.own == (4 * (10 + 1 + 1) + 2 * shared) / 4 and found.seconds == 0.5


def test_images_that_cannot_be_decoded_are_left_out_and_none_that_can_is_an_error(tmp_path):
    rows = drawn(0, 12)
    some = [(key, data if n % 2 else data[:80], label) for n, (key, data, label) in enumerate(rows)]
    assert sampled(index_of({"a.tar": some}, tmp_path / "some"), Storage("webp:50")).own > 20
    none = index_of({"a.tar": [(key, data[:80], label) for key, data, label in rows]}, tmp_path / "none")
    with pytest.raises(ValueError, match="of 12 images drawn at random none can be decoded"):
        sampled(none, Storage("webp:50"))


def test_what_budgets_hold_is_told(index):
    job = SimpleNamespace(compute=Compute(), cluster=Cluster(4, 0, 1, ((4, 0),), local=True))
    original, webp = Storage(), Storage("webp:20")
    found = {original: sampled(index, original), webp: Sampled(0.5, 100.0, 50)}
    said = encoding_cost.told(job, index, found, IMAGES, [40, 10_000, 10**9]).splitlines()
    assert said[0].startswith(
        f"payload       original: {as_bytes(payload_bytes(index))}; 40 B hold none, 10 kB hold about "
    )
    # 500 s on as many actors as there are shards: two.
    assert said[1] == (
        "              webp:20: about 0.10 MB, stored in about 4 min 10 s; 40 B hold none, 10 kB hold about 99, 1 GB hold all"
    )
    few = encoding_cost.told(job, index, found, 10)
    assert few.splitlines()[0] == f"payload       original: about {as_bytes(round(10 * found[original].own))}"
