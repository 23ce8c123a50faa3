"""Families of runs, and comparisons of their evaluations."""

import csv
import io
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dmx.cli import relations
from dmx.cli import runs as runs_command
from dmx.cli.console import Console
from dmx.tracking.compare import compare, comparison_csv, histories
from dmx.tracking.family import Family, Link, Member, find_family, source_links
from dmx.tracking.family_page import lineage_html
from dmx.tracking.files import read_text
from dmx.tracking.lineage import Source, children, file_source_tags, source_tags
from dmx.tracking.mlflow_store import MlflowStore
from dmx.tracking.scores import cases_behind, paired_scores
from dmx.tracking.session import ActiveRun
from dmx.tracking.store import CohortInput, RunInfo

Begin = Callable[..., ActiveRun]
Now = Callable[[ActiveRun], RunInfo]
Make = Callable[..., RunInfo]
CHECKPOINT = "checkpoints/step_000000005"


@pytest.fixture
def make(begin: Begin, now: Now) -> Make:
    """Make a finished run with a checkpoint that came from other runs, one or several."""

    def made(name: str, *sources: RunInfo, shares: tuple[float, ...] = (1.0,), **changes: Any) -> RunInfo:
        tags = {"dmx.checkpoint.best": CHECKPOINT} if changes.get("kind", "train") != "evaluate" else {}
        if sources:
            given = [
                Source(run=run, checkpoint=CHECKPOINT, sha256="ab", share=share)
                for run, share in zip(sources, shares, strict=True)
            ]
            tags |= source_tags(given, experiment=changes.get("experiment", "study"))
        metrics, texts, digest = changes.pop("metrics", {}), changes.pop("texts", {}), changes.pop("digest", "")
        with begin(name=name, **{**changes, "tags": {**tags, **changes.get("tags", {})}}) as run:
            for step, value in enumerate(metrics.get("val_volume/dice", ()), 1):
                run.log_metrics({"val_volume/dice": value}, step)
            run.log_metrics({key: value for key, value in metrics.items() if isinstance(value, float)}, 1)
            for path, text in texts.items():
                run.log_text(path, text)
            if digest:
                run.log_cohort(CohortInput(name="balls", digest=digest, context="evaluation", source="cohort.csv"))
        return now(run)

    return made


def evaluated(make: Make, source: RunInfo, values: dict[str, float | None], digest: str = "", **params: Any) -> RunInfo:
    rows = [
        "case,subject,status/ball,dice/mean,dice/foreground,dice/ball,hd95_mm/ball,surface_dice/ball",
        *(f"{case},{case[0]},present,,,{v},{v},{v}" for case, value in values.items() for v in [_text(value)]),
    ]
    found = [value for value in values.values() if value is not None]
    return make(
        f"{source.name} scored",
        source,
        kind="evaluate",
        params={"cohort": "balls", "split": "evaluation", **params},
        metrics={"evaluation/dice": sum(found) / len(found)},
        texts={"evaluation/cases.csv": "\n".join(rows) + "\n"},
        digest=digest,
    )


def _text(value: float | None) -> str:
    return "" if value is None else str(value)


def test_the_family_holds_ancestors_and_descendants_of_all_experiments_and_no_siblings(
    make: Make, store: MlflowStore
) -> None:
    root = make("root", metrics={"val_volume/dice": (0.5, 0.75, 0.25)}, params={"cohort": "a", "freeze.normal": ""})
    child = make("child", root, kind="finetune", experiment="other", params={"freeze.normal": "1,2,3"})
    make("sibling", root, kind="finetune")
    leaf = make("leaf", child, kind="finetune", experiment="third")
    evaluated(make, child, {"x": 0.5})
    newest = evaluated(make, child, {"x": 0.625})
    family = find_family(store, child)
    walked = [(family.members[member].name, depth) for member, _, depth in family.walk()]
    assert walked == [
        ("study/root", 0),
        ("other/child", 1),
        ("third/leaf", 2),
        ("study/child scored", 2),
        ("study/child scored", 2),
    ]
    assert family.members[root.id].best == ("val_volume/dice", 0.75)
    assert family.members[root.id].frozen == ""
    assert family.members[child.id].frozen == "normal 1-3"
    assert family.members[child.id].evaluations == ((("evaluation/dice", 0.625), "balls, evaluation"),)
    assert family.members[newest.id].best == ("evaluation/dice", 0.625)
    assert [member for member, _, _ in find_family(store, leaf).walk()] == [root.id, child.id, leaf.id]


def test_a_classification_has_its_own_scores(make: Make, store: MlflowStore) -> None:
    root = make("photos", metrics={"val/accuracy": 0.75, "val/loss": 0.5})
    make("scored", root, kind="evaluate", metrics={"evaluation/accuracy": 0.625}, params={"cohort": "c", "split": "s"})
    member = find_family(store, root).members[root.id]
    assert member.facts[-1] == "best val/accuracy 0.750, evaluation/accuracy 0.625 on c, s"


def test_every_source_is_found_and_the_larger_one_is_the_parent(make: Make, store: MlflowStore) -> None:
    small, large, far = make("small"), make("large"), make("far")
    mixed = make("mixed", small, large, shares=(0.25, 0.75), kind="transfer")
    later = make("later", far, mixed, shares=(0.4, 0.6), kind="transfer")
    assert [run.id for run in children(store, small)] == [mixed.id]
    family = find_family(store, mixed)
    assert set(family.members) == {small.id, large.id, mixed.id, later.id, far.id}
    assert family.children(large.id) == [mixed.id]
    assert family.children(small.id) == []
    assert set(family.roots()) == {small.id, large.id, far.id}
    assert family.origin(mixed.id) == [
        "from step_000000005, 75% of the parameters",
        "also from study/small, step_000000005, 25% of the parameters",
    ]
    assert lineage_html(family).count('class="edge also"') == 2


def test_a_source_that_is_gone_is_said(make: Make, store: MlflowStore) -> None:
    child = make("child", tags={"dmx.source_run_id": "f" * 32})
    family = find_family(store, child)
    assert family.members["f" * 32].title == "a run that the store has no more"
    assert "no more" in lineage_html(family)


def test_an_imported_network_names_its_file(make: Make, store: MlflowStore) -> None:
    run = make("old", kind="import", tags=file_source_tags(Path("/home/anna/model.ckpt"), "ab"))
    assert source_links(run) == []
    assert "import, FINISHED, from file model.ckpt" in find_family(store, run).members[run.id].facts


class Page(HTMLParser):
    """Counts tags and requires that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_takes_names_as_text() -> None:
    evil = "<script>alert(1)</script>\"'&"
    members = {
        "a": Member(id="a", name=f"x/{evil}", kind="train", cohort=evil, origin=evil),
        "b": Member(id="b", name="x/" + "long-" * 60, kind="new kind", frozen="normal " + "1 " * 60),
    }
    family = Family(run="b", members=members, links=(Link(source="a", child="b", checkpoint=evil),))
    html = lineage_html(family)
    page = Page()
    page.feed(html)
    tags = [tag for tag, _ in page.seen]
    assert page.open == []
    assert "script" not in tags
    assert tags.count("g") == 2
    assert tags.count("path") == 1
    assert [values["class"] for tag, values in page.seen if "named" in (values.get("class") or "")] == ["box named"]
    addresses = [value for _, values in page.seen for value in values.values() if re.match(r"\w+://", value or "")]
    assert addresses == ["http://www.w3.org/2000/svg"]
    texts = re.findall(r">([^<>]*)</text>", html)
    assert max(len(unescape(text)) for text in texts) == 88
    assert "long-" * 60 in html


def test_the_tree_fits_eighty_columns_and_marks_the_run(
    make: Make, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make("root", params={"cohort": "a"})
    child = make("child [of] root", root, kind="finetune", params={"freeze.normal": "1", "freeze.fc": "1"})
    console = Console(width=80, record=True, file=io.StringIO())
    monkeypatch.setattr(relations, "out", console)
    done = CliRunner().invoke(runs_command.app, ["lineage", child.id[:12], "--html", "out/family.html"])
    assert done.exit_code == 0, done.output
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    marked = [line for line in text.splitlines() if "this run" in line]
    assert len(marked) == 1
    assert f"study/child [of] root  {child.id[:8]}" in marked[0]
    assert "frozen: normal 1, fc 1" in text
    assert "study/root" in text.splitlines()[0]
    assert "child [of] root" in (project / "out/family.html").read_text()
    blocked = CliRunner().invoke(runs_command.app, ["lineage", child.id, "--html", "out"])
    assert "'out' cannot be written" in str(blocked.exception)


def test_runs_are_paired_by_their_newest_evaluations_on_the_same_cases(make: Make, store: MlflowStore) -> None:
    runs = [make(name) for name in ("one", "two", "three")]
    evaluated(make, runs[0], {"a1": 0.1, "b1": 0.1})
    evaluated(make, runs[0], {"a1": 0.5, "a2": 0.7, "b1": 0.25, "c1": None})
    evaluated(make, runs[1], {"a1": 0.75, "a2": 0.95, "b1": 0.75, "d1": 0.1})
    evaluated(make, runs[1], {"a1": 0.0, "b1": 0.0}, split="validation")
    found = paired_scores(store, runs)
    assert found is not None
    assert (found.cohort, found.split, found.unpaired) == ("balls", "evaluation", 2)
    assert [run.name for run in found.without] == ["three"]
    assert list(found.differences) == ["dice/ball", "hd95_mm/ball", "surface_dice/ball"]
    difference = found.differences["dice/ball"][runs[1].id]
    assert (difference.cases, difference.subjects) == (3, 2)
    assert difference.difference == pytest.approx((0.25 + 0.5) / 2)
    table = list(csv.DictReader(io.StringIO(comparison_csv(compare(runs), found))))
    column = f"study/two {runs[1].id[:8]}"
    values = {(row["what"], row["name"]): row[column] for row in table}
    assert float(values["paired difference", "dice/ball"]) == pytest.approx(0.375)
    assert float(values["case dice/ball", "d1"]) == 0.1
    assert [row["name"] for row in table if row["what"] == "case dice/ball"] == ["a1", "a2", "b1", "d1"]
    assert table[-1][f"study/one {runs[0].id[:8]}"] == ""


def test_without_common_cases_there_is_no_test(make: Make, store: MlflowStore) -> None:
    runs = [make(name) for name in ("one", "two")]
    scored = evaluated(make, runs[0], {"a": 0.5})
    assert paired_scores(store, runs) is None
    evaluated(make, runs[1], {"a": 0.5}, cohort="cubes")
    assert paired_scores(store, runs) is None
    empty = make("empty", runs[1], kind="evaluate", params={"cohort": "balls", "split": "evaluation"})
    assert paired_scores(store, [scored, empty]) is None
    assert read_text(store, empty.id, "evaluation/cases.csv") is None


ONE, OTHER = "1a" * 16, "2b" * 16


def test_cohorts_of_one_name_are_told_apart_by_what_they_hold(make: Make, store: MlflowStore) -> None:
    runs = [make(name) for name in ("one", "two")]
    for run, value in zip(runs, (0.25, 0.5), strict=True):
        evaluated(make, run, {"a": value, "b": value}, digest=ONE)
    newest = evaluated(make, runs[0], {"x": 0.75}, digest=OTHER)
    assert newest.cohorts["evaluation"] == OTHER[: len(newest.cohorts["evaluation"])]
    found = paired_scores(store, runs)
    assert found is not None
    assert found.differences["dice/ball"][runs[1].id].difference == pytest.approx(0.25)
    shown = find_family(store, runs[0]).members
    assert {(score, where) for (_, score), where in shown[runs[0].id].evaluations} == {
        (0.25, "balls, evaluation, #1a1a1a1a"),
        (0.75, "balls, evaluation, #2b2b2b2b"),
    }
    assert shown[newest.id].cohort == "balls, evaluation, #2b2b2b2b"
    listed = " ".join(CliRunner().invoke(runs_command.app, ["list"], env={"COLUMNS": "200"}).output.split())
    assert "#1a1a1a1a" in listed
    assert "#2b2b2b2b" in listed


def test_the_same_cases_under_another_name_are_paired(make: Make, store: MlflowStore) -> None:
    runs = [make(name) for name in ("one", "two")]
    evaluated(make, runs[0], {"a": 0.5}, digest=ONE)
    evaluated(make, runs[1], {"a": 0.75}, digest=ONE, cohort="copied", split="all")
    found = paired_scores(store, runs)
    assert found is not None
    assert found.differences["dice/ball"][runs[1].id].difference == 0.25
    assert "#" not in "".join(CliRunner().invoke(runs_command.app, ["list"]).output)


def test_without_common_cases_a_comparison_says_what_was_scored(make: Make, store: MlflowStore) -> None:
    runs = [make(name) for name in ("one", "two", "three")]
    evaluated(make, runs[0], {"a": 0.5}, digest=ONE)
    evaluated(make, runs[1], {"a": 0.5}, digest=OTHER)
    assert paired_scores(store, runs) is None
    text = " ".join(CliRunner().invoke(runs_command.app, ["compare", *(run.id for run in runs)]).output.split())
    assert f"one {runs[0].id[:8]}: balls, evaluation, #1a1a1a1a two {runs[1].id[:8]}: balls, evaluation, #2b2b" in text
    assert f"three {runs[2].id[:8]}: not evaluated" in text


def test_a_missed_class_is_left_out_of_a_difference_and_said(make: Make, store: MlflowStore) -> None:
    runs = [make(name) for name in ("one", "two")]
    evaluated(make, runs[0], {"a": 9.0, "b": 8.0, "c": 4.0}, digest=ONE)
    evaluated(make, runs[1], {"a": None, "b": None, "c": 4.0}, digest=ONE)
    found = paired_scores(store, runs)
    assert found is not None
    assert found.differences["hd95_mm/ball"][runs[1].id].difference == 0
    left = found.left_out["hd95_mm/ball"][runs[1].id]
    assert (left.first, left.other) == (2, 0)
    text = " ".join(CliRunner().invoke(runs_command.app, ["compare", *(run.id for run in runs)]).output.split())
    assert f"hd95_mm/ball: left out 2 cases that two {runs[1].id[:8]} has no value of, and 0" in text


@pytest.mark.parametrize(
    ("changed", "kept"),
    [({"surface": "elements"}, {"dice/ball"}), ({"tolerance_mm": 2.0}, {"dice/ball", "hd95_mm/ball"})],
)
def test_surfaces_that_were_measured_in_two_ways_are_not_compared(
    make: Make, store: MlflowStore, changed: dict[str, object], kept: set[str]
) -> None:
    runs = [make(name) for name in ("one", "two")]
    evaluated(make, runs[0], {"a": 0.5}, digest=ONE)
    evaluated(make, runs[1], {"a": 0.75}, digest=ONE, **changed)
    found = paired_scores(store, runs)
    assert found is not None
    assert {metric for metric, differences in found.differences.items() if differences} == kept
    assert found.otherwise == (runs[1].id,)
    text = " ".join(CliRunner().invoke(runs_command.app, ["compare", *(run.id for run in runs)]).output.split())
    assert "has measured surfaces in another way" in text


def test_each_mean_of_an_evaluation_has_the_number_of_its_cases(
    make: Make, store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The console keeps the width that it had when it was made.
    monkeypatch.setattr(runs_command.out, "_width", 200)
    counts = {"present": 3.0, "missed": 2.0, "false_positive": 1.0, "absent": 0.0}
    metrics = {
        "evaluation/dice": 0.5,
        "evaluation/dice/ball": 0.5,
        "evaluation/hd95_mm/ball": 4.5,
        "evaluation/cases": 6.0,
        "evaluation/missed": 2.0,
        "evaluation/false_positive": 1.0,
        **{f"evaluation/{status}/ball": count for status, count in counts.items()},
    }
    run = make("scored", make("one"), kind="evaluate", metrics=metrics, params={"cohort": "balls", "split": "all"})
    found = {key: cases_behind(metrics, key) for key in metrics}
    assert {key: n for key, n in found.items() if n is not None} == {
        "evaluation/dice/ball": 6,
        "evaluation/hd95_mm/ball": 3,
    }
    listed = CliRunner().invoke(runs_command.app, ["list"]).output
    assert "balls, all: 6, 2 missed, 1 false positive" in " ".join(listed.split())
    assert cases_behind({"evaluation/hd95_mm/ball": 4.5}, "evaluation/hd95_mm/ball") is None
    text = CliRunner().invoke(runs_command.app, ["compare", run.id, run.id]).output
    assert "4.5 (3)" in text


def test_a_comparison_is_printed_and_written(make: Make, store: MlflowStore, project: Path) -> None:
    epochs = {"history/epochs.csv": "step,epoch,val/loss,val_volume/dice\n5,0,0.5,\n10,1,0.25,0.5\n"}
    runs = [make(name, texts=epochs, metrics={"val/dice": 0.5, "odd": 1.0}) for name in ("one", "two", "three")]
    scored = [evaluated(make, run, {"a": 0.25 * place, "b": 0.5}) for place, run in enumerate(runs)]
    done = CliRunner().invoke(runs_command.app, ["compare", *(run.id for run in runs), "-o", "out"])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "balls, split evaluation: differences to one" in text
    assert "+0.125 1 2" in text
    assert "from 10 on" in text
    assert "not corrected for the number of comparisons" in text
    assert "1 more metrics" in text
    assert "/#/compare-runs?" in text
    assert (project / "out/compare.png").read_bytes().startswith(b"\x89PNG")
    assert (project / "out/compare.csv").read_text().startswith("what,name,study/one")
    rows = [{"step": 5.0, "epoch": 0.0, "val/loss": 0.5, "val_volume/dice": None}]
    found = histories(store, scored[:1])
    assert next(iter(found.values()))[:1] == rows
    assert next(iter(found)).startswith("study/one ")


def test_a_comparison_says_what_is_missing(make: Make) -> None:
    runs = [make(name) for name in ("one", "two")]
    done = CliRunner().invoke(runs_command.app, ["compare", *(run.id for run in runs), "-o", "out"])
    assert "no paired test" in " ".join(done.output.split())
    assert "None of them has learning curves." in done.output


def test_files_of_another_machine_are_fetched(remote: Any, begin: Begin) -> None:
    with begin(remote) as run:
        run.log_text("a/b.txt", "text")
    assert read_text(remote, run.info.id, "a/b.txt") == "text"
    assert read_text(remote, run.info.id, "a/c.txt") is None
