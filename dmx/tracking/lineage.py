"""Tags that say where a run comes from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dmx.tracking.store import RunInfo, RunReader

SOURCE_RUN = "dmx.source_run_id"
SOURCES = "dmx.sources"
ROOT_RUN = "dmx.root_run_id"
UNTRAINED = "none: not trained"
"""What the tag ``dmx.optimizer_state`` says of a run that holds a network for others to train."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint from which a run starts.

    Attributes:
        run: The run that it belongs to.
        checkpoint: Its path below the run's artifacts.
        sha256: Hash of its weights.
        share: Share of the new network's parameters that it gave.
    """

    run: RunInfo
    checkpoint: str
    sha256: str
    share: float = 1.0


def source_tags(sources: Sequence[Source], *, experiment: str) -> dict[str, str]:
    """Return the tags of a run that starts from other runs' checkpoints.

    The source that gave most parameters is the parent. MLflow nests the run below it where both are in one experiment.

    Args:
        sources: One or more checkpoints.
        experiment: Experiment of the new run.
    """
    main = max(sources, key=lambda source: source.share)
    tags = {
        SOURCE_RUN: main.run.id,
        "dmx.source_checkpoint": main.checkpoint,
        "dmx.source_sha256": main.sha256,
        ROOT_RUN: main.run.tags.get(ROOT_RUN, main.run.id),
    }
    if main.run.experiment == experiment:
        tags["mlflow.parentRunId"] = main.run.id
    if len(sources) > 1:
        entries = [{**asdict(source), "run": source.run.id} for source in sources]
        tags[SOURCES] = json.dumps(entries)
    return tags


def source_runs(tags: Mapping[str, str]) -> list[str]:
    """Return the ids of the runs that a run's weights came from, as its tags say."""
    if SOURCES in tags:
        return list(dict.fromkeys(entry["run"] for entry in json.loads(tags[SOURCES])))
    return [tags[SOURCE_RUN]] if SOURCE_RUN in tags else []


def file_source_tags(file: Path, sha256: str) -> dict[str, str]:
    """Return the tags of a run that starts from a file of no run; its folder stays private."""
    return {"dmx.source_file": file.name, "dmx.source_sha256": sha256}


def children(store: RunReader, run: RunInfo) -> list[RunInfo]:
    """Return the runs that started from a run, in whatever experiment they are, newest first."""
    main = store.list_runs(tags={SOURCE_RUN: run.id})
    # Where it is one source of several, and not the one that gave most.
    known = {child.id for child in main}
    others = [child for child in store.list_runs(containing={SOURCES: run.id}) if child.id not in known]
    return sorted(main + others, key=lambda child: -child.started)
