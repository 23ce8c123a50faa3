import json
from dataclasses import replace

import numpy as np
import pytest

from dmx.cohort.case import Case
from dmx.config.sections import CohortSection, NormalizeSection, PreprocessSection
from dmx.errors import CheckpointError, CohortError, ConfigError
from dmx.preprocess.contract import Contract, median_spacing, resolve_contract

FULL = Contract(
    channels=("t1", "t2"),
    classes=("background", "lesion"),
    labels={4: 1, 2: 0},
    fill={"t2": -1.5},
    preprocess=PreprocessSection(
        spacing=(1.0, 2.0, 3.0),
        crop_to_roi=True,
        normalize=NormalizeSection(
            percentiles=(5.0, 95.0), channels=("t1",), fixed={"t2": (0.0, 9.0, 4.0, 1.0)}, outside="zero"
        ),
    ),
    spacing=(1.0, 2.0, 3.0),
    pad_before=(8, 8, 8),
    pad_after=(8, 8, 7),
    compatibility="deepmedic",
)


def test_a_contract_survives_json() -> None:
    again = Contract.from_dict(json.loads(json.dumps(FULL.as_dict())))
    assert again == FULL
    assert again.key() == FULL.key()


def test_a_contract_of_an_older_checkpoint_gets_the_defaults() -> None:
    values = FULL.as_dict()
    for name in ("fixed", "outside"):
        del values["preprocess"]["normalize"][name]
    del values["preprocess"]["foreground"]
    normalize = replace(FULL.preprocess.normalize, fixed={}, outside="scaled")
    assert Contract.from_dict(values) == replace(FULL, preprocess=replace(FULL.preprocess, normalize=normalize))


def test_the_key_follows_every_setting_but_not_the_order_of_a_mapping() -> None:
    assert replace(FULL, labels={2: 0, 4: 1}).key() == FULL.key()
    changes = [
        replace(FULL, pad_after=(8, 8, 8)),
        replace(FULL, channels=("t2", "t1")),
        replace(FULL, labels={4: 1}),
        replace(FULL, preprocess=replace(FULL.preprocess, crop_margin=7)),
        replace(FULL, compatibility="none"),
    ]
    assert len({one.key() for one in [FULL, *changes]}) == 6


def test_what_cannot_be_read_is_one_sentence() -> None:
    with pytest.raises(CheckpointError, match="unknown key 'colour'"):
        Contract.from_dict({**FULL.as_dict(), "colour": 1})
    with pytest.raises(CheckpointError, match="spacing"):
        Contract.from_dict({key: value for key, value in FULL.as_dict().items() if key != "spacing"})


def test_unknown_channels_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'t11'.*Did you mean 't1'"):
        replace(FULL, fill={"t11": 0.0})
    with pytest.raises(ConfigError, match=r"normalize.fixed names the channel 't3'"):
        replace(FULL, preprocess=PreprocessSection(normalize=NormalizeSection(fixed={"t3": (0.0, 1.0, 0.0, 1.0)})))


def test_the_median_is_taken_in_the_axes_of_the_prepared_arrays(make_case) -> None:
    # Second case: the axes run S, R, A with 3, 1 and 2 mm.
    turned = np.array([[0.0, 1, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    cases = [make_case("a"), make_case("b", affine=turned), make_case("c", affine=np.diag([9.0, 9.0, 9.0, 1.0]))]
    assert median_spacing(cases, channels=("t1",)) == (1.0, 2.0, 3.0)
    assert median_spacing(cases, channels=("t1",), orientation_="native") == (3.0, 2.0, 3.0)
    with pytest.raises(CohortError, match="got none"):
        median_spacing([], channels=("t1",))
    with pytest.raises(CohortError, match="at least one of the channels"):
        median_spacing([Case("x", "x", {"t1": None})], channels=("t1",))


@pytest.mark.parametrize(
    ("spacing", "resolved"), [("off", None), ("median", (1.0, 2.0, 3.0)), ((2.0, 2.0, 2.0), (2.0, 2.0, 2.0))]
)
def test_resolving_gives_the_voxel_size_and_the_cohorts_names(make_case, spacing, resolved) -> None:
    contract = resolve_contract(
        CohortSection(manifest="m.csv"),
        PreprocessSection(spacing=spacing),
        cases=[make_case()],
        channels=("t1",),
        classes=("background", "a"),
    )
    assert contract.spacing == resolved
    assert (contract.channels, contract.classes) == (("t1",), ("background", "a"))
    chosen = CohortSection(manifest="m.csv", channels=("t2",), classes=("background", "b"))
    contract = resolve_contract(chosen, PreprocessSection(), cases=[], channels=("t1", "t2"), classes=("x", "y"))
    assert (contract.channels, contract.classes) == (("t2",), ("background", "b"))
