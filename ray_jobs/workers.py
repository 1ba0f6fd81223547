"""A Ray Train worker group: started once, resumed from its last checkpoint, quiet, and honest about what went wrong.

Workers that die are replaced by a new group, which goes on from the last checkpoint. An exception of the training
itself is raised as it is: it would only come again.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.fs as pafs
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adq.process import settle
from adq.shards import filesystem
from ray_jobs.cluster import cpus_beside, node_sizes
from ray_jobs.stages import Stage

RESTARTS = 3  # of a group whose workers died, one after the other without a checkpoint in between
RUN = "group"
CHECKPOINT_SECONDS = 15.0  # between two checkpoints, at the end of an epoch or of a step
NOTE_SECONDS = 0.5
# How often Ray Train's controller looks at the workers, how long a group may take to start, and no output of its own. Workers
# on a node that is taken away are found dead like any others: a watcher would be one more process to start.
TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Group:
    """How many workers, what each has, and where their checkpoints lie."""

    workers: int
    threads: int
    device: str
    stage: Stage  # its folder holds the checkpoints until `clean`
    checkpoint_seconds: float = CHECKPOINT_SECONDS

    @property
    def folder(self) -> str:
        return self.stage.store.path(f"{self.stage.folder}/train")

    def check(self) -> None:
        """Raises ValueError where the cluster could never start this group."""
        there = ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        if self.workers * self.threads > cpus:
            raise ValueError(
                f"{self.workers} training workers of {self.threads} threads need {self.workers * self.threads} CPUs, the "
                f"cluster has {cpus:g}: lower the number of workers or --threads"
            )
        if self.device == "cuda" and self.workers > gpus:
            raise ValueError(f"{self.workers} training workers need as many GPUs, the cluster has {gpus:g}")

    def cpus(self) -> int:
        """CPUs of a worker, which decode its images: on cuda at least its GPU's share of their node."""
        return max(self.threads, cpus_beside(1, node_sizes())) if self.device == "cuda" else self.threads

    def checkpoints(self) -> set[str]:
        """The names of what is kept; a later checkpoint has another name."""
        fs, inside = filesystem(self.folder)
        selector = pafs.FileSelector(f"{inside}/{RUN}", allow_not_found=True)
        return {info.base_name for info in fs.get_file_info(selector) if info.base_name.startswith("checkpoint")}

    def clean(self) -> None:
        """Remove the checkpoints."""
        fs, inside = filesystem(self.folder)
        fs.delete_dir_contents(inside, missing_dir_ok=True)
        with contextlib.suppress(OSError):  # an object store has no folders
            fs.delete_dir(inside)


@dataclass(frozen=True)
class Member:
    """One worker of a group, as its work sees it."""

    rank: int
    world: int
    device: str
    threads: int  # that decode; those of its arithmetic are `Group.threads`
    checkpoint_seconds: float
    notes: Queue

    def tell(self, note: object) -> None:
        """Send a note to the driver, from the first worker; nothing waits for it."""
        if self.rank == 0:
            self.notes.actor.put_nowait.remote(note)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the workers, on the CPU."""
        values = values.to(self.device)
        if self.world > 1:
            dist.all_reduce(values)
        return values.cpu()

    def checkpoint(self, own: bool = False) -> dict | None:
        """The last state that was kept, also by an earlier group; `own` as it was kept."""
        last = ray.train.get_checkpoint()
        if last is None:
            return None
        with last.as_directory() as folder:
            return torch.load(Path(folder, self._file(own)), map_location="cpu", weights_only=True)

    def due(self, since: float) -> bool:
        """Whether it is time for a checkpoint, by the first worker's clock; all workers must ask together."""
        late = torch.tensor([float(self.rank == 0 and time.monotonic() - since >= self.checkpoint_seconds)])
        return self.sum(late).item() > 0

    def keep(self, state: dict, own: bool = False) -> None:
        """Keep a state as the checkpoint to resume from; all workers must call this together.

        Args:
            own: every worker keeps its own state, in one checkpoint; otherwise the first worker's counts for all.
        """
        if self.rank and not own:
            ray.train.report({})
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder, self._file(own)))
            # Ray Train puts what the workers report together under one name, and counts it once all have reported.
            ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _file(self, own: bool) -> str:
        return f"state-{self.rank}.pt" if own else "state.pt"


class _Trainer(TorchTrainer):
    """TorchTrainer without what costs every group time and serves none here.

    Ray's cleaner of placement groups asks the dashboard's API whether the controller is alive: a local cluster has no dashboard,
    and every group would end ten seconds late. A placement group goes with its creator anyway. And for the data sets of Ray Data,
    which are not used, a process would be started (4 seconds of a core).
    """

    def _create_default_callbacks(self) -> list:
        without = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, without)]


def run_group(
    group: Group, work: Callable[[Member, object], None], plan: object, on_note: Callable[[object], None]
) -> None:
    """Run `work(member, plan)` on every worker of a group and wait for it.

    Args:
        work: a function of a module; what it does must be resumable, since it is called again where workers die.
        on_note: gets what `Member.tell` sends, in this thread; the last notes of workers that die may be lost.

    Raises:
        Exception: what `work` raised, as it was.
        RuntimeError: workers died again and again.
    """
    lost, seen, broken = 0, group.checkpoints(), False
    with _notes() as notes:
        while True:
            try:
                _fit(group, work, plan, notes, on_note)
                return
            except (ControllerError, ray.exceptions.RayActorError) as error:
                failure: Exception = getattr(error, "controller_failure", error)
                if broken:
                    # Twice: no storage that was slow to answer, but a snapshot that a kill cut off. Its work is done again.
                    group.clean()
                broken = True
            except WorkerGroupError as error:
                failure = _original(error)
                if not _is_lost(failure, group.workers):
                    raise failure from None
            except TrainingFailedError as error:
                failure = error
            last, seen = seen, group.checkpoints()
            lost = lost + 1 if seen <= last else 1  # a long training may lose many, if it gets on in between
            if lost > RESTARTS:
                break
            print(f"warning: training lost a worker ({_first_line(failure)}); starting again", flush=True)
    raise RuntimeError(
        f"training workers died {lost} times without a checkpoint in between; the last: {_first_line(failure)}"
    ) from failure


def _fit(group: Group, work: Callable, plan: object, notes: Queue, on_note: Callable[[object], None]) -> None:
    fs, inside = filesystem(group.folder)
    cpus = group.cpus()
    resources = {"CPU": cpus} | ({"GPU": 1} if group.device == "cuda" else {})
    trainer = _Trainer(
        partial(
            _member, work, plan, group, cpus, notes
        ),  # not a train_loop_config, which the controller would load as well
        torch_config=TorchConfig(backend="nccl" if group.device == "cuda" else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers, use_gpu=group.device == "cuda", resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=RUN,  # Ray Train resumes from the checkpoints of the same name
            storage_path=inside,
            storage_filesystem=fs,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    outcome: Future = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    # In a thread of its own: in the main thread, Ray Train would take Ctrl-C for itself, and keep it.
    with _settings():
        threading.Thread(target=fit, daemon=True).start()
        while not outcome.done():
            wait([outcome], timeout=NOTE_SECONDS)
            # Notes that are lost with the node of their queue are no reason to end a training.
            with contextlib.suppress(Empty, ray.exceptions.RayActorError):
                while True:
                    on_note(notes.get_nowait())
    outcome.result()


def _member(work: Callable, plan: object, group: Group, cpus: int, notes: Queue) -> None:
    """What Ray Train runs on each worker."""
    settle(group.threads)
    device = str(ray.train.torch.get_device()) if group.device == "cuda" else "cpu"
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    work(Member(rank, world, device, cpus, group.checkpoint_seconds, notes), plan)


@contextlib.contextmanager
def _notes() -> Iterator[Queue]:
    # Beside the driver, whose end is the end of the command anyway.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    try:
        yield queue
    finally:
        queue.shutdown(force=True)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in TRAIN_SETTINGS}
    os.environ.update({name: value for name, value in TRAIN_SETTINGS.items() if before[name] is None})
    try:
        yield
    finally:
        for name in [name for name, value in before.items() if value is None]:
            del os.environ[name]


def _original(error: WorkerGroupError) -> Exception:
    """The failure that caused the others: a lost connection to a failed worker is a RuntimeError."""
    failures = [failure for _, failure in sorted(error.worker_failures.items())]
    return next((failure for failure in failures if not _may_be_lost(failure)), failures[0])


def _is_lost(failure: Exception, workers: int) -> bool:
    ray_own = type(failure).__module__.startswith("ray.")
    return ray_own or (workers > 1 and _may_be_lost(failure))


def _may_be_lost(failure: Exception) -> bool:
    """A RuntimeError may be a lost connection; a full GPU, which is one, too, would only be full again."""
    return isinstance(failure, RuntimeError) and not isinstance(failure, torch.OutOfMemoryError)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
