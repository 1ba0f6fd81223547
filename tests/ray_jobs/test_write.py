"""What `write` shows of a subset, without Ray."""

import pyarrow as pa

from ray_jobs import write
from tests.ray_jobs.images import drawn, index_of


def test_images_that_cannot_be_decoded_are_left_out_of_the_figure(tmp_path):
    """`random` decodes nothing and may choose one: the shards are written then, and a figure is no reason to fail."""
    rows = drawn(0, 9)
    rows[4] = (rows[4][0], rows[4][1][:60], rows[4][2])
    index = index_of({"a.tar": rows}, tmp_path / "a")
    subset = index.table().append_column("bin", pa.array([0] * 9))
    assert [len(images) for images in write._grid(index, subset, 0).values()] == [8]
