from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmx.cohort.case import Case, Cohort
from dmx.cohort.splits import k_fold, split_by_subject
from dmx.errors import CohortError


def cohort_of(subjects: int, *, sessions: int = 2) -> Cohort:
    cases = [
        Case(f"{subject}_{session}", f"s{subject}", {"t1": Path("a.nii")})
        for subject in range(subjects)
        for session in range(sessions)
    ]
    return Cohort("study", (), ("t1",), tuple(cases))


def splits(cohort: Cohort) -> dict[str, str]:
    return {case.name: case.split for case in cohort.cases}


FRACTIONS = {"training": 0.7, "validation": 0.1, "evaluation": 0.2}


@given(subjects=st.integers(3, 60), seed=st.integers(0, 100))
def test_subjects_stay_together_and_every_split_has_some(subjects: int, seed: int) -> None:
    split = split_by_subject(cohort_of(subjects), fractions=FRACTIONS, seed=seed)
    pairs = {(case.subject, case.split) for case in split.cases}
    counts = Counter(name for _, name in pairs)
    assert len(pairs) == subjects
    assert set(counts) == set(FRACTIONS)
    if subjects >= 10:
        assert all(abs(counts[name] - share * subjects) < 1 for name, share in FRACTIONS.items())


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    cohort = cohort_of(30)
    turned = replace(cohort, cases=cohort.cases[::-1])
    first = splits(split_by_subject(cohort, fractions=FRACTIONS, seed=1))
    assert first == splits(split_by_subject(turned, fractions=FRACTIONS, seed=1))
    assert first != splits(split_by_subject(cohort, fractions=FRACTIONS, seed=2))
    folds = splits(k_fold(cohort, fold=0, folds=5, seed=1))
    assert folds == splits(k_fold(turned, fold=0, folds=5, seed=1))
    assert folds != splits(k_fold(cohort, fold=0, folds=5, seed=2))


def test_each_subject_is_in_the_validation_of_one_fold_and_held_out_ones_in_none() -> None:
    cohort = cohort_of(23)
    cohort = replace(cohort, cases=(replace(cohort.cases[0], split="evaluation"), *cohort.cases[1:]))
    folds = [k_fold(cohort, fold=fold, folds=5, seed=3) for fold in range(5)]
    found = Counter(case.name for fold in folds for case in fold.in_split("validation"))
    held_out = {"0_0", "0_1"}
    assert found == Counter({case.name: 1 for case in cohort.cases if case.name not in held_out})
    for fold in folds:
        assert {case.name for case in fold.in_split("evaluation")} == held_out
        assert {len({case.subject for case in fold.in_split("validation")})} <= {4, 5}


@pytest.mark.parametrize(
    ("fractions", "problem"),
    [
        ({"training": 0.5}, "must add up to 1, got training 0.5"),
        ({}, "must add up to 1, got none"),
        ({"trainin": 1.0}, "Did you mean 'training'"),
        ({"training": 1.5, "validation": -0.5}, "between 0 and 1, got 1.5"),
        ({"training": float("nan")}, "between 0 and 1"),
        ({"training": 0.3, "validation": 0.3, "evaluation": 0.4}, "at least 3 subjects"),
    ],
)
def test_wrong_fractions_are_named(fractions: dict[str, float], problem: str) -> None:
    with pytest.raises(CohortError, match=problem):
        split_by_subject(cohort_of(2), fractions=fractions, seed=0)


def test_a_fraction_of_zero_leaves_the_split_empty() -> None:
    split = split_by_subject(cohort_of(4), fractions={"training": 1.0, "validation": 0.0}, seed=0)
    assert not split.in_split("validation")
    assert len(split.in_split("training")) == 8


@pytest.mark.parametrize(("fold", "folds"), [(0, 1), (0, 5), (2, 2), (-1, 2)])
def test_wrong_folds_are_named(fold: int, folds: int) -> None:
    with pytest.raises(CohortError, match="fold"):
        k_fold(cohort_of(4), fold=fold, folds=folds, seed=0)
