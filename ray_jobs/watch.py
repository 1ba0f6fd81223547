"""What a long stage under Ray Train tells while it works: steps and metrics, to MLflow and to the person who waits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_jobs.progress import Progress

if TYPE_CHECKING:  # what only the driver needs is not loaded by the workers
    from collections.abc import Callable

    from ray_jobs.classifier import Note
    from ray_jobs.mlflow_run import Run


@dataclass(frozen=True)
class Steps:
    """What the first worker tells the driver."""

    first: int  # the step at which this group began
    step: int  # steps done
    rows: tuple[tuple[int, dict[str, float]], ...]  # metrics by step, since the last note


class Watch:
    """In the driver: it takes the notes."""

    def __init__(self, name: str, run: "Run", steps: int):
        self.name, self.run, self.steps, self.first, self.done = name, run, steps, None, 0

    def __call__(self, note: Steps) -> None:
        if note.first != self.first:
            if note.first:
                print(f"{self.name:<13} goes on at step {note.first:,}", flush=True)
            self.first = self.done = note.first
            self.progress = Progress(self.name, self.steps - note.first, "steps")
        self.run.metric_series(note.rows)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in note.rows[-1][1].items()) if note.rows else ""
        self.progress.add(note.step - self.done, shown)
        self.done = note.step


def of_epochs(name: str, epochs: int, images: int) -> "Callable[[Note], None]":
    """What takes the notes of one network that a group trains for so many epochs, and shows how far it is."""
    progress = Progress(name, epochs * images)

    def take(note: "Note") -> None:
        loss = f"epoch {len(note.losses)} of {epochs}, loss {note.losses[-1]:.3f}" if note.losses else ""
        progress.add(note.images, loss)

    return take
