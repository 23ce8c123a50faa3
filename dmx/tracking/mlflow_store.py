"""The run store on MLflow, and the only module that imports it.

Every call names its run: MLflow's fluent functions keep a global run and address, which an inherited variable or an
unfinished run of the same process would capture.
"""

import json
import logging
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmx.errors import RunError
from dmx.paths import within
from dmx.tracking.embedded import database_path, database_uri, is_read_only, mlflow_address, opening
from dmx.tracking.folder import OUTGOING
from dmx.tracking.location import answers, artifact_location, check_route, is_server, project_root, resolve_uri
from dmx.tracking.mlflow_reader import CONTEXT, MlflowReader
from dmx.tracking.relocate import mend
from dmx.tracking.sentences import one_sentence, writing
from dmx.tracking.store import CheckpointModel, CohortInput, MetricPoint, RunInfo, RunStore, Status, StoreSilentError
from dmx.tracking.view_state import experiment_tags
from dmx.tracking.waits import set_waits, single_attempt, time_to_upload

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Experiment, Run

_METRICS_PER_CALL = 500
_ENTRIES_PER_CALL = 90
# Asking what is there reaches the storage, too.
_PROBED = "figures"
_LONGEST_DIGEST = 36
# What MLflow shows in its grid.
_SMALL_PICTURE = (256, 256)


def open_store(uri: str | None = None, root: Path | None = None) -> RunStore:
    """Open the run store: the given address, else MLFLOW_TRACKING_URI, else the embedded one of the project.

    Args:
        uri: Address of a server or database.
        root: Folder of the project; found from the working directory when it is not given.

    Raises:
        RunError: The address cannot be used or nothing answers there.
    """
    try:
        return MlflowStore(resolve_uri(uri, root or project_root()))
    except StoreSilentError as error:
        raise StoreSilentError(
            f"{error} Start it, or correct its address (MLFLOW_TRACKING_URI, tracking.uri or --store). Without an "
            "address, runs are kept in the project."
        ) from error


def _client(uri: str) -> "MlflowClient":
    """Import MLflow quietly, without telemetry and with short waits, and connect."""
    set_waits()
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It prints a traceback of what then becomes a sentence.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


class MlflowStore(MlflowReader):
    """Runs in MLflow."""

    def __init__(self, uri: str) -> None:
        database = database_path(uri)
        super().__init__(uri if database is None else database_uri(database), None)
        # What MLflow is told: it does not open every address that means the same.
        self._address = self._uri
        self._client: MlflowClient = self._connect(database)

    @one_sentence
    def _connect(self, database: Path | None) -> "MlflowClient":
        if not answers(self._uri):
            raise StoreSilentError(f"The run store {self.uri} does not answer.")
        if database is None:
            client = _client(self._uri)
            client.search_experiments(max_results=1)
            return client
        with opening(database):
            self.read_only = is_read_only(database)
            self._address = mlflow_address(database)
            client = _client(self._address)
            client.search_experiments(max_results=1)
            mend(database_path(self._address) or database, folder=database.parent)
        return client

    @writing
    def create_run(self, experiment: str, *, name: str, tags: Mapping[str, str]) -> RunInfo:
        """Create a run in an experiment, which is created when it is new; asked once, whatever comes back."""
        found = self._experiment(experiment)
        with single_attempt():
            created = self._client.create_run(found.experiment_id, run_name=name, tags=dict(tags))
        return self._info(created)

    @writing
    def discard_run(self, run_id: str) -> None:
        """End a run and put it into the store's trash."""
        self._client.set_terminated(run_id, "KILLED")
        self._client.delete_run(run_id)

    @one_sentence
    def why_closed(self, run_id: str) -> str:
        """Return why a run takes nothing at all: it or its experiment is in the store's trash, or it is gone."""
        from mlflow.exceptions import MlflowException

        try:
            info = self._client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return f"Run {run_id[:8]} is no longer in the run store {self.uri}: it was deleted for good."
        experiment = self._client.get_experiment(info.experiment_id)
        if experiment.lifecycle_stage != "active":
            return (
                f"Experiment '{experiment.name}' of run {run_id[:8]} is in the trash of the run store {self.uri}. "
                f"Restore it there (mlflow experiments restore --experiment-id {info.experiment_id})."
            )
        if info.lifecycle_stage != "active":
            return (
                f"Run {run_id[:8]} is in the trash of the run store {self.uri}. Restore it there (on the page of "
                f"its experiment, state 'Deleted', or mlflow runs restore --run-id {run_id})."
            )
        return ""

    @writing
    def rename_run(self, run_id: str, name: str) -> None:
        """Give a run another name."""
        self._client.update_run(run_id, name=name)

    def _experiment(self, name: str) -> "Experiment":
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                self._client.create_experiment(name, artifact_location=self._new_location(name))
            except MlflowException as error:
                # Another process was faster.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise RunError(
                f"Experiment '{name}' is in the trash of the run store {self.uri}. "
                "Restore it there, or choose another name with tracking.experiment."
            )
        check_route(self._uri, found.artifact_location)
        for key, value in experiment_tags().items():
            if found.tags.get(key) != value:
                self._client.set_experiment_tag(found.experiment_id, key, value)
        return found

    def _new_location(self, experiment: str) -> str | None:
        if is_server(self._uri):
            # The server decides for itself.
            return None
        return artifact_location(
            self._uri, experiment, {item.artifact_location for item in self._client.search_experiments()}
        )

    @writing
    def set_status(self, run_id: str, status: Status) -> None:
        """Set the status, with the end time when it is a final one."""
        if status in ("RUNNING", "SCHEDULED"):
            self._client.update_run(run_id, status=status)
        else:
            self._client.set_terminated(run_id, status)

    @writing
    def log_metrics(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Add points of metrics, any number."""
        from mlflow.entities import Metric

        for first in range(0, len(points), _METRICS_PER_CALL):
            part = points[first : first + _METRICS_PER_CALL]
            self._client.log_batch(
                run_id, metrics=[Metric(point.key, point.value, point.timestamp, point.step) for point in part]
            )

    @writing
    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Add params; a param that exists with another value raises ``StoreRefusedError``."""
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in params.items()]
        for first in range(0, len(entries), _ENTRIES_PER_CALL):
            self._client.log_batch(run_id, params=entries[first : first + _ENTRIES_PER_CALL])

    @writing
    def set_tags(self, run_id: str, tags: Mapping[str, str | None]) -> None:
        """Set tags; ``None`` removes one."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in tags.items() if value is not None]
        for first in range(0, len(entries), _ENTRIES_PER_CALL):
            self._client.log_batch(run_id, tags=entries[first : first + _ENTRIES_PER_CALL])
        removed = [key for key, value in tags.items() if value is None]
        present = self._client.get_run(run_id).data.tags if removed else {}
        for key in removed:
            if key in present:
                self._client.delete_tag(run_id, key)

    @writing
    def log_cohort(self, run_id: str, cohort: CohortInput) -> None:
        """Add a cohort to the run's inputs."""
        self._client.log_inputs(run_id, [_dataset_input(cohort)])

    @writing
    def log_checkpoints(self, run_id: str, models: Sequence[CheckpointModel]) -> None:
        """Let a model of the store's catalog stand for each checkpoint, with the validation metrics of its step."""
        run = self._client.get_run(run_id)
        # The run names a model last: one that it does not name is not complete.
        named = {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()
        new = [model for model in models if not named.intersection(self._models(run, model.path))]
        keys = [key for key in run.data.metrics if key.startswith(("val/", "val_volume/"))] if new else []
        histories = {key: self.metric_history(run_id, key) for key in keys}
        for model in new:
            points = [point for history in histories.values() for point in history if point.step == model.step]
            self._log_checkpoint(run, model, points)

    def _log_checkpoint(self, run: "Run", model: CheckpointModel, points: Sequence[MetricPoint]) -> None:
        from mlflow.entities import LoggedModelOutput, Metric

        tags = {"dmx.checkpoint": model.path, "dmx.names": ", ".join(model.names), "mlflow.model.isExternal": "true"}
        info = run.info
        begun = self._models(run, model.path)
        if not begun:
            created = self._client.create_logged_model(
                info.experiment_id, name=Path(model.path).name, source_run_id=info.run_id, tags=tags, model_type="dmx"
            )
            begun = [created.model_id]
        model_id = begun[0]
        self._client.finalize_logged_model(model_id, "READY")
        # With the timestamps of the points that the run has, or the run would hold them twice.
        metrics = [
            Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id, run_id=info.run_id)
            for point in points
        ]
        if metrics:
            self._client.log_batch(info.run_id, metrics=metrics)
        self._client.log_outputs(info.run_id, [LoggedModelOutput(model_id, model.step)])

    def _models(self, run: "Run", path: str) -> list[str]:
        """Return the models of the catalog that stand for a checkpoint of the run."""
        found = self._client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}' and name = '{Path(path).name}'"
        )
        return [model.model_id for model in found]

    @writing
    def upload(self, run_id: str, source: Path, folder: str = "") -> None:
        """Copy a file, or what is in a folder, below ``folder`` of the run's artifacts."""
        self._artifacts(run_id)
        log = self._client.log_artifacts if source.is_dir() else self._client.log_artifact
        # A server or a storage that hangs is known after seconds, and not after the long wait for a file.
        with single_attempt():
            self._client.list_artifacts(run_id, _PROBED)
        with time_to_upload(source):
            log(run_id, str(source), folder or None)

    @writing
    def log_image(self, run_id: str, picture: Path, *, key: str, point: tuple[int, int]) -> None:
        """Add a picture to the course of pictures of that key; ``point`` is (step, timestamp)."""
        from mlflow import Image

        start = f"{key.replace('/', '~')}+step+{point[0]}+"
        present = [Path(path).name for path in self.list_artifacts(run_id, "images")]
        # The small form is written last.
        if not any(name.startswith(start) and name.endswith(".webp") for name in present):
            # MLflow's own call gives another name each time: what was cut off would stay beside the repetition.
            name = f"{start}timestamp+{point[1]}+{uuid.uuid5(uuid.NAMESPACE_OID, f'{key} {point}')}"
            outgoing = picture.parent / OUTGOING
            outgoing.mkdir(exist_ok=True)
            shutil.copyfile(picture, outgoing / f"{name}.png")
            small = Image(str(picture)).to_pil()  # type: ignore[no-untyped-call]
            small.thumbnail(_SMALL_PICTURE)
            small.save(outgoing / f"{name}+compressed.webp")
            for suffix in (".png", "+compressed.webp"):
                self.upload(run_id, outgoing / f"{name}{suffix}", "images")
            shutil.rmtree(outgoing)
        self._client.set_tag(run_id, "mlflow.loggedImages", "True")

    @writing
    def delete_artifacts(self, run_id: str, path: str) -> None:
        """Delete an artifact folder and the model that stands for it."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        if (local := self.local_artifacts(run_id)) is not None:
            within(local, path, what="What is to be deleted")
        if any(item == path for item in self.list_artifacts(run_id, str(Path(path).parent))):
            repository: Any = get_artifact_repository(self._artifacts(run_id), tracking_uri=self._address)
            # In a folder of this machine the training itself deletes at the same time.
            with suppress(FileNotFoundError):
                repository.delete_artifacts(path)
        for model_id in self._models(self._client.get_run(run_id), path):
            self._client.delete_logged_model(model_id)


def _dataset_input(cohort: CohortInput) -> "DatasetInput":
    """Return a cohort as MLflow's input of a run; MLflow's own kinds of dataset are tables."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.dataset import Dataset
    from mlflow.entities import DatasetInput, InputTag

    class CohortDataset(Dataset):
        """A cohort of scans: name, digest, where its manifest lies, what it holds."""

        def _compute_digest(self) -> str:
            return cohort.digest

        @property
        def profile(self) -> dict[str, object]:
            return dict(cohort.summary)

        @property
        def schema(self) -> None:
            return None

        def to_dict(self) -> dict[str, str]:
            return {**super().to_dict(), "profile": json.dumps(self.profile)}

    source = CodeDatasetSource({"manifest": cohort.source})
    # One name and digest is one input of a run, whatever its context.
    room = _LONGEST_DIGEST - len(cohort.context) - 1
    dataset = CohortDataset(source, name=cohort.name, digest=f"{cohort.digest[:room]}-{cohort.context}")
    return DatasetInput(dataset._to_mlflow_entity(), [InputTag(CONTEXT, cohort.context)])
