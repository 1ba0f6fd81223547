"""What methods look at, and what that costs, without running a stage."""

import pytest

from ray_jobs import sample
from ray_jobs.options import Backbone
from ray_jobs.sample import Seen
from ray_jobs.seen import extracts
from tests.ray_jobs.images import drawn, index_of


@pytest.mark.parametrize(
    ("method", "embeddings", "skip_corrupt", "expected"),
    [
        ("random", None, False, False),
        ("random", None, True, True),
        ("el2n", None, False, False),
        ("dq", None, False, True),
        ("dq", "own.npy", False, False),
        ("dq", "own.npy", True, True),
        ("adq", "own.npy", False, True),
    ],
)
def test_features_are_extracted_where_a_method_or_the_images_ask_for_them(method, embeddings, skip_corrupt, expected):
    assert extracts(method, Backbone(embeddings=embeddings), skip_corrupt) == expected


def test_nothing_chooses_an_image_that_could_not_be_decoded(tmp_path):
    index = index_of({"a.tar": drawn(0, 9)}, tmp_path / "data")
    broken = ("image0002", "image0007")
    table, pool = sample._pool(index, Seen(undecoded=broken), "random")
    assert pool.keys == table["key"].to_pylist() == [f"image{i:04d}" for i in range(9) if i not in (2, 7)]
    assert pool.labels.tolist() == [0, 1, 0, 1, 2, 0, 2]
    known = [Seen(undecoded=keys).contents("random") for keys in ((), broken, broken[:1])]
    assert known[0] == {} and known[1] != known[2], "another choice has another address"
