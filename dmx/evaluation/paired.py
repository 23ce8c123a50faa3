"""Two networks on the same cases: the difference of their scores per subject, with an interval and a test."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmx.errors import ConfigError
from dmx.evaluation.summary import FEWEST_SUBJECTS
from dmx.seeding import derive


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How much better the second of two networks is.

    Attributes:
        cases: Cases that have a score in both.
        subjects: Subjects of these cases.
        first: Mean over these subjects of the first network.
        second: The same of the second one.
        difference: ``second - first``.
        low: Lower end of the confidence interval of the difference; None for fewer than ``FEWEST_SUBJECTS``.
        high: Upper end.
        p: Two-sided p of the Wilcoxon signed-rank test; None for fewer than two subjects.
    """

    cases: int
    subjects: int
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float | None


def paired_difference(
    first: Mapping[str, float],
    second: Mapping[str, float],
    subjects: Mapping[str, str],
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 10_000,
) -> PairedDifference | None:
    """Compare the scores of two networks on the cases that both have scored.

    Scans of one person are not independent, so the cases of a subject are averaged first, and subjects are what is
    resampled and ranked. The interval is the percentile bootstrap of the mean difference (Efron and Tibshirani 1993,
    chapter 13); the test is Wilcoxon's signed-rank test (Wilcoxon 1945), in which subjects without any difference are
    left out.

    Args:
        first: Case → score.
        second: The same of the other network.
        subjects: Case → subject, at least of the cases that both have.
        seed: Seed of the draws.
        level: Confidence level.
        resamples: Number of draws.

    Returns:
        The difference; ``None`` where no case is in both.

    Raises:
        ConfigError: The subject of a case is unknown.
    """
    cases = sorted(first.keys() & second.keys())
    if not cases:
        return None
    unknown = [case for case in cases if case not in subjects]
    if unknown:
        raise ConfigError(f"Each case needs its subject, got none for {', '.join(unknown[:5])}.")
    names, index = np.unique([subjects[case] for case in cases], return_inverse=True)
    means = [_means(scores, cases, index) for scores in (first, second)]
    differences = means[1] - means[0]
    low = high = None
    if len(names) >= FEWEST_SUBJECTS:
        low, high = _interval(differences, seed=seed, level=level, resamples=resamples)
    return PairedDifference(
        cases=len(cases),
        subjects=len(names),
        first=float(means[0].mean()),
        second=float(means[1].mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=_signed_rank(differences) if len(names) > 1 else None,
    )


def _means(scores: Mapping[str, float], cases: list[str], index: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the mean of each subject's cases."""
    values = np.array([scores[case] for case in cases], dtype=np.float64)
    return np.bincount(index, weights=values) / np.bincount(index)


def _interval(differences: NDArray[np.float64], *, seed: int, level: float, resamples: int) -> tuple[float, float]:
    generator = np.random.default_rng(derive(seed, "paired") & (2**64 - 1))
    draws = generator.integers(len(differences), size=(resamples, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _signed_rank(differences: NDArray[np.float64]) -> float:
    if not differences.any():
        # Nothing speaks against equality; scipy has no rank to sum up.
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue)
