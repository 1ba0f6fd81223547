"""bins: exact greedy GraphCut over the embeddings, in the driver or, where they are large, in actors."""

import io
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adq.graphcut import graphcut_bins
from adq.selection import needs
from adq.shards import absolute, buffered, open_file
from ray_jobs import graphcut
from ray_jobs.actors import free_now, pool_size, resources
from ray_jobs.class_means import class_means, nearest
from ray_jobs.graphcut import Cut, Piece
from ray_jobs.ingest import Index
from ray_jobs.options import Selection
from ray_jobs.progress import Progress
from ray_jobs.stages import Manifest, Part, Stage
from ray_jobs.store import canonical_json, parquet_table, sha256

if TYPE_CHECKING:  # what only the driver needs is not loaded by the actors
    from ray_jobs.job import Job

VERSION = 2
IN_THE_DRIVER = 2e9  # bytes of embeddings that the driver takes
SECONDS = 60.0  # between two checkpoints
KERNELS = {"l2": "cosine", "none": "l2"}


def matrix(table: pa.Table, column: str) -> np.ndarray:
    """A list column without nulls, its lists of one length, as an array [N, d]."""
    array = table[column].combine_chunks()
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)


def sorted_features(extract: Manifest, columns: list[str]) -> pa.Table:
    """Features of every image that could be decoded, sorted by key."""
    table = extract.tables([*dict.fromkeys(["key", "label", *columns, "error"])])
    table = table.filter(pc.is_null(table["error"])).drop_columns("error").combine_chunks()
    return table.take(pc.sort_indices(table["key"])).combine_chunks()


def own_embeddings(
    path: str, index: Index, undecoded: Sequence[str] = ()
) -> tuple[np.ndarray, list[str], np.ndarray, str]:  # fmt: skip
    """Embeddings that the user brings: .npy in key order, or Parquet with the columns key and embedding.

    Args:
        undecoded: keys of images that nothing may choose, whose embeddings are left out.

    Returns:
        float32 [N, d], the keys, the labels, and the file's sha256.

    Raises:
        ValueError: other rows than the data set has, or a missing column.
    """
    with open_file(absolute(path)) as stream:
        data = stream.read()
    table = index.table()
    keys, labels = table["key"].to_pylist(), table["label"].to_numpy()
    if PurePosixPath(path).suffix == ".npy":
        with open_file(absolute(path)) as stream:
            rows = np.load(buffered(stream), allow_pickle=False)
        if rows.ndim != 2 or len(rows) != len(keys):
            raise ValueError(
                f"--embeddings {path}: shape {rows.shape}; expected [{len(keys)}, d], one row a key in the order of the keys"
            )
        return _without(undecoded, rows.astype(np.float32), keys, labels, sha256(data))
    own = parquet_table(data)
    if not {"key", "embedding"} <= set(own.column_names):
        raise ValueError(f"--embeddings {path}: columns {own.column_names}; expected key and embedding")
    place = pc.index_in(table["key"].combine_chunks(), value_set=own["key"].cast(table["key"].type).combine_chunks())
    if place.null_count:
        missing = table["key"].filter(pc.is_null(place))
        raise ValueError(
            f"--embeddings {path}: no row for {len(missing):,} keys of the data, e.g. {missing[0].as_py()!r}"
        )
    found = own.take(place)
    lengths = pc.unique(pc.list_value_length(found["embedding"])).to_pylist()
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"--embeddings {path}: embeddings of {len(lengths)} lengths, {lengths[:5]}; expected one")
    rows = matrix(found, "embedding").astype(np.float32)
    return _without(undecoded, rows, keys, labels, sha256(data))


def _without(undecoded: Sequence[str], rows: np.ndarray, keys: list[str], labels: np.ndarray, digest: str) -> tuple:
    if undecoded:
        good = np.flatnonzero(~np.isin(np.array(keys), np.array(undecoded)))
        rows, keys, labels = rows[good], [keys[row] for row in good], labels[good]
    return rows, keys, labels, digest


def embeddings_by_key(extract: Manifest | None, own: tuple | None) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Embeddings float32 [N, d] of every image that could be decoded, its key and its label, in the order of the keys.

    Args:
        own: of `own_embeddings`, in place of the extracted ones.
    """
    if own is None:
        table = sorted_features(extract, ["embedding"])
        return matrix(table, "embedding"), table["key"].to_pylist(), table["label"].to_numpy()
    rows, keys, labels, _ = own
    if extract is not None:
        decoded = set(sorted_features(extract, [])["key"].to_pylist())
        good = np.array([key in decoded for key in keys])
        rows, keys, labels = rows[good], [k for k, g in zip(keys, good, strict=True) if g], labels[good]
    return rows, keys, labels


def check(index: Index, selection: Selection) -> None:
    """Raises ValueError where there are more bins than images; where bins are scored and cut in classes, than any class has."""
    most, where = index.images, ""
    if selection.scope == "class" and "scores" in needs(selection.method):
        most, where = max(index.manifest.summary["class_counts"]), " of the largest class"
    if most < selection.bins:
        raise ValueError(f"{most} images{where} cannot fill {selection.bins} bins; lower --bins")


def run(
    job: "Job",
    index: Index,
    extract: Manifest | None,
    selection: Selection,
    embeddings: str | None,
    undecoded: Sequence[str] = (),
) -> Manifest:
    """Cut the data set into bins, or find it done.

    Args:
        extract: the features; None where the user's own embeddings serve alone.
        embeddings: the user's own, in place of the extracted ones.
        undecoded: keys of images that nothing may choose; features have none of them.
    """
    own = own_embeddings(embeddings, index, undecoded) if embeddings else None
    check(index, selection)
    inputs = {"embeddings": own[3]} if own else {}
    if extract is not None:
        inputs["extract"] = extract.content
    else:
        inputs["index"] = index.manifest.content
        inputs |= {"undecoded": sha256(canonical_json(sorted(undecoded)))} if undecoded else {}
    stage = Stage(
        job.store, "bins", VERSION, inputs,
        {"bins": selection.bins, "scope": selection.scope, "normalize": selection.normalize, "centre": selection.centre},
    )  # fmt: skip

    def work(stage: Stage) -> tuple[list[Part], dict]:
        checkpoint = _Checkpoint(stage)
        progress = Progress("bins", index.images)
        held_by = 0 if own else actors(job, extract)
        if held_by:
            keys, labels, cut = _by_actors(job, extract, index, selection, held_by, progress, checkpoint)
        else:
            keys, labels, cut = _in_the_driver(extract, own, selection, progress, checkpoint)
        columns = [
            pa.array(keys, pa.string()),
            pa.array(labels, pa.int32()),
            pa.array(cut.bins, pa.int32()),
            pa.array(cut.ranks, pa.int64()),
        ]
        part = stage.commit_table("bins", pa.table(columns, names=["key", "label", "bin", "rank"]))
        checkpoint.remove()
        return [part], {"images": len(keys)} | _describe(labels, cut, len(index.classes), selection.bins)

    def log(run, manifest: Manifest) -> None:
        from ray_jobs import figures

        run.metric_series(
            [(n, {"bin_nearest_mean_accuracy": a}) for n, a in enumerate(manifest.summary["nearest_mean_accuracy"])]
        )
        counts = np.array(manifest.summary["counts"])
        run.figure(figures.class_counts(counts, classes=index.classes), "figures/class_counts.png")

    return job.stage(stage, work, log=log)


class _Checkpoint:
    """Picks of scope "global" so far, so that a crash after an hour costs a minute."""

    def __init__(self, stage: Stage):
        self.store, self.name = stage.store, f"{stage.folder}/picks.npy"
        self.saved = time.monotonic()
        self.picks: np.ndarray | None = None
        if self.store.size(self.name) is not None:
            self.picks = np.load(io.BytesIO(self.store.read(self.name)), allow_pickle=False)
            print(f"bins       goes on after {len(self.picks):,} picks", flush=True)

    def save(self, picks: np.ndarray, every: float = SECONDS) -> None:
        if time.monotonic() - self.saved >= every:
            buffer = io.BytesIO()
            np.save(buffer, picks)
            self.store.write(self.name, buffer.getvalue())
            self.saved = time.monotonic()

    def remove(self) -> None:
        if self.store.size(self.name) is not None:
            self.store.remove(self.name)


def _in_the_driver(
    extract: Manifest | None, own: tuple | None, selection: Selection, progress: Progress, checkpoint: _Checkpoint
) -> tuple[list[str], np.ndarray, Cut]:
    rows, keys, labels = embeddings_by_key(extract, own)
    if selection.centre == "class":
        rows = rows - class_means(rows, labels)[labels]
    _check_rows(rows, keys, selection.normalize)
    bins, ranks = graphcut_bins(
        rows, labels, selection.bins, selection.scope, KERNELS[selection.normalize], progress.add,
        save=checkpoint.save, resume=checkpoint.picks,
    )  # fmt: skip
    right = nearest(rows, labels, bins, class_means(rows, labels, unit=True), selection.bins)
    return keys, labels, Cut(bins, ranks, right)


def actors(job: "Job", extract: Manifest) -> int:
    """How many actors hold the embeddings; 0 where the driver does."""
    if job.compute.graphcut_actors:
        return min(job.compute.graphcut_actors, len(extract.parts))
    first = extract.table(extract.parts[0].name, ["embedding"])["embedding"].drop_null()
    width = len(first[0]) if len(first) else 0
    if 4 * width * sum(part.rows for part in extract.parts) <= IN_THE_DRIVER:
        return 0
    return min(pool_size(job.cluster, job.compute, job.device, len(extract.parts)), free_now(job.compute, job.device))


def _by_actors(
    job: "Job",
    extract: Manifest,
    index: Index,
    selection: Selection,
    actors: int,
    progress: Progress,
    checkpoint: _Checkpoint,
) -> tuple[list[str], np.ndarray, Cut]:
    """The driver holds keys, labels and picks; the embeddings go from the store to the actors."""
    table = extract.tables(["key", "label", "error"]).combine_chunks()
    good = pc.is_null(table["error"]).to_numpy()
    places = np.flatnonzero(good)
    order = places[pc.sort_indices(table["key"].combine_chunks().take(pa.array(places))).to_numpy()]
    indices = np.full(len(good), -1, dtype=np.int64)
    indices[order] = np.arange(len(order))
    labels = table["label"].to_numpy().astype(np.int64)
    keys = table["key"].combine_chunks().take(pa.array(order))
    ends = np.cumsum([part.rows for part in extract.parts])[:-1]
    pieces = [
        Piece(extract.stage, *rest)
        for rest in zip(extract.parts, np.split(indices, ends), np.split(labels, ends), strict=True)
    ]
    reserved = resources(job.compute, job.device, job.cluster.sizes)
    cut = graphcut.cut(
        pieces, len(order), selection.bins, selection.scope, KERNELS[selection.normalize], selection.centre == "class",
        len(index.classes), actors, reserved, job.compute.threads, job.device, progress.add,
        checkpoint.save, checkpoint.picks, lambda row: keys[row].as_py(),
    )  # fmt: skip
    return keys.to_pylist(), labels[order], cut


def _check_rows(rows: np.ndarray, keys: list[str], normalize: str) -> None:
    wrong = {
        "a NaN or infinite": ~np.isfinite(rows).all(axis=1),
        "an all-zero": ~rows.any(axis=1) & (normalize == "l2"),
    }
    for what, where in wrong.items():
        if where.any():
            raise ValueError(
                f"key {keys[int(np.argmax(where))]!r} has {what} embedding ({int(where.sum()):,} keys do); "
                "mend the weights or the embeddings"
            )


def _describe(labels: np.ndarray, cut: Cut, classes: int, num_bins: int) -> dict:
    """Class counts and nearest-class-mean accuracy of each bin: typical bins are easy, ambiguous ones are not."""
    counts = np.zeros((num_bins, classes), dtype=np.int64)
    np.add.at(counts, (cut.bins, labels), 1)
    right = cut.right / np.maximum(np.bincount(cut.bins, minlength=num_bins), 1)
    present = counts[:, counts.sum(axis=0) > 0]
    return {
        "counts": counts.tolist(), "nearest_mean_accuracy": [round(float(a), 4) for a in right],
        "smallest_class_in_a_bin": int(present.min()), "largest_class_in_a_bin": int(present.max()),
    }  # fmt: skip
