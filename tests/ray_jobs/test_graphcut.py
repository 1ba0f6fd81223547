"""GraphCut over actors: the picks of one machine, whatever the number of actors, and though one of them is killed."""

import functools
import os
import signal

import numpy as np
import pyarrow as pa
import pytest
import ray

from adq.graphcut import graphcut_bins
from ray_jobs import graphcut
from ray_jobs.class_means import class_means, nearest
from ray_jobs.graphcut import Piece
from ray_jobs.stages import Stage
from ray_jobs.store import Store, parquet_table
from tests.adq.test_graphcut_exact import relu_features

COUNT, PARTS = 900, 4


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> tuple[np.ndarray, np.ndarray, list[Piece], list[str]]:
    """Features of 900 rows in four parts, as extract leaves them; two images could not be decoded."""
    rows = relu_features(COUNT, 12) + np.float32(0.01)
    rows[700:] = rows[:200]  # copies, in other parts
    keys = [f"{i:04d}" for i in np.random.default_rng(1).permutation(COUNT)]
    labels = np.arange(COUNT) % 6
    stage = Stage(Store.at(str(tmp_path_factory.mktemp("store"))), "extract", 1)
    broken = {5, 400}
    good = [i for i in range(COUNT) if i not in broken]
    order = sorted(good, key=lambda i: keys[i])
    place = {i: n for n, i in enumerate(order)}
    pieces = []
    for mine in np.array_split(np.arange(COUNT), PARTS):
        table = pa.table({
            "embedding": pa.array([None if i in broken else rows[i].tolist() for i in mine], pa.large_list(pa.float32())),
            "error": pa.array(["broken" if i in broken else None for i in mine], pa.string()),
        })  # fmt: skip
        part = stage.commit_table(f"part-{mine[0]}", table)
        pieces.append(Piece(stage, part, np.array([place.get(i, -1) for i in mine]), labels[mine].astype(np.int64)))
    return rows[order], labels[order], pieces, [keys[i] for i in order]


def cut(
    features, actors: int, scope: str, kernel: str = "cosine", centre: bool = False, save=lambda picks: None, cpus=0.5
) -> graphcut.Cut:
    rows, _, pieces, keys = features
    return graphcut.cut(
        pieces, len(rows), 5, scope, kernel, centre, 6, actors, {"num_cpus": cpus}, 1, "cpu", lambda n: None, save, None,
        lambda row: keys[row],
    )  # fmt: skip


def with_undecodable(piece: Piece, count: int) -> Piece:
    """The part with so many images more that could not be decoded."""
    table = parquet_table(piece.stage.read(piece.part))
    more = pa.table({"embedding": pa.nulls(count, table["embedding"].type), "error": pa.array(["broken"] * count)})
    part = piece.stage.commit_table(f"{piece.part.name}-and-{count}", pa.concat_tables([table, more]))
    none = np.full(count, -1)
    return Piece(piece.stage, part, np.append(piece.indices, none), np.append(piece.labels, none))


@pytest.mark.parametrize(
    "scope, actors, kernel", [("global", 1, "cosine"), ("global", 3, "l2"), ("class", 2, "cosine")]
)
def test_actors_pick_what_one_machine_picks(cluster, features, scope, actors, kernel, monkeypatch):
    monkeypatch.setattr(graphcut, "SHARE_BYTES", 1)  # an exchange of each part by itself
    rows, labels = features[:2]
    got = cut(features, actors, scope, kernel)
    want = graphcut_bins(rows, labels, 5, scope, kernel)
    np.testing.assert_array_equal((got.bins, got.ranks), want)
    means = class_means(rows, labels, unit=True)
    np.testing.assert_array_equal(got.right, nearest(rows, labels, want[0], means, 5))


def test_class_means_can_be_subtracted_where_the_rows_are(cluster, features):
    rows, labels = features[:2]
    got = cut(features, 3, "global", centre=True)
    want = graphcut_bins(rows - class_means(rows, labels)[labels], None, 5, "global")
    np.testing.assert_array_equal((got.bins, got.ranks), want)


def test_an_actor_that_is_killed_is_replaced_and_the_picks_go_on(cluster, features, monkeypatch):
    pids: list[int] = []
    begin = graphcut.RemoteBlocks._begin

    def counted(self) -> None:
        begin(self)
        pids.append(ray.get(self.actors[0].process.remote()))

    monkeypatch.setattr(graphcut.RemoteBlocks, "_begin", counted)
    monkeypatch.setattr(graphcut, "blocks_bins", functools.partial(graphcut.blocks_bins, candidates=16))  # many passes

    def save(picks: np.ndarray) -> None:
        if len(picks) > 150 and len(pids) == 1:
            os.kill(pids[0], signal.SIGKILL)

    rows, labels, pieces, keys = features
    large = [with_undecodable(pieces[0], 10_000), *pieces[1:]]  # its places alone are more than Ray keeps with a call
    got = cut((rows, labels, large, keys), 2, "global", save=save)
    assert len(pids) == 2 and pids[0] != pids[1]
    np.testing.assert_array_equal((got.bins, got.ranks), graphcut_bins(features[0], None, 5, "global"))


def test_actors_that_there_is_no_room_for_are_done_without(cluster, features, monkeypatch, capsys):
    monkeypatch.setattr(graphcut, "PLACED", 2.0)
    got = cut(features, 2, "class", cpus=2)
    assert "room for 1 of 2 actors" in capsys.readouterr().out
    np.testing.assert_array_equal((got.bins, got.ranks), graphcut_bins(features[0], features[1], 5, "class"))


@pytest.mark.parametrize("scope", ["global", "class"])
def test_a_part_without_any_image_that_could_be_decoded(cluster, features, scope):
    """A whole shard may be broken; nothing says then how wide its embeddings would have been."""
    rows, labels, pieces, keys = features
    empty = pa.table({"embedding": pa.nulls(3, pa.large_list(pa.float32())), "error": pa.array(["broken"] * 3)})
    stage = pieces[0].stage
    broken = Piece(stage, stage.commit_table("broken", empty), np.full(3, -1), np.zeros(3, np.int64))
    got = cut((rows, labels, [broken, *pieces], keys), 5, scope)
    np.testing.assert_array_equal((got.bins, got.ranks), graphcut_bins(rows, labels, 5, scope))


def test_bundles_hold_every_part_once_and_are_large_enough(features):
    pieces = features[2]
    sizes = [piece.part.bytes for piece in pieces]
    assert [*graphcut._bundles(pieces, 1)] == [[piece] for piece in pieces]
    assert [*graphcut._bundles(pieces, sum(sizes) + 1)] == [pieces]
    assert [*graphcut._bundles(pieces, sizes[0] + 1)] == [pieces[:2], pieces[2:]]
    assert [*graphcut._bundles([], 1)] == []


class Holder:
    """Takes every CPU."""

    def there(self) -> bool:
        return True


def test_classes_are_exchanged_though_actors_hold_every_cpu(cluster, features):
    cpus = ray.cluster_resources()["CPU"]
    holder = ray.remote(Holder).options(num_cpus=cpus).remote()
    assert ray.get(holder.there.remote())
    try:
        got = cut(features, 2, "class", cpus=0)
    finally:
        ray.kill(holder)
    np.testing.assert_array_equal((got.bins, got.ranks), graphcut_bins(features[0], features[1], 5, "class"))


@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (0.0, "zeros")])
def test_a_bad_row_is_named_by_its_key(cluster, features, value, word):
    rows, labels, pieces, keys = features
    bad = np.flatnonzero(pieces[2].indices >= 0)[7]
    table = pieces[2].stage.read(pieces[2].part)
    embeddings = parquet_table(table)["embedding"].to_pylist()
    embeddings[bad] = [value] * len(embeddings[bad])
    broken = pa.table({
        "embedding": pa.array(embeddings, pa.large_list(pa.float32())), "error": parquet_table(table)["error"],
    })  # fmt: skip
    part = pieces[2].stage.commit_table("broken", broken)
    changed = [*pieces[:2], pieces[2]._replace(part=part), pieces[3]]
    with pytest.raises(ValueError, match=rf"key '{keys[pieces[2].indices[bad]]}'.*{word}"):
        cut((rows, labels, changed, keys), 2, "global")
