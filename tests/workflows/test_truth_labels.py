"""Which class of the network each value of a cohort's label maps is, wherever label maps are read or written."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dmx
from dmx.cohort.case import Cohort
from dmx.cohort.check import check_cohort
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.regions import Regions
from dmx.cohort.show import show_cohort
from dmx.cohort.volume import read_grid, read_volume, write_volume
from dmx.errors import CohortError
from dmx.preprocess.kept import resampled_volumes
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.evaluate import Evaluated, EvaluateRequest, evaluate
from dmx.workflows.finetune import FinetuneRequest, finetune
from dmx.workflows.predict import PredictRequest, predict
from dmx.workflows.train import train
from dmx.workflows.truth_labels import CaseLabels, TruthOutputs, case_label_outputs
from tests.workflows.conftest import Teller, session, settings

CLASSES = ("background", "Anterior", "Posterior")
SHORT: dict[str, object] = {"epochs": 1, "steps_per_epoch": 12, "batch_size": 4, "moving_average": None}


def recoded(project: Path, name: str, values: Mapping[int, int], **changes: Any) -> Path:
    """Write the cohort again with other values in its label maps and other words in its manifest."""
    cohort = read_manifest(project / "parts.csv")
    cases = []
    for case in cohort.cases:
        assert case.label_map is not None
        array = read_volume(case.label_map).array
        table = np.zeros(256, np.int16)
        table[list(values)] = list(values.values())
        path = project / name / case.label_map.name
        write_volume(path, table[array], read_grid(case.label_map), dtype=np.int16)
        cases.append(replace(case, label_map=path))
    made: Cohort = replace(cohort, name=name, cases=tuple(cases), **changes)
    write_manifest(made, project / f"{name}.csv")
    return project / f"{name}.csv"


SWAPPED = {0: 0, 1: 2, 2: 1}
SAME = {0: 0, 1: 1, 2: 2}


@pytest.fixture
def parts(project: Path, manifest: Path) -> Path:
    """Balls of two halves: label 1 before the middle of the second axis, 2 behind it."""
    cohort = read_manifest(manifest)
    for case in cohort.cases:
        assert case.label_map is not None
        array = read_volume(case.label_map).array
        array[:, 9:][array[:, 9:] == 1] = 2
        write_volume(case.label_map, array, read_grid(case.label_map), dtype=np.uint8)
    write_manifest(replace(cohort, name="parts", classes=CLASSES), project / "parts.csv")
    return project / "parts.csv"


@pytest.fixture
def run_id(project: Path, parts: Path) -> str:
    return train(settings(parts, training=SHORT), session(project)).run.id


def dice(done: Evaluated) -> list[tuple[object, object]]:
    return [(row["dice/Anterior"], row["dice/Posterior"]) for row in done.rows]


def test_classes_are_paired_by_name_by_position_or_as_the_user_says(project: Path, parts: Path, run_id: str) -> None:
    def scored(manifest: Path | None, **words: Any) -> tuple[Evaluated, list[str]]:
        teller = Teller()
        return evaluate(EvaluateRequest(run=run_id, cohort=manifest, **words), session(project, teller)), list(
            teller.sentences
        )

    own, said = scored(None)
    assert own.paired_by == "names"
    assert not any("classes of cohort" in sentence for sentence in said)
    truth = dice(own)
    assert len({value for pair in truth for value in pair}) > 2, "the two classes must differ for this to say anything"

    turned, said = scored(recoded(project, "turned", SWAPPED, classes=("bg", "posterior", "anterior")))
    assert (dice(turned), turned.paired_by) == (truth, "names")
    assert any("by name: posterior → Posterior, anterior → Anterior" in sentence for sentence in said)
    assert turned.label_values == {0: "background", 1: "Posterior", 2: "Anterior"}
    params = open_store(root=project).get_run(turned.run.id).params
    assert params["labels.paired_by"] == "names"
    assert params["labels.values"] == "0=background, 1=Posterior, 2=Anterior"

    other, said = scored(recoded(project, "other", SAME, classes=("background", "head", "tail")))
    assert (dice(other), other.paired_by) == (truth, "position")
    assert any(s.startswith("Warning") and "by position: head → Anterior, tail → Posterior" in s for s in said)

    freesurfer = recoded(project, "freesurfer", {0: 0, 1: 17, 2: 53}, classes=("background", "left", "right"))
    with pytest.raises(CohortError, match=r"got 17 \(.* voxels\), 53"):
        scored(freesurfer)
    given, said = scored(freesurfer, labels={"17": "anterior", "53": "2"})
    assert (dice(given), given.paired_by) == (truth, "given")
    assert any("0=background, 17=Anterior, 53=Posterior" in sentence for sentence in said)
    from_python = dmx.evaluate(run_id, freesurfer, labels={17: "Anterior", 53: 2}, store=project / "mlruns")
    assert isinstance(from_python, Evaluated)
    assert dice(from_python) == truth
    named = recoded(project, "named", {0: 0, 1: 17, 2: 53}, classes=CLASSES, label_values={0: 0, 17: 1, 53: 2})
    assert dice(scored(named)[0]) == truth


def test_what_cannot_be_paired_is_one_sentence_and_no_run(project: Path, parts: Path, run_id: str) -> None:
    tumor = recoded(project, "tumor", {0: 0, 1: 1, 2: 1}, classes=("background", "Tumor"))
    mixed = recoded(project, "mixed", SAME, classes=("background", "Posterior", "tail"))
    for cohort, words, problem in (
        (tumor, {}, "The network has no 'Tumor'. Say it with --labels"),
        (mixed, {}, "neither names nor number say which is which"),
        (tumor, {"labels": {"1": "Tumor"}}, "--labels names the class 'Tumor', allowed are background, Anterior"),
        (tumor, {"labels": {"x": "Anterior"}}, "must be VALUE=CLASS"),
        (parts, {"labels": {"2": "Posterior", "7": "Anterior"}}, r"must hold the labels 0, 2, 7, got 1"),
    ):
        with pytest.raises(CohortError, match=problem):
            evaluate(EvaluateRequest(run=run_id, cohort=cohort, **words), session(project))
    assert len(open_store(root=project).list_runs()) == 1
    stated = evaluate(EvaluateRequest(run=run_id, cohort=tumor, labels={"1": "Anterior"}), session(project))
    assert stated.label_values == {0: "background", 1: "Anterior"}


def test_a_child_of_another_order_is_scored_on_its_parents_cohort_by_name(
    project: Path, parts: Path, run_id: str
) -> None:
    turned = recoded(project, "turned", SWAPPED, classes=("background", "Posterior", "Anterior"))
    experiment = project / "child.yaml"
    experiment.write_text(f"name: child\ncohort:\n  manifest: {turned}\ntraining: {{epochs: 1, steps_per_epoch: 1}}\n")
    child = finetune(FinetuneRequest(experiment=experiment, run=run_id, allow_leak=True), session(project)).run.id
    on_own = evaluate(EvaluateRequest(run=child), session(project))
    on_parents = evaluate(EvaluateRequest(run=child, cohort=parts, allow_leak=True), session(project))
    assert dice(on_own) == dice(on_parents)
    predict(PredictRequest(run=child, inputs=[turned], split="evaluation", output=project / "out"), session(project))
    # The cohort that the child has learned calls Posterior 1, its network 2.
    scored = replace(read_manifest(turned), name="again")
    cases = [
        replace(case, label_map=project / "out" / f"{case.name}_segmentation.nii.gz")
        for case in scored.in_split("evaluation")
    ]
    write_manifest(replace(scored, cases=tuple(cases)), project / "again.csv")
    again = evaluate(EvaluateRequest(run=child, cohort=project / "again.csv"), session(project))
    assert {value for pair in dice(again) for value in pair} <= {1.0, None}


def test_predictions_have_the_values_of_the_label_maps_that_were_learned(project: Path, parts: Path) -> None:
    coded = recoded(project, "coded", {0: 0, 1: 17, 2: 300})
    plain = train(settings(parts, training=SHORT), session(project)).run.id
    labels = {17: "Anterior", 300: "Posterior"}
    run = train(settings(coded, cohort={"labels": labels}, training=SHORT), session(project)).run.id
    teller = Teller()
    done = predict(PredictRequest(run=run, inputs=[coded], output=project / "coded_out"), session(project, teller))
    predict(PredictRequest(run=plain, inputs=[parts], output=project / "plain_out"), session(project))
    request = PredictRequest(run=run, inputs=[coded], output=project / "indices", class_indices=True)
    assert predict(request, session(project)).label_values == dict(enumerate(CLASSES))
    assert done.label_values == {0: "background", 17: "Anterior", 300: "Posterior"}
    assert any("0=background, 17=Anterior, 300=Posterior" in sentence for sentence in teller.sentences)
    values: set[int] = set()
    for case in read_manifest(coded).cases:
        name = f"{case.name}_segmentation.nii.gz"
        indices = read_volume(project / "plain_out" / name).array
        found = read_volume(project / "coded_out" / name).array
        assert np.array_equal(found, np.array([0, 17, 300])[indices])
        assert np.array_equal(read_volume(project / "indices" / name).array, indices)
        values |= set(np.unique(found).tolist())
    assert values == {0, 17, 300}
    assert evaluate(EvaluateRequest(run=run), session(project)).label_values[300] == "Posterior"


def test_a_cohort_whose_order_the_experiment_turns_is_learned_by_name(project: Path, parts: Path) -> None:
    order = ["background", "Posterior", "Anterior"]
    run = train(settings(parts, cohort={"classes": order}, training=SHORT), session(project)).run.id
    done = evaluate(EvaluateRequest(run=run), session(project))
    assert done.label_values == {0: "background", 1: "Anterior", 2: "Posterior"}


def paired(names: str, outputs: str, *, numbers: tuple[int, ...] = (), **words: Any) -> TruthOutputs:
    theirs = tuple(names.split())
    numbered = words.pop("numbered", {})
    found = frozenset(words.pop("found", names).split())
    labels = CaseLabels(cohort="foreign", names=theirs, numbers=numbers or tuple(range(len(theirs))), found=found)
    return case_label_outputs(labels, outputs.split(), numbered=numbered, **words)


def test_labels_of_whole_cases_are_paired_by_name_by_number_or_by_position() -> None:
    def outputs(*args: Any, **words: Any) -> tuple[dict[str, str], str, int]:
        truth = paired(*args, **words)
        return dict(truth.outputs), truth.by, len(truth.warnings)

    assert outputs("Light dark", "dark light") == ({"Light": "light", "dark": "dark"}, "names", 0)
    assert outputs("hell dunkel", "light dark") == ({"hell": "light", "dunkel": "dark"}, "position", 1)
    assert outputs("dark gray", "dark light", found="dark") == ({"dark": "dark"}, "names", 0)
    assert outputs("0 1", "dark light") == ({"0": "dark", "1": "light"}, "training", 0)
    assert outputs("3 5", "dark light", numbers=(3, 5), numbered={5: 0, 3: 1})[:2] == (
        {"3": "light", "5": "dark"},
        "training",
    )
    assert outputs("dark light", "0 1") == ({"dark": "0", "light": "1"}, "position", 1)
    assert outputs("0 1", "dark light", given={"0": "Light", "1": "0"})[0] == {"0": "light", "1": "dark"}
    merged = outputs("dunkel light", "dark light", found="light", given={"dunkel": "light"})[0]
    assert merged == {"dunkel": "light", "light": "light"}
    for words, problem in (
        ({"names": "light gray", "outputs": "dark light"}, "neither names nor number say which is which"),
        ({"names": "1 2", "outputs": "dark light", "numbers": (1, 2)}, "--labels LABEL=CLASS"),
        ({"names": "1 2", "outputs": "0 1", "numbers": (1, 2)}, "--labels LABEL=CLASS"),
        ({"names": "a b", "outputs": "dark light", "given": {"a": "dark"}}, "must also say what the label 'b'"),
        ({"names": "a b", "outputs": "dark light", "given": {"c": "dark"}}, "the label 'c', 'foreign' has a, b"),
        ({"names": "a b", "outputs": "dark light", "given": {"a": "gray"}}, "the class 'gray', allowed are dark"),
    ):
        with pytest.raises(CohortError, match=problem):
            paired(**words)


def test_looking_at_a_cohort_reads_its_label_values(project: Path, parts: Path) -> None:
    coded = {0: 0, 17: 1, 300: 2}
    path = recoded(project, "coded", {0: 0, 1: 17, 2: 300}, classes=CLASSES, label_values=coded)
    regions = Regions({"whole": (17, 300), "back": (300,)}, (17, 300))
    plain, cohort = read_manifest(parts), read_manifest(path)

    def kept(of: Cohort) -> list[tuple[str, float, float]]:
        rows = resampled_volumes(of, (2.0, 2.0, 2.0))
        return [(row.name, row.file_ml, row.prepared_ml) for row in rows]

    name = [cohort.cases[0].name]
    assert show_cohort(cohort, project / "a", names=name)[0].volumes_ml == (
        show_cohort(plain, project / "b", names=name)[0].volumes_ml
    )
    assert kept(cohort) == kept(plain)
    nested = kept(replace(cohort, regions=regions))
    assert {row[0] for row in nested} == {"whole", "back"}
    assert [row[1:] for row in nested if row[0] == "back"] == [row[1:] for row in kept(plain) if row[0] == "Posterior"]
    found = check_cohort(replace(cohort, regions=regions)).findings
    assert not any("holds class" in finding.message for finding in found)
    with pytest.raises(CohortError, match="holds the value 17, allowed are 0, 300"):
        show_cohort(replace(cohort, label_values={0: 0, 300: 2}), project / "c", names=name)


def test_regions_of_named_values_are_learned_written_and_scored_as_those_of_indices(project: Path, parts: Path) -> None:
    def regions(first: int, second: int) -> Regions:
        return Regions({"whole": (first, second), "back": (second,)}, (first, second))

    plain = project / "plain.csv"
    write_manifest(replace(read_manifest(parts), name="plain", regions=regions(1, 2)), plain)
    values = {0: 0, 17: 1, 300: 2}
    recode = {0: 0, 1: 17, 2: 300}
    coded = recoded(project, "coded", recode, classes=CLASSES, label_values=values, regions=regions(17, 300))
    runs = [train(settings(manifest, training=SHORT), session(project)).run.id for manifest in (plain, coded)]

    def scores(run: str, manifest: Path) -> list[tuple[object, object]]:
        done = evaluate(EvaluateRequest(run=run, cohort=manifest, allow_leak=True), session(project))
        return [(row["dice/whole"], row["dice/back"]) for row in done.rows]

    assert scores(runs[0], plain) == scores(runs[1], coded) == scores(runs[0], coded)
    for run, manifest, folder in zip(runs, (plain, coded), ("indices", "values"), strict=True):
        predict(PredictRequest(run=run, inputs=[manifest], output=project / folder), session(project))
    written: set[int] = set()
    for case in read_manifest(coded).cases:
        name = f"{case.name}_segmentation.nii.gz"
        indices = read_volume(project / "indices" / name).array.astype(int)
        found = read_volume(project / "values" / name).array
        assert np.array_equal(found, np.array([0, 17, 300])[indices])
        written |= set(np.unique(found).tolist())
    assert written == {0, 17, 300}
