"""GraphCut where the features are: actors hold the embeddings, the driver holds keys, labels and picks.

Scope "global": each actor is a block of rows (`adq.graphcut_block`); the driver runs the same greedy over them as over a block of
its own, so the picks are the same for any number of actors and any split. An actor that dies is started again by Ray and loads its
rows again; all blocks then begin anew from the picks so far. Scope "class": the rows are exchanged so that each actor has whole
classes, and works alone.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from adq.fixed_point import check_rows, largest_entry, make_grid
from adq.graphcut import block_of, blocks_bins, class_bins
from adq.graphcut_blocks import BlockLost
from adq.graphcut_messages import Answer, Bound, Candidates, Near, Request
from ray_jobs.actors import RETRIES
from ray_jobs.class_means import ClassSums, class_sums, means_of, nearest
from ray_jobs.stages import Part, Stage
from ray_jobs.store import parquet_table

PATIENCE = 60  # times that an actor is asked again while it is started again
WAIT = 600.0  # seconds for a lost actor to come back


class Piece(NamedTuple):
    """A part of the features, and where its rows belong: indices int64, -1 for images that could not be decoded; labels int64."""

    stage: Stage
    part: Part
    indices: np.ndarray
    labels: np.ndarray


class NotBegun(RuntimeError):
    """An actor was started again and has no block yet."""


class GraphCutActor:
    """Rows of some parts (scope "global") or of some classes (scope "class")."""

    def __init__(self, pieces: Sequence, threads: int, device: str):
        torch.set_num_threads(threads)
        self.device, self.block, self.centred = device, None, False
        found = [read_piece(piece) if isinstance(piece, Piece) else piece for piece in _fetched(pieces)]
        rows, indices, labels = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(indices)
        self.rows, self.indices, self.labels = rows[order], indices[order], labels[order]

    def process(self) -> int:
        return os.getpid()

    def _centre(self, means: np.ndarray | None) -> None:
        """Subtract the class means, once. Every method is told them: an actor that was started again has raw rows."""
        if means is not None and not self.centred:
            self.rows, self.centred = self.rows - means[self.labels], True

    def check(self, means: np.ndarray | None, unit: bool) -> tuple[str, int] | None:
        """The first bad row: its trouble and its index."""
        self._centre(means)
        for place in range(0, len(self.rows), 4096):
            try:
                check_rows(self.rows[place : place + 4096], unit)
            except ValueError:
                for i in range(place, min(place + 4096, len(self.rows))):
                    try:
                        check_rows(self.rows[i : i + 1], unit)
                    except ValueError as error:
                        return str(error).partition("embeddings ")[2], int(self.indices[i])
        return None

    def largest(self, means: np.ndarray | None) -> float:
        self._centre(means)
        return largest_entry(self.rows)

    def sums(self, means: np.ndarray | None, unit: bool, largest: float, classes: int) -> ClassSums:
        self._centre(means)
        return class_sums(self.rows, self.labels, unit, largest, classes)

    def nearest(self, means: np.ndarray | None, bins: np.ndarray, unit_means: np.ndarray, num_bins: int) -> np.ndarray:
        self._centre(means)
        return nearest(self.rows, self.labels, bins[self.indices], unit_means, num_bins)

    def class_bins(
        self, means: np.ndarray | None, num_bins: int, kernel: str, largest: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(indices, bins, ranks) of whole classes."""
        self._centre(means)
        if not len(self.rows):
            return self.indices, self.indices, self.indices
        bins, ranks = class_bins(self.rows, self.labels, num_bins, kernel, largest, device=self.device)
        return self.indices, bins, ranks

    def begin(self, means: np.ndarray | None, kernel: str, largest: float, taken: np.ndarray) -> None:
        self._centre(means)
        self.block = block_of(self.rows, self.indices, kernel, largest, self.device, taken)

    def call(self, name: str, *args):
        """A method of the block. Raises NotBegun where there is none."""
        if self.block is None:
            raise NotBegun
        return getattr(self.block, name)(*args)


def _fetched(pieces: Sequence) -> list:
    return [ray.get(piece) if isinstance(piece, ray.ObjectRef) else piece for piece in pieces]


def read_piece(piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows float32 [n, d], indices, labels) of the images that could be decoded."""
    table = parquet_table(piece.stage.read(piece.part), ["embedding", "error"])
    table = table.filter(pc.is_null(table["error"])).combine_chunks()
    array = table["embedding"].combine_chunks()
    good = piece.indices >= 0
    if isinstance(array, pa.ChunkedArray) or len(array) != int(good.sum()):
        raise ValueError(f"{piece.part.path}: {len(array)} features, {int(good.sum())} expected")
    rows = (
        array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
        if len(array)
        else np.zeros((0, 0), np.float32)
    )
    return rows, piece.indices[good], piece.labels[good]


@ray.remote(max_retries=RETRIES)
def by_class(piece: Piece, owner: np.ndarray, groups: int) -> list:
    """The rows of a part, one share for each group of classes."""
    rows, indices, labels = read_piece(piece)
    shares = [(rows[mine], indices[mine], labels[mine]) for g in range(groups) for mine in [owner[labels] == g]]
    return shares if groups > 1 else shares[0]


class RemoteBlocks:
    """Blocks of actors, called side by side."""

    def __init__(
        self,
        actors: Sequence,
        means: ray.ObjectRef | None,
        kernel: str,
        largest: float,
        taken: Callable[[], np.ndarray],
    ):
        self.actors, self.means, self.kernel, self.largest, self.taken = actors, means, kernel, largest, taken
        self._begin()

    def _begin(self) -> None:
        taken = ray.put(self.taken())
        end = time.monotonic() + WAIT
        while True:
            try:
                ray.get([actor.begin.remote(self.means, self.kernel, self.largest, taken) for actor in self.actors])
                return
            except ray.exceptions.RayActorError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    def _all(self, name: str, args: Sequence[tuple]) -> list:
        try:
            return ray.get([actor.call.remote(name, *mine) for actor, mine in zip(self.actors, args, strict=True)])
        except (ray.exceptions.RayActorError, NotBegun) as error:
            print(
                f"bins       an actor was lost ({type(error).__name__}); it is started again and the picks go on",
                flush=True,
            )
            self._begin()
            raise BlockLost from error

    def sums(self) -> list[tuple[np.ndarray, int]]:
        return self._again("sum", [()] * len(self.actors))

    def sums_of(self, indices: np.ndarray) -> list[np.ndarray]:
        return self._again("sum_of", [(indices,)] * len(self.actors))

    def _again(self, name: str, args: Sequence[tuple]) -> list:
        while True:
            try:
                return self._all(name, args)
            except BlockLost:
                continue

    def refresh(self, request: Request, taken: Sequence[Sequence[int]]) -> list[Answer]:
        shared = ray.put(request)
        return self._all("refresh", [(shared, mine) for mine in taken])

    def candidates(self, numbers: Sequence[int], horizon: int) -> list[Candidates]:
        return self._all("candidates", [(number, horizon) for number in numbers])

    def follow(
        self, picked: np.ndarray, picks: int, taken: Sequence[Sequence[int]], horizon: int, limit: int
    ) -> list[tuple[Bound, Answer | None]]:
        return self._all("follow", [(picked, picks, mine, horizon, limit) for mine in taken])

    def verify(self, picks: np.ndarray) -> list[np.ndarray]:
        shared = ray.put(picks)
        return self._all("verify", [(shared,)] * len(self.actors))

    def best_of_near(self, thresholds: Sequence[float], weight: float, direction: np.ndarray) -> list[Near | None]:
        return self._all("best_of_near", [(threshold, weight, direction) for threshold in thresholds])


class Cut(NamedTuple):
    """Bins of all rows, and what the actors know about them."""

    bins: np.ndarray  # int64 [N]
    ranks: np.ndarray
    right: np.ndarray  # of each bin, how many images are nearest to their own class's mean: int64 [m]


def cut(
    pieces: Sequence[Piece], count: int, num_bins: int, scope: str, kernel: str, centre: bool, classes: int,
    actors: int, options: dict, threads: int, device: str, on_step: Callable[[int], None],
    save: Callable[[np.ndarray], None], resume: np.ndarray | None, named: Callable[[int], str],
) -> Cut:  # fmt: skip
    """GraphCut over features that stay with `actors` actors.

    Args:
        pieces: all parts, with the places of their rows in the order of the keys.
        count: rows in all.
        options: resources of an actor, for Ray.
        named: the key of a row, for errors.

    Raises:
        ValueError: a zero, NaN or infinite row, with its key.
    """
    remote = ray.remote(GraphCutActor).options(max_restarts=-1, **options)
    if scope == "global":
        shares: list = [list(pieces[a::actors]) for a in range(actors)]
    else:
        shares = _split(pieces, np.arange(classes) % actors, actors)
    # Held here as long as the actors live: an actor that is started again reads its share again.
    held = [ray.put(share) for share in shares if share]
    pool = [remote.remote(share, threads, device) for share in held]
    try:
        return _cut(pool, count, num_bins, scope, kernel, centre, classes, on_step, save, resume, named)
    finally:
        for actor in pool:
            ray.kill(actor)


def _split(pieces: Sequence[Piece], owner: np.ndarray, actors: int) -> list[list]:
    """The rows of whole classes for each actor, references to them: all there before an actor waits for one.

    An actor keeps its CPUs while it waits, and there may be no others: so the tasks, also when rows that were lost with a node
    are made again, need none, and as many run at once as there are CPUs.
    """
    remote = by_class.options(num_returns=actors, num_cpus=0, scheduling_strategy="SPREAD")
    at_once, split, running = max(1, int(ray.cluster_resources().get("CPU", 1))), [], []
    for piece in pieces:
        if len(running) == at_once:
            _, running = ray.wait(running, fetch_local=False)
        parts = remote.remote(piece, owner, actors)
        split.append([parts] if actors == 1 else parts)
        running.append(split[-1][0])
    ray.wait(running, num_returns=len(running), fetch_local=False)
    return [[parts[a] for parts in split] for a in range(actors)]


def _cut(pool, count, num_bins, scope, kernel, centre, classes, on_step, save, resume, named) -> Cut:
    means = None

    def every(name: str, *args) -> list:
        """A method that needs no block: an actor that is lost loads its rows again, and is asked again."""
        return ray.get([getattr(actor, name).options(max_task_retries=PATIENCE).remote(means, *args) for actor in pool])

    for trouble in every("check", kernel == "cosine" and not centre):
        if trouble:
            raise ValueError(
                f"key {named(trouble[1])!r} of the embeddings {trouble[0]}; mend the weights or the embeddings"
            )
    largest = max(every("largest"))
    if centre:
        means = ray.put(means_of(every("sums", False, largest, classes)))
        for trouble in every("check", kernel == "cosine"):
            if trouble:
                raise ValueError(f"key {named(trouble[1])!r}: its embedding is its class's mean, so it {trouble[0]}")
        largest = max(every("largest"))
    if scope == "class":
        bins, ranks = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        waiting = [
            actor.class_bins.options(max_task_retries=PATIENCE).remote(means, num_bins, kernel, largest)
            for actor in pool
        ]
        while waiting:
            done, waiting = ray.wait(waiting)
            indices, their_bins, their_ranks = ray.get(done[0])
            bins[indices], ranks[indices] = their_bins, their_ranks
            on_step(len(indices))
    else:
        picked = np.zeros(0, dtype=np.int64) if resume is None else resume

        def keep(picks: np.ndarray) -> None:
            nonlocal picked
            picked = picks
            save(picks)

        blocks = RemoteBlocks(pool, means, kernel, largest, lambda: picked)
        bins, ranks = blocks_bins(
            blocks, make_grid(kernel, largest), count, num_bins, on_step, save=keep, resume=resume
        )
    unit_means = ray.put(means_of(every("sums", True, largest, classes)))
    return Cut(bins, ranks, np.sum(every("nearest", ray.put(bins), unit_means, num_bins), axis=0))
