"""MLflow: an experiment, and runs that a restart continues.

Every call names its run: nothing here uses MLflow's fluent state, so threads and nested runs do not meet by accident.
With SQLite only the driver's process may log; results of actors and of Ray Train reach it as return values.
"""

import contextlib
import fcntl
import getpass
import io
import json
import logging
import math
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

# MLflow reads these while it is imported: no usage reports to its makers, no links among the results on stdout.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)
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

DIGEST_TAG = "tessera.digest"
ERROR_TAG = "error"
MAX_TAG_LENGTH = 5000  # what every MLflow server since 2.0 takes


def open_tracker(tracking_uri: str | None, experiment: str, store: str) -> "Tracker":
    """Open (or create) an experiment.

    Args:
        tracking_uri: a server (http, https) or a database; else MLFLOW_TRACKING_URI; else `<store>/mlflow.db`.
        experiment: its name. It is created if missing, by however many processes at once, with its artifacts in
            `<store>/mlflow-artifacts`; a tracking server keeps them where it is set up to.
        store: the folder of results: a local path, s3:// or gs://.

    Raises:
        ValueError: the store is remote and no URI is given; the URI is a folder; the experiment is deleted.
        ConnectionError: the server does not answer.
    """
    # The first use of a database runs MLflow's migrations, a line of log each.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    local_store = _local_path(store)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _database_in(local_store, store)
    if _local_path(uri) is not None:
        raise ValueError(
            f"tracking URI {uri!r}: MLflow no longer keeps runs in plain folders; give a server (http://HOST:5000) "
            "or a database (sqlite:////absolute/path/mlflow.db)"
        )
    if uri.startswith(("http://", "https://", "databricks")):
        artifacts = None
    elif local_store is not None:
        artifacts = (local_store / "mlflow-artifacts").as_uri()
    else:
        artifacts = f"{store.rstrip('/')}/mlflow-artifacts"
    try:
        with _alone_with(uri), _few_retries():
            client = MlflowClient(uri)
            found = _experiment(client, experiment, artifacts)
    except MlflowException as error:
        if "Max retries exceeded" not in str(error):
            raise
        raise ConnectionError(
            f"the MLflow server at {_without_credentials(uri)} does not answer; start it, or give another "
            "--tracking-uri or MLFLOW_TRACKING_URI"
        ) from error
    if found.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment {experiment!r} is deleted in {_without_credentials(uri)}: restore it with `mlflow experiments "
            f"restore --experiment-id {found.experiment_id}`, or give another --experiment"
        )
    if artifacts is not None and found.artifact_location != artifacts:
        logger.warning(
            "experiment %r keeps its artifacts where it was created, in %s, not in %s",
            experiment,
            found.artifact_location,
            artifacts,
        )
    return Tracker(client, uri, found.experiment_id)


@dataclass(frozen=True)
class Tracker:
    """An MLflow experiment."""

    client: MlflowClient
    uri: str
    experiment_id: str

    def run(
        self,
        name: str,
        digest: str,
        parent: str | None = None,
        tags: Mapping[str, object] | None = None,
        params: Mapping[str, object] | None = None,
    ) -> "Run":
        """The run of `digest` below `parent` (a run's id, or none): continued where there is one, else created.

        Parameters must follow from the digest: see `Run.params`. What may differ between two attempts (actors, host,
        versions) belongs in `tags`.
        """
        found = self._find(digest, parent)
        if found is None:
            system = {
                DIGEST_TAG: digest,
                MLFLOW_RUN_NAME: name,
                MLFLOW_USER: _user(),
                MLFLOW_SOURCE_NAME: "python -m ray_jobs",
                MLFLOW_SOURCE_TYPE: "JOB",
            }
            if parent is not None:
                system[MLFLOW_PARENT_RUN_ID] = parent
            found = self.client.create_run(self.experiment_id, tags=system, run_name=name).info.run_id
        else:
            self.client.update_run(found, status="RUNNING", name=name)
        run = Run(self.client, found)
        run.tags(tags or {})
        run.params(params or {})
        return run

    def ui_command(self) -> str:
        """A shell command that serves MLflow's pages on http://127.0.0.1:5000; for a tracking server, its address."""
        if self.uri.startswith(("http://", "https://")):
            return self._page("runs")
        # Other databases' URIs hold passwords, which do not belong on a terminal.
        uri = shlex.quote(self.uri) if self.uri.startswith("sqlite:") else '"$MLFLOW_TRACKING_URI"'
        # Without the job runners it starts in half the time, with two processes instead of ten.
        return (
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false "
            f"{shlex.quote(sys.executable)} -m mlflow ui --workers 1 --backend-store-uri {uri}"
        )

    def link(self, run: "Run | None" = None) -> str:
        """The address of a run's page, or of the list of all runs; with a database, once `ui_command` runs."""
        return self._page("runs" if run is None else f"runs/{run.id}")

    def _page(self, path: str) -> str:
        server = _without_credentials(self.uri) if self.uri.startswith("http") else "http://127.0.0.1:5000"
        # MLflow opens its pages about language models unless told otherwise.
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/{path}?workflowType=machine_learning"

    def _find(self, digest: str, parent: str | None) -> str | None:
        conditions = [f"tags.`{DIGEST_TAG}` = '{digest}'"]
        if parent is not None:
            conditions.append(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'")
        runs = self.client.search_runs(
            [self.experiment_id], " and ".join(conditions), order_by=["attributes.start_time ASC"]
        )
        return next((run.info.run_id for run in runs if run.data.tags.get(MLFLOW_PARENT_RUN_ID) == parent), None)


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
        """The description at the head of the run's page."""
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
            context: "source", "subset", "train" or "test".
            num_rows: its images.
            schema: type of each column, such as {"jpg": "binary", "cls": "long"}.
            profile: more numbers about it, beside num_rows.
        """
        columns = [{"name": column, "type": kind, "required": True} for column, kind in (schema or {}).items()]
        scheme = "local" if _local_path(source_uri) is not None else urlsplit(source_uri).scheme
        dataset = Dataset(
            name=name[:MAX_DATASET_NAME_SIZE],
            digest=sha256_digest[:MAX_DATASET_DIGEST_SIZE],
            source_type=scheme,
            source=json.dumps({"uri": source_uri}),
            schema=json.dumps({"mlflow_colspec": columns}) if columns else None,
            profile=json.dumps({"num_rows": num_rows, **(profile or {})}, sort_keys=True),
        )
        self._client.log_inputs(self.id, [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, context)])])
        self.tags({f"dataset.{context}.sha256": sha256_digest})

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


def _experiment(client: MlflowClient, name: str, artifacts: str | None):
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found
    try:
        client.create_experiment(name, artifact_location=artifacts)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_experiment_by_name(name)


@contextlib.contextmanager
def _alone_with(uri: str) -> Iterator[None]:
    """One process at a time opens a SQLite file: two that migrate a new one break it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """A wrong address fails in seconds, not in MLflow's four minutes, which are right for a server that restarts."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = "2"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _database_in(local_store: Path | None, store: str) -> str:
    if local_store is None:
        raise ValueError(
            f"store {store!r} is remote and cannot hold MLflow's database: give --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{local_store / 'mlflow.db'}"


def _local_path(location: str) -> Path | None:
    """The absolute path of a path or file: URI; None for other URIs."""
    if location.startswith("file:"):
        return Path(unquote(urlsplit(location).path)).resolve()
    return None if "://" in location or location == "databricks" else Path(location).resolve()


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
