"""``dmx activations``, ``ablate`` and ``probe`` as a person types them."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dmx.cli.inspect import join_names, read_channels
from dmx.cli.main import app
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.errors import ConfigError, DmxError
from dmx.evaluation.activations import read_activations
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.train import train
from tests.workflows.conftest import session, settings

QUICK = {"segments": 4, "volumes_every_epochs": 0, "overlays": 0}


def dmx(*words: str) -> Result:
    return CliRunner().invoke(app, join_names(list(words)))


def text(result: Result) -> str:
    return " ".join(result.output.split())


def test_words_after_layers_are_names_up_to_the_next_option() -> None:
    words = ["activations", "RUN", "a.csv", "--layers", "conv1", "fc2", "-o", "x.act.h5"]
    assert join_names(words) == ["activations", "RUN", "a.csv", "--layers", "conv1,fc2", "-o", "x.act.h5"]
    # Other commands have other words after an option of that name.
    assert join_names(["transfer", "--layers", "1", "x.yaml"]) == ["transfer", "--layers", "1", "x.yaml"]
    assert join_names(["probe", "--layers"]) == ["probe", "--layers"]


def test_channels_are_numbers_and_ranges() -> None:
    assert read_channels("1-3, 12,2") == (1, 2, 3, 12)
    for wrong in ("", "a", "1-", "-3", "1--2", "1;2", "9999999"):
        with pytest.raises(ConfigError, match="--channels takes"):
            read_channels(wrong)
    with pytest.raises(ConfigError, match="ends before it begins"):
        read_channels("3-1")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("activations", "balls/last", "-o", "x.act.h5"), "got neither"),
        (("activations", "balls/last", "-o", "x.act.h5", "--layers", "head", "--dmask", "a.dmask.csv"), "got both"),
        (("activations", "balls/last", "-o", "x.act.h5", "--dmask", "a.dmask.csv"), "cannot be read"),
        (("probe", "balls/last", "--layers", "head", "--pool", "sum"), "--pool must be one of"),
        (("ablate", "balls/last", "--layer", "head"), "balls"),
    ],
)
def test_what_cannot_be_is_one_sentence(project: Path, words: tuple[str, ...], sentence: str) -> None:
    refused = dmx(*words)
    assert isinstance(refused.exception, DmxError), refused.output
    assert sentence in str(refused.exception)


def test_looking_into_a_trained_network(project: Path, manifest: Path) -> None:
    cohort = read_manifest(manifest)
    cases = tuple(replace(case, label=number % 2) for number, case in enumerate(cohort.cases))
    write_manifest(replace(cohort, cases=cases, label_classes=("a", "b")), manifest)
    train(settings(manifest, training={"epochs": 1}, validation=QUICK), session(project), name="first")
    shown = dmx("model", "show", "balls/first")
    assert shown.exit_code == 0, shown.output
    assert shown.output.index("block_1") < shown.output.index("subsampled_1") < shown.output.index("head")
    assert "parameters" in shown.output
    refused = dmx("model", "show", "balls/first", "--set", "model.fc.widths=[3]")
    assert "a run's network is as it was trained" in str(refused.exception)
    (project / "some.dmask.csv").write_text("normal.block_1=chn\n1,3\nhead=\n")
    wrote = dmx("activations", "balls/first", "cohort.csv", "-o", "a.act.h5", "--dmask", "some.dmask.csv")
    assert wrote.exit_code == 0, wrote.output
    assert "normal.block_1 6×2×1×1 head 6×2×1×1" in text(wrote)  # noqa: RUF001
    assert "Wrote the activations of 6 cases to a.act.h5" in text(wrote)
    assert set(read_activations(Path("a.act.h5"))) == {"normal.block_1", "head"}
    scored = dmx("ablate", "balls/first", "--layer", "normal.block_1", "--channels", "1-3", "--split", "evaluation")
    assert scored.exit_code == 0, scored.output
    assert "balls, split evaluation: 2 cases" in text(scored)
    assert "normal.block_1.conv.weight" in text(scored)
    read = dmx("probe", "balls/first", "--layers", "normal.block_1", "head", "--folds", "2")
    assert read.exit_code == 0, read.output
    assert "Linear readout of 6 cases, 2 folds, chance 0.500" in text(read)
    listed = text(dmx("runs", "list"))
    assert {run.kind for run in open_store(root=project).list_runs()} == {"train", "activations", "ablate", "probe"}
    assert all(kind in listed for kind in ("activations", "ablate", "probe"))
    tree = text(dmx("runs", "lineage", "balls/first"))
    assert all(kind in tree for kind in ("activations", "ablate", "probe"))
