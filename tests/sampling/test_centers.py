import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmx.config.sections import SamplingSection
from dmx.errors import CohortError, ConfigError
from dmx.sampling.centers import (
    Category,
    Roster,
    categories,
    draw_center,
    fits,
    flat_draw,
    permuted,
    weighted_draw,
)
from dmx.sampling.source import WHOLE_IMAGE, CaseData
from dmx.sampling.spatial import AffineMap

HALVES = (Category("foreground", 0.5), Category("background", 0.5))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(-(2**63), 2**63 - 1))
def test_a_permutation_puts_each_index_in_one_place(length, key):
    assert sorted(permuted(i, length, key) for i in range(length)) == list(range(length))


@pytest.mark.parametrize("length", [2, 3, 5, 10])
def test_a_permutation_puts_an_index_anywhere_equally_often(length):
    counts = Counter(permuted(0, length, key) for key in range(600))
    assert all(abs(counts[place] - 600 / length) < 5 * math.sqrt(600 / length) for place in range(length))


def test_categories_get_normalized_shares():
    assert categories(SamplingSection(proportions=(3.0, 1.0)), 2) == (
        Category("foreground", 0.75),
        Category("background", 0.25),
    )
    assert [c.name for c in categories(SamplingSection(categories="per_class"), 3)] == ["class_0", "class_1", "class_2"]
    assert categories(SamplingSection(categories="uniform"), 2) == (Category("roi", 1.0),)
    assert categories(SamplingSection(categories="whole_image"), 2) == (Category(WHOLE_IMAGE, 1.0),)
    weighted = SamplingSection(weight_maps=("edge", "core"))
    assert [c.name for c in categories(weighted, 2)] == ["weight_edge", "weight_core"]


@pytest.mark.parametrize("section", [{"proportions": (1.0,)}, {"weight_maps": ("a", "b", "c")}])
def test_one_entry_per_category(section):
    with pytest.raises(ConfigError, match="2: foreground, background"):
        categories(SamplingSection(**section), 2)


def picks(roster, epoch, count):
    drawn = [roster.pick(epoch, n, count) for n in range(count)]
    return [(next(cases), category) for cases, category in drawn]


def test_an_epoch_meets_the_shares_and_visits_cases_evenly(make_case, make_source):
    source = make_source([make_case(str(n)) for n in range(7)])
    roster = Roster(source, (Category("foreground", 0.25), Category("background", 0.75)), cases_per_epoch=None, key=1)
    drawn = picks(roster, 0, 80)
    assert Counter(category for _, category in drawn) == {"foreground": 20, "background": 60}
    visits = Counter(case for case, _ in drawn)
    assert set(visits) == set(range(7))
    assert max(visits.values()) - min(visits.values()) <= 1
    assert picks(roster, 0, 80) == drawn
    assert picks(roster, 1, 80) != drawn


def test_a_category_that_cases_lack_goes_to_those_that_have_it(make_case, make_source):
    source = make_source([make_case(str(n), lesion=n in (1, 4, 5)) for n in range(6)])
    drawn = picks(Roster(source, HALVES, cases_per_epoch=None, key=1), 0, 60)
    foreground = Counter(case for case, category in drawn if category == "foreground")
    assert foreground == {1: 10, 4: 10, 5: 10}
    assert {case for case, category in drawn if category == "background"} == set(range(6))


def test_a_category_that_no_case_has_is_reported_and_shared_out(make_case, make_source):
    source = make_source([make_case(str(n), lesion=False) for n in range(2)])
    roster = Roster(source, HALVES, cases_per_epoch=None, key=1)
    assert roster.missing == ("foreground",)
    assert {category for _, category in picks(roster, 0, 10)} == {"background"}


def test_nothing_to_sample_from_is_an_error(make_case, make_source):
    source = make_source([make_case(lesion=False)])
    with pytest.raises(CohortError, match="foreground"):
        Roster(source, (Category("foreground", 1.0), Category("background", 0.0)), cases_per_epoch=None, key=1)


def test_shares_are_met_over_epochs_of_one_segment(make_case, make_source):
    roster = Roster(make_source([make_case()]), HALVES, cases_per_epoch=None, key=1)
    counts = Counter(picks(roster, epoch, 1)[0][1] for epoch in range(200))
    assert 70 < counts["foreground"] < 130


def test_an_epoch_draws_from_so_many_cases_and_the_next_from_others(make_case, make_source):
    source = make_source([make_case(str(n)) for n in range(8)])
    roster = Roster(source, HALVES, cases_per_epoch=3, key=1)
    epochs = [frozenset(case for case, _ in picks(roster, epoch, 30)) for epoch in range(6)]
    assert {len(cases) for cases in epochs} == {3}
    assert len(set(epochs)) > 1
    assert picks(roster, 0, 30) == picks(Roster(source, HALVES, cases_per_epoch=3, key=1), 0, 30)


def test_an_epoch_without_a_category_gives_its_share_to_the_others(make_case, make_source):
    source = make_source([make_case(str(n), lesion=n == 0) for n in range(6)])
    roster = Roster(source, HALVES, cases_per_epoch=1, key=1)
    for epoch in range(6):
        drawn = picks(roster, epoch, 10)
        expected = {"foreground", "background"} if drawn[0][0] == 0 else {"background"}
        assert {category for _, category in drawn} == expected


def test_draws_reach_every_voxel_of_a_large_category():
    count = 2**25 + 1
    assert flat_draw(count, 1 - 2**-53) == count - 1
    assert flat_draw(count, (2**24 + 1) / count + 1e-12) == 2**24 + 1
    assert flat_draw(count, 0.0) == 0


def test_weighted_draws_never_take_weight_0():
    cumulative = torch.tensor([0.0, 0.0, 1.0, 1.0, 4.0, 4.0], dtype=torch.float64)
    drawn = [weighted_draw(cumulative, u / 400) for u in range(400)]
    assert Counter(drawn) == {2: 100, 4: 300}
    assert weighted_draw(cumulative, 1 - 2**-53) == 4


def test_centers_belong_to_their_category(make_case):
    case = make_case()
    for category, label in (("foreground", 1), ("background", 0)):
        for key in range(30):
            assert case.labels_IJK[draw_center(case, category, key)] == label


def test_the_whole_image_and_weight_maps_ignore_the_roi(make_case):
    shape = (4, 5, 6)
    weights = torch.zeros(shape)
    weights[3, 4, 5], weights[0, 1, 0] = 3.0, 1.0
    case = CaseData("w", torch.zeros(1, *shape), weight_cumsums={"w": weights.double().flatten().cumsum(0)})
    drawn = Counter(draw_center(case, "weight_w", key) for key in range(200))
    assert set(drawn) == {(3, 4, 5), (0, 1, 0)}
    assert drawn[3, 4, 5] > 2 * drawn[0, 1, 0]
    assert len({draw_center(case, WHOLE_IMAGE, key) for key in range(400)}) > 100


@pytest.mark.parametrize("category", ["background", "foreground", WHOLE_IMAGE, "weight_w"])
def test_in_compatibility_mode_the_whole_segment_lies_in_the_volume(make_case, category):
    base = make_case()
    weights = torch.ones(20, 18, 16, dtype=torch.float64)
    case = CaseData("a", base.channels_CIJK, base.labels_IJK, None, base.centers, {"w": weights.flatten().cumsum(0)})
    # Only two centers of the volume fit a segment this large, so that they must be listed.
    for segment in ((9, 8, 7), (20, 18, 15)):
        centers = {draw_center(case, category, key, segment=segment) for key in range(20)}
        if category == "foreground" and segment == (20, 18, 15):
            assert centers == {None}
        else:
            assert fits(torch.tensor(list(centers)), segment, (20, 18, 16)).all()
    assert draw_center(case, category, 1, segment=(21, 3, 3)) is None


def test_centers_follow_the_image_when_it_moves(make_case):
    case = make_case()
    image = AffineMap.along_axes((1.0, 1.0, 1.0), (2.0, -1.0, 0.0))
    plain, moved = draw_center(case, "foreground", 5), draw_center(case, "foreground", 5, image=image)
    assert moved == (plain[0] + 2, plain[1] - 1, plain[2])


@pytest.mark.parametrize("number", range(3))
def test_valid_centers_are_those_of_deepmedic(golden, number):
    segment, shape = (tuple(sizes) for sizes in json.loads(str(golden[f"vmask{number}/args"])))
    expected = torch.from_numpy(golden[f"vmask{number}/out"]).bool()
    every = torch.cartesian_prod(*(torch.arange(n) for n in shape))
    assert torch.equal(fits(every, segment, shape).reshape(shape), expected)
    assert not torch.equal(fits(every, (segment[0] - 1, *segment[1:]), shape).reshape(shape), expected)


def test_listed_centers_are_drawn_by_their_weights():
    weights = torch.zeros(7, 7, 7, dtype=torch.float64)
    # A segment of 5 fits around 27 centers, too few for the first draws when most of the weight lies outside.
    weights[0], weights[3, 3, 3], weights[2, 3, 3] = 1e6, 3.0, 1.0
    case = CaseData("w", torch.zeros(1, 7, 7, 7), weight_cumsums={"w": weights.flatten().cumsum(0)})
    drawn = Counter(draw_center(case, "weight_w", key, segment=(5, 5, 5)) for key in range(400))
    assert set(drawn) == {(3, 3, 3), (2, 3, 3)}
    assert 240 < drawn[3, 3, 3] < 360


def test_a_permutation_is_the_same_in_every_version():
    # The order of an epoch's cases follows from it: a resumed training must find the one it began with.
    assert [permuted(n, 10, 3) for n in range(10)] == [2, 1, 7, 9, 5, 8, 6, 0, 4, 3]
