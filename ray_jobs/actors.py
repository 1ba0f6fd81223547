"""The actor pool: as many actors as fit, tasks handed out as they get free, lost actors replaced by Ray."""

import errno
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ray

from ray_jobs.cluster import cpus_beside, node_sizes

if TYPE_CHECKING:  # it loads PyTorch, which actors that read and write shards can do without
    from ray_jobs.cluster import Cluster
    from ray_jobs.options import Compute

RETRIES = 5  # of a task whose actor died, or could not be reached
UNREACHED_SECONDS = 1.0
STORAGE_SECONDS = 2.0  # before a task whose storage failed is tried again; twice as long each time
LASTING = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)


def pool_size(cluster: "Cluster", compute: "Compute", device: str, tasks: int) -> int:
    """Actors for a stage: --actors, or one per GPU where there are GPUs, else per set of CPUs.

    Raises:
        ValueError: the cluster is one node, which this command started, and could not hold an actor.
    """
    if cluster.local and (short := too_large(compute, device, cluster.sizes)):
        raise ValueError(short)
    if compute.actors:
        return min(compute.actors, tasks)
    fits = cluster.cpus / cpus_each(compute, device, cluster.sizes)
    if device == "cuda":
        fits = min(fits, cluster.gpus / compute.gpus_per_actor)
    return max(1, min(int(fits), tasks))


def free_now(compute: "Compute", device: str) -> int:
    """Actors that there is room for at this moment, at least 1."""
    free, wanted = ray.available_resources(), resources(compute, device, node_sizes())
    fits = free.get("CPU", 0.0) / wanted["num_cpus"]
    return max(1, int(min(fits, free.get("GPU", 0.0) / wanted["num_gpus"]) if wanted["num_gpus"] else fits))


def cpus_each(compute: "Compute", device: str, sizes: Sequence[tuple[float, float]]) -> float:
    """CPUs of an actor, by the nodes' (CPUs, GPUs): one core decodes too few images a second to keep a GPU busy."""
    on_gpus = device == "cuda"
    return compute.cpus_per_actor or (cpus_beside(compute.gpus_per_actor, sizes) if on_gpus else 1.0)


def resources(compute: "Compute", device: str, sizes: Sequence[tuple[float, float]]) -> dict:
    """What an actor reserves on nodes of these (CPUs, GPUs)."""
    gpus = compute.gpus_per_actor if device == "cuda" else 0
    return {"num_cpus": cpus_each(compute, device, sizes), "num_gpus": gpus}


def too_large(compute: "Compute", device: str, sizes: Sequence[tuple[float, float]]) -> str | None:
    """Why no node of these sizes, (CPUs, GPUs), can ever hold an actor, and what to do; None where one can."""
    cpus, gpus = resources(compute, device, sizes).values()
    if any(cpus <= node[0] and gpus <= node[1] for node in sizes):
        return None
    named = [f"{node[0]:g} CPUs" + (f" and {node[1]:g} GPUs" if gpus else "") for node in ((cpus, gpus), *sizes)]
    ways = "--cpus-per-actor (of a training, --threads)"
    ways += " or --gpus-per-actor (of a training, --gpus-per-training)" if gpus else ""
    nodes = "; ".join(list(dict.fromkeys(named[1:]))[:5])
    return f"an actor needs {named[0]} of one node, the nodes have {nodes or 'none'}: lower {ways}"


def map_actors(
    actor_class: type,
    arguments: tuple,
    tasks: Sequence[tuple],
    size: int,
    compute: "Compute",
    device: str,
    on_done: Callable[[object], None],
    shared: object = None,
) -> None:
    """Call `work(*task)` for each task on a pool of actors; `on_done` gets each result as it comes.

    An actor that dies is started again by Ray, with the same arguments, and its task is tried again, as is one whose actor could
    not be reached for a while, and one whose storage failed (an OSError that may pass). Any other exception in `work` stops the
    pool. The actors' CPUs and GPUs are free when this returns.

    Args:
        actor_class: a plain class with `ready(shared)` and `work(shared, *task)`.
        arguments: of its constructor.
        shared: something large that every actor needs: put into the object store once, fetched once a node, and handed to
            every call as a list of its reference, so that an actor that was started again finds it too. A reference is handed on.
    """
    sizes = node_sizes()
    reserved = resources(compute, device, sizes)
    remote = ray.remote(_holding(actor_class)).options(**reserved, max_restarts=-1, max_task_retries=RETRIES)
    if short := too_large(compute, device, sizes):
        print(f"warning: {short}; waiting for a node that has", flush=True)  # a cluster may grow, and does not say so
    free_before = ray.available_resources()
    reference_of_shared = [] if shared is None else [shared if isinstance(shared, ray.ObjectRef) else ray.put(shared)]
    held = [ray.put(argument) for argument in arguments]
    pool = [remote.remote() for _ in range(size)]

    def begin(actor: ray.actor.ActorHandle, task: tuple | None) -> ray.ObjectRef:
        references = held, reference_of_shared
        return (
            actor.ready.remote(*references) if task is None else actor.work.remote(*references, *task)
        )  # a task may be ()

    waiting = list(reversed(tasks))
    unreached, failed = 0, Counter()
    # An actor gets its first task, where None stands, when it is up, so one that waits for resources holds nothing back.
    running = {begin(actor, None): (actor, None) for actor in pool}
    try:
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            actor, task = running.pop(done[0])
            try:
                result = ray.get(done[0])
            except ray.exceptions.ActorUnavailableError:
                unreached += 1
                if unreached > RETRIES * size:
                    raise
                time.sleep(UNREACHED_SECONDS)
                running[begin(actor, task)] = actor, task
                continue
            except ray.exceptions.RayTaskError as error:
                failed[id(task)] += 1
                if failed[id(task)] > RETRIES or not may_pass(cause(error)):
                    raise
                told = f"{type(cause(error)).__name__}: {cause(error)}".splitlines()[0]
                print(f"warning: {told}; trying again", flush=True)
                time.sleep(STORAGE_SECONDS * 2 ** (failed[id(task)] - 1))
                running[begin(actor, task)] = actor, task
                continue
            if task is not None:
                on_done(result)
            if waiting:
                task = waiting.pop()
                running[begin(actor, task)] = actor, task
            elif all(task is None for _, task in running.values()):
                break
    finally:
        for actor in pool:
            ray.kill(actor)
        _wait_until_free(free_before)


def _holding(actor_class: type) -> type:
    """The class without constructor arguments, which Ray lets go of and warns of: every call brings references to them instead,
    so that an actor that was started again makes itself anew.
    """

    class Holding:
        made = None

        def _actor(self, held: list[ray.ObjectRef]) -> object:
            if self.made is None:
                self.made = actor_class(*ray.get(held))
            return self.made

        def ready(self, held: list[ray.ObjectRef], shared: list) -> object:
            return self._actor(held).ready(shared)

        def work(self, held: list[ray.ObjectRef], shared: list, *task) -> object:
            return self._actor(held).work(shared, *task)

    Holding.__name__ = Holding.__qualname__ = actor_class.__name__
    return Holding


def _wait_until_free(before: dict, limit: float = 10.0) -> None:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        now = ray.available_resources()
        if all(now.get(kind, 0) >= before.get(kind, 0) for kind in ("CPU", "GPU")):
            return
        time.sleep(0.05)


def may_pass(error: BaseException) -> bool:
    """Whether a later try may succeed where this one failed: storage that does not answer, rather than what is not there."""
    lasting = isinstance(error, LASTING) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
    return isinstance(error, OSError) and not lasting


def cause(error: BaseException) -> BaseException:
    """The exception that was raised in a worker, without Ray's wrapping."""
    inner = getattr(error, "cause", None)
    return inner if isinstance(error, ray.exceptions.RayTaskError) and isinstance(inner, BaseException) else error
