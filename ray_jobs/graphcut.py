"""GraphCut where the features are: actors hold the embeddings, the driver holds keys, labels and picks.

Scope "global": each actor is a block of rows (`adq.graphcut_block`); the driver runs the same greedy over them as over a block of
its own, so the picks are the same for any number of actors and any split. An actor that dies is started again by Ray and loads its
rows again; all blocks then begin anew from the picks so far. Scope "class": the rows are exchanged so that each actor has whole
classes, and works alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import ray

from adq.fixed_point import make_grid
from adq.graphcut import blocks_bins
from adq.graphcut_blocks import BlockLost
from adq.graphcut_messages import Answer, Bound, Candidates, Near, Request
from ray_jobs.class_means import means_of
from ray_jobs.graphcut_actor import GraphCutActor, NotBegun, Piece, Share, by_class

PATIENCE = 60  # times that an actor is asked again while it is started again
WAIT = 600.0  # seconds for a lost actor to come back
PLACED = 30.0  # seconds after which no further actor is waited for, when some are up
QUIET = 60.0  # seconds of waiting without a word
SHARE_BYTES = (
    4 << 20
)  # of parts, for each actor: Ray sends what is below 100 kB through the driver, which should hold no rows


class RemoteBlocks:
    """Blocks of actors, called side by side."""

    def __init__(
        self,
        actors: Sequence,
        shares: Sequence[Share],
        means: ray.ObjectRef | None,
        kernel: str,
        largest: float,
        taken: Callable[[], np.ndarray],
    ):
        self.actors, self.shares, self.taken = actors, shares, taken
        self.means, self.kernel, self.largest = means, kernel, largest
        self._begin()

    def _begin(self) -> None:
        taken = ray.put(self.taken())
        end = time.monotonic() + WAIT
        while True:
            try:
                how = self.means, self.kernel, self.largest, taken
                pairs = zip(self.actors, self.shares, strict=True)
                ray.get([actor.begin.remote(share, *how) for actor, share in pairs])
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
    pieces = [piece for piece in pieces if (piece.indices >= 0).any()]  # of others not even the width is known
    most = len(pieces) if scope == "global" else classes
    pool = _placed([remote.remote(threads, device) for _ in range(min(actors, most))])
    try:
        if scope == "global":
            shares: list = [list(pieces[a :: len(pool)]) for a in range(len(pool))]
        else:
            shares = _split(pieces, np.arange(classes) % len(pool), len(pool))
        held = [[ray.put(share)] for share in shares]
        return _cut(pool, held, count, num_bins, scope, kernel, centre, classes, on_step, save, resume, named)
    finally:
        for actor in pool:
            ray.kill(actor)


def _placed(asked: list) -> list:
    """The actors that there is room for: all, or those that are up when no other has come for a while."""
    waiting, up = {actor.process.remote(): actor for actor in asked}, []
    while waiting:
        done, _ = ray.wait(list(waiting), timeout=PLACED if up else QUIET)
        if done:
            ray.get(done)
            up += [waiting.pop(one) for one in done]
        elif up:
            break
        else:
            print("bins       waits for room for an actor", flush=True)
    for actor in waiting.values():
        ray.kill(actor)
    if waiting:
        print(f"bins       room for {len(up)} of {len(asked)} actors", flush=True)
    return up


def _answers(calls: list[ray.ObjectRef]) -> list:
    """What actors answer, that are waited for while they are started again; says so."""
    waiting = calls
    while waiting:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=QUIET)
        if waiting:
            print(f"bins       waits for {len(waiting)} of {len(calls)} actors", flush=True)
    return ray.get(calls)


def _split(pieces: Sequence[Piece], owner: np.ndarray, actors: int) -> list[list]:
    """The rows of whole classes for each actor, references to them: all there before an actor waits for one.

    An actor keeps its CPUs while it waits, and there may be no others: so the tasks, also when rows that were lost with a node
    are made again, need none, and as many run at once as there are CPUs.
    """
    remote = by_class.options(num_returns=actors, num_cpus=0, scheduling_strategy="SPREAD")
    at_once, split, running = max(1, int(ray.cluster_resources().get("CPU", 1))), [], []
    for bundle in _bundles(pieces, actors * SHARE_BYTES):
        if len(running) == at_once:
            _, running = ray.wait(running, fetch_local=False)
        parts = remote.remote(bundle, owner, actors)
        split.append([parts] if actors == 1 else parts)
        running.append(split[-1][0])
    ray.wait(running, num_returns=len(running), fetch_local=False)
    return [[parts[a] for parts in split] for a in range(actors)]


def _bundles(pieces: Sequence[Piece], size: int) -> Iterator[list[Piece]]:
    """Pieces in their order, so many together that their parts have `size` bytes."""
    bundle: list[Piece] = []
    for piece in pieces:
        bundle.append(piece)
        if sum(one.part.bytes for one in bundle) >= size:
            yield bundle
            bundle = []
    if bundle:
        yield bundle


def _cut(pool, held, count, num_bins, scope, kernel, centre, classes, on_step, save, resume, named) -> Cut:
    means = None

    def every(name: str, *args) -> list:
        """A method that needs no block: an actor that is lost loads its rows again, and is asked again."""
        patient = [getattr(actor, name).options(max_task_retries=PATIENCE) for actor in pool]
        return _answers([method.remote(share, means, *args) for method, share in zip(patient, held, strict=True)])

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
            actor.class_bins.options(max_task_retries=PATIENCE).remote(share, means, num_bins, kernel, largest)
            for actor, share in zip(pool, held, strict=True)
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

        blocks = RemoteBlocks(pool, held, means, kernel, largest, lambda: picked)
        bins, ranks = blocks_bins(
            blocks, make_grid(kernel, largest), count, num_bins, on_step, save=keep, resume=resume
        )
    unit_means = ray.put(means_of(every("sums", True, largest, classes)))
    return Cut(bins, ranks, np.sum(every("nearest", ray.put(bins), unit_means, num_bins), axis=0))
