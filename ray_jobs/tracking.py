"""MLflow: an experiment, and runs that a restart continues.

Every call names its run: nothing here uses MLflow's fluent state, so threads and nested runs do not meet by accident.
With SQLite only the driver's process may log; results of actors and of Ray Train reach it as return values.
"""

import contextlib
import fcntl
import getpass
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from ray_jobs.mlflow_run import Run

logger = logging.getLogger(__name__)

DIGEST_TAG = "tessera.digest"


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
