"""What `write` shows of a subset, without Ray."""

from pathlib import Path

import pyarrow as pa

from adq.shards import locate
from ray_jobs import write
from ray_jobs.store import Store
from tests.ray_jobs.images import drawn, index_of


def test_images_that_cannot_be_decoded_are_left_out_of_the_figure(tmp_path):
    """`random` decodes nothing and may choose one: the shards are written then, and a figure is no reason to fail."""
    rows = drawn(0, 9)
    rows[4] = (rows[4][0], rows[4][1][:60], rows[4][2])
    index = index_of({"a.tar": rows}, tmp_path / "a")
    subset = index.table().append_column("bin", pa.array([0] * 9))
    assert [len(images) for images in write._grid(index, subset, 0).values()] == [8]


def test_shards_in_several_folders_are_told_as_they_can_be_given(tmp_path):
    stage = write.Output(Store.at(str(tmp_path / "out")), "encode", 1)
    for names, folders in ((("one", "two"), 1), (("b/one", "a/one", "b/two"), 2), (("b/one", "one"), 2)):
        parts = [stage.commit(name, b"", 0, "tar") for name in names]
        line = write.told(stage.finish([*parts, stage.commit("classes", b"", 0, "txt")], {}))
        told = line.removeprefix("shards   ").split()
        assert len(told) == folders and set(names) <= {
            name.removesuffix(".tar") for place in told for name in _below(tmp_path / "out", place)
        }


def _below(root: Path, place: str) -> list[str]:
    found = locate([place])
    return [str(Path(found.root, name).relative_to(root)) for name in found.shards]
