from dataclasses import replace

import numpy as np

from dmx.cohort.case import Cohort
from dmx.preprocess.kept import KeptVolume, kept_csv, kept_warnings, resampled_volumes
from tests.preprocess.conftest import MakeCase

MM = (2.0, 2.0, 2.0)
BAD = [KeptVolume("a", "tumor", 1.0, 0.0), KeptVolume("b", "tumor", 2.0, 1.8), KeptVolume("c", "tumor", 1.0, 3.0)]


def test_a_class_that_vanishes_shrinks_or_grows_is_a_warning_each() -> None:
    gone, less, more = kept_warnings(BAD, spacing=MM)
    assert gone.startswith("At voxels of 2 x 2 x 2 mm class 'tumor' vanishes in 1 of 3 cases: 'a'. Use a smaller")
    assert "loses more than 5 % of its volume in 1 of 3 cases, most in 'b' (90% is left)" in less
    assert "gains more than 25 % of its volume in 1 of 3 cases, most in 'c' (300%)" in more
    fine = [KeptVolume("a", "tumor", 1.0, 0.96), KeptVolume("b", "roi", 1.0, 1.04)]
    assert kept_warnings(fine, spacing=MM) == []
    (cut,) = kept_warnings([KeptVolume("a", "roi", 1.0, 0.5)], spacing=None)
    assert cut.startswith("After cropping the roi loses")
    assert kept_csv(BAD).splitlines()[2] == "b,tumor,2,1.8,0.9000"


def test_what_a_voxel_size_leaves_is_known_before_a_training(make_case: MakeCase) -> None:
    case = make_case()
    cohort = Cohort(name="one", classes=("background", "a", "b"), channels=("t1",), cases=(case,))
    rows = {row.name: row for row in resampled_volumes(cohort, (1.0, 1.0, 1.0))}
    assert set(rows) == {"a", "b", "roi"}
    assert np.isclose(rows["roi"].file_ml, 5 * 6 * 4 * 6 / 1000)
    assert 0.9 < rows["roi"].share < 1.1
    assert resampled_volumes(cohort, (1.0, 2.0, 3.0)) == []
    assert resampled_volumes(replace(cohort, cases=()), MM) == []
