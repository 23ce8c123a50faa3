"""Tags that say where a run comes from."""

from dataclasses import replace

from dmx.tracking.lineage import Source, source_runs, source_tags
from dmx.tracking.store import RunInfo

RUN = RunInfo(
    id="", name="", experiment="study", experiment_id="1", status="FINISHED", started=0, ended=0, artifact_uri=""
)


def source(name: str, share: float, **tags: str) -> Source:
    run = replace(RUN, id=name, name=name, tags=tags)
    return Source(run=run, checkpoint=f"checkpoints/{name}", sha256=f"hash {name}", share=share)


def test_the_source_that_gave_most_is_the_parent_whatever_the_order() -> None:
    few, most = source("few", 0.2), source("most", 0.7, **{"dmx.root_run_id": "oldest"})
    for sources in ([few, most], [most, few]):
        tags = source_tags(sources, experiment="study")
        assert tags["dmx.source_run_id"] == tags["mlflow.parentRunId"] == "most"
        assert (tags["dmx.source_checkpoint"], tags["dmx.source_sha256"]) == ("checkpoints/most", "hash most")
        assert tags["dmx.root_run_id"] == "oldest"
        assert source_runs(tags) == [one.run.id for one in sources]


def test_a_source_in_another_experiment_is_no_parent_and_one_source_needs_no_list() -> None:
    tags = source_tags([source("only", 1.0)], experiment="other")
    assert "mlflow.parentRunId" not in tags
    assert "dmx.sources" not in tags
    assert tags["dmx.root_run_id"] == "only"
    assert source_runs(tags) == ["only"]
