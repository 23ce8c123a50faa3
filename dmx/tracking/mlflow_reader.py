"""What is read from MLflow, through a client that is handed in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmx.paths import within
from dmx.tracking import catalog
from dmx.tracking.embedded import artifact_owner, database_path
from dmx.tracking.location import check_route, local_path, mask
from dmx.tracking.sentences import one_sentence
from dmx.tracking.store import MetricPoint, RunInfo, current_params

_PAGE = 1000
CONTEXT = "mlflow.data.context"
"""MLflow's tag of an input that says what a run has read it for."""


class MlflowReader:
    """Runs in MLflow, as far as they are only looked at.

    Args:
        uri: Address of the store.
        client: An ``MlflowClient`` of it.
    """

    def __init__(self, uri: str, client: Any) -> None:
        self._uri = uri
        self.read_only = False
        self._client = client
        self._experiment_names: dict[str, str] = {}
        self._artifact_uris: dict[str, str] = {}

    @property
    def uri(self) -> str:
        """Return where the store is, without any password."""
        return mask(self._uri)

    @one_sentence
    def get_run(self, run_id: str) -> RunInfo:
        """Return a run by its full id."""
        return self._info(self._client.get_run(run_id))

    def find_run(self, text: str) -> RunInfo:
        """Return the run that an id, a unique prefix, ``experiment/run-name`` or ``experiment/last`` names."""
        return catalog.find_run(self, text)

    @one_sentence
    def list_runs(
        self,
        *,
        experiment: str | None = None,
        tags: Mapping[str, str] | None = None,
        containing: Mapping[str, str] | None = None,
        prefix: str = "",
        limit: int = 1000,
    ) -> list[RunInfo]:
        """Return the runs of this program, newest first; of all experiments when none is named."""
        self._experiment_names.update({item.experiment_id: item.name for item in self._client.search_experiments()})
        ids = [key for key, name in self._experiment_names.items() if experiment in (None, name)]
        conditions = ["tags.`dmx.kind` != ''"]
        if prefix:
            conditions.append(f"attributes.run_id LIKE '{prefix}%'")
        conditions += [f"tags.`{key}` = '{_unquoted(value)}'" for key, value in (tags or {}).items()]
        conditions += [f"tags.`{key}` LIKE '%{_unquoted(value)}%'" for key, value in (containing or {}).items()]
        runs: list[RunInfo] = []
        token: str | None = None
        while ids and len(runs) < limit:
            page = self._client.search_runs(
                ids,
                " and ".join(conditions),
                max_results=min(_PAGE, limit - len(runs)),
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            runs += [self._info(run) for run in page]
            token = page.token
            if not token:
                break
        return runs

    @one_sentence
    def metric_history(self, run_id: str, key: str) -> list[MetricPoint]:
        """Return all points of a metric in the order of their steps."""
        points = self._client.get_metric_history(run_id, key)
        return sorted(
            (MetricPoint(point.key, point.value, point.step, point.timestamp) for point in points),
            key=lambda point: (point.step, point.timestamp),
        )

    @one_sentence
    def local_artifacts(self, run_id: str) -> Path | None:
        """Return the run's artifact folder when it is a folder of this machine."""
        return self._own_folder(run_id, self._artifacts(run_id))

    @one_sentence
    def list_artifacts(self, run_id: str, path: str = "") -> list[str]:
        """Return the paths directly below ``path``."""
        self._artifacts(run_id)
        return [str(item.path) for item in self._client.list_artifacts(run_id, path or None)]

    @one_sentence
    def download(self, run_id: str, path: str, target: Path) -> Path:
        """Copy an artifact (a file or a folder) below ``target`` and return where it is."""
        self._artifacts(run_id)
        target.mkdir(parents=True, exist_ok=True)
        return Path(self._client.download_artifacts(run_id, path, str(target)))

    def _artifacts(self, run_id: str) -> str:
        if run_id not in self._artifact_uris:
            location = self._client.get_run(run_id).info.artifact_uri
            check_route(self._uri, location)
            self._own_folder(run_id, location)
            self._artifact_uris[run_id] = location
        return self._artifact_uris[run_id]

    def _own_folder(self, run_id: str, location: str) -> Path | None:
        """Return the folder of a run's artifacts, which must lie in what is the store's; ``None``: not on this machine.

        Raises:
            RunError: The store names another place.
        """
        if (path := local_path(location)) is None:
            return None
        owner, database = None, database_path(self._uri)
        if database is not None:
            owner = artifact_owner(database)
        else:
            # A team's database has no folder; there an experiment says where its runs lie.
            experiment = self._client.get_experiment(self._client.get_run(run_id).info.experiment_id)
            owner = local_path(experiment.artifact_location)
        return None if owner is None else within(owner, path, what=f"The run store, for run {run_id[:8]},")

    def _info(self, run: Any) -> RunInfo:
        experiment_id = run.info.experiment_id
        if experiment_id not in self._experiment_names:
            self._experiment_names[experiment_id] = self._client.get_experiment(experiment_id).name
        return RunInfo(
            id=run.info.run_id,
            name=run.info.run_name or "",
            experiment=self._experiment_names[experiment_id],
            experiment_id=experiment_id,
            status=run.info.status,
            started=run.info.start_time,
            ended=run.info.end_time,
            artifact_uri=run.info.artifact_uri,
            params=current_params(run.data.params, run.data.tags),
            metrics=dict(run.data.metrics),
            tags=dict(run.data.tags),
            cohorts=_cohorts(run),
        )


def _cohorts(run: Any) -> dict[str, str]:
    """Return the digest of each cohort that a run has read, by its context, which the store's digest ends with."""
    found = {}
    for item in run.inputs.dataset_inputs if run.inputs else ():
        context = next((tag.value for tag in item.tags if tag.key == CONTEXT), "")
        found[context] = item.dataset.digest.removesuffix(f"-{context}")
    return found


def _unquoted(value: str) -> str:
    """Return a value without what would end it in a condition."""
    return value.replace("'", "")
