"""One MLflow run, which a restart continues: nothing is logged twice."""

import io
import json
import logging
import math
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NOTE
from mlflow.utils.validation import (
    MAX_DATASET_DIGEST_SIZE,
    MAX_DATASET_NAME_SIZE,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

ERROR_TAG = "error"
MAX_TAG_LENGTH = 5000  # what every MLflow server since 2.0 takes
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")  # what MLflow does not take in the name of a tag


class Run:
    """One run of an experiment. As a context manager it ends FINISHED, FAILED (the tag `error` says why) or KILLED.

    A restart continues the run: a metric's step, a parameter or a dataset that is there is not logged again, and an
    artifact takes the place of the one of its name. Safe to use from several threads.
    """

    def __init__(self, client: MlflowClient, run_id: str):
        self.id = run_id
        self._client = client
        self._lock = threading.Lock()
        self._ended = False
        data = client.get_run(run_id).data
        self._params = dict(data.params)
        # The largest step of each metric. A metric's whole history is read only when an earlier step is logged.
        self._latest = {metric.key: metric.step for metric in data.to_proto().metrics}
        self._history: dict[str, set[int]] = {}
        if ERROR_TAG in data.tags:
            client.delete_tag(run_id, ERROR_TAG)

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters, cut to MLflow's 6,000 characters.

        Raises:
            ValueError: one is there with another value.
        """
        cut = {name: str(value)[:MAX_PARAM_VAL_LENGTH] for name, value in values.items()}
        with self._lock:
            for name, value in cut.items():
                if self._params.get(name, value) != value:
                    raise ValueError(
                        f"parameter {name!r} of MLflow run {self.id} is {self._params[name]!r}, now {value!r}: a run "
                        "is continued only with the same configuration; what may change between attempts is a tag"
                    )
            new = [Param(name, value) for name, value in cut.items() if name not in self._params]
            for batch in _batches(new, MAX_PARAMS_TAGS_PER_BATCH):
                self._client.log_batch(self.id, params=batch)
            self._params |= cut

    def tags(self, values: Mapping[str, object]) -> None:
        """Set tags; one that is there is replaced."""
        tags = [RunTag(name, str(value)[:MAX_TAG_LENGTH]) for name, value in values.items()]
        for batch in _batches(tags, MAX_PARAMS_TAGS_PER_BATCH):
            self._client.log_batch(self.id, tags=batch)

    def note(self, markdown: str) -> None:
        """The description at the head of the run's page; lines that are too many for it are left out."""
        if len(markdown) > MAX_TAG_LENGTH:
            markdown = markdown[: MAX_TAG_LENGTH - 100].rpartition("\n")[0] + "\n\nThe rest is among the artifacts."
        self.tags({MLFLOW_RUN_NOTE: markdown})

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Log one value, unless this step is there."""
        self.metric_series([(step, {name: value})])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log values of one step, except those that are there."""
        self.metric_series([(step, values)])

    def metric_series(self, series: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log (step, values) pairs, except those that are there.

        NaN and infinities are logged as NaN, which the charts leave out (a database would make 1.8e308 of an infinity).
        """
        now = time.time_ns() // 1_000_000
        with self._lock:
            new = {
                (name, step): Metric(name, float(value) if math.isfinite(value) else math.nan, now, step)
                for step, values in series
                for name, value in values.items()
                if not self._is_logged(name, step)
            }
            for batch in _batches(list(new.values()), MAX_METRICS_PER_BATCH):
                self._client.log_batch(self.id, metrics=batch)
                for metric in batch:
                    self._latest[metric.key] = max(self._latest.get(metric.key, metric.step), metric.step)
                    if metric.key in self._history:
                        self._history[metric.key].add(metric.step)

    def next_step(self, prefix: str = "") -> int:
        """The step after the last one of all metrics whose names start with `prefix`."""
        with self._lock:
            return 1 + max((step for name, step in self._latest.items() if name.startswith(prefix)), default=-1)

    def dataset(
        self,
        name: str,
        source_uri: str,
        sha256_digest: str,
        context: str,
        num_rows: int,
        schema: Mapping[str, str] | None = None,
        profile: Mapping[str, object] | None = None,
    ) -> None:
        """Log a data set as an input of the run.

        Args:
            name: the data set's name.
            source_uri: where its shards are.
            sha256_digest: of its contents. MLflow takes 36 characters; the whole is the tag `dataset.<context>.sha256`.
            context: "source", "subset", "train", "test", or what a user calls the set.
            num_rows: its images.
            schema: type of each column, such as {"jpg": "binary", "cls": "long"}.
            profile: more numbers about it, beside num_rows.
        """
        columns = [{"name": column, "type": kind, "required": True} for column, kind in (schema or {}).items()]
        scheme, found, _ = source_uri.partition("://")
        dataset = Dataset(
            name=name[:MAX_DATASET_NAME_SIZE],
            digest=sha256_digest[:MAX_DATASET_DIGEST_SIZE],
            source_type=scheme if found else "local",
            source=json.dumps({"uri": source_uri}),
            schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
            profile=json.dumps({"num_rows": num_rows, **(profile or {})}, sort_keys=True),
        )
        self._client.log_inputs(self.id, [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])])
        self.tags({f"dataset.{NOT_IN_NAMES.sub('_', context)}.sha256": sha256_digest})

    def figure(self, fig: "Figure", path: str) -> None:
        """Store a figure as an image, such as "figures/bins.png"; the ending says which kind."""
        image = io.BytesIO()
        fig.savefig(image, format=PurePosixPath(path).suffix[1:])
        self.artifact_bytes(image.getvalue(), path)

    def text(self, markdown: str, path: str) -> None:
        """Store a text as an artifact."""
        self.artifact_bytes(markdown.encode(), path)

    def artifact_bytes(self, data: bytes, path: str) -> None:
        """Store bytes as an artifact, such as "manifests/bins.json", in place of what has that name."""
        target = PurePosixPath(path)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, target.name)
            file.write_bytes(data)
            folder_in_run = str(target.parent) if target.parent.name else None
            self._client.log_artifact(self.id, str(file), folder_in_run)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.id, status)
        self._ended = True

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            if not self._ended:
                self.finish()
            return
        try:
            self.tags({ERROR_TAG: f"{kind.__name__}: {error}"})
            self.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        except MlflowException:
            # The error that is on its way is the one to see.
            logger.warning("MLflow run %s could not be marked as failed", self.id, exc_info=True)

    def _is_logged(self, name: str, step: int) -> bool:
        if name not in self._latest or step > self._latest[name]:
            return False
        if name not in self._history:
            self._history[name] = {metric.step for metric in self._client.get_metric_history(self.id, name)}
        return step in self._history[name]


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
