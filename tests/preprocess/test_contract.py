import json
from dataclasses import replace

import numpy as np
import pytest

from dmx.cohort.case import Case
from dmx.config.sections import CohortSection, NormalizeSection, PreprocessSection
from dmx.errors import CheckpointError, CohortError, ConfigError
from dmx.preprocess.contract import Contract, median_spacing, resolve_contract, with_written_values

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


def resolved(names=(), labels=None, *, classes=("background", "a", "b", "c"), values=None):
    section = CohortSection(manifest="m.csv", classes=names, labels=labels or {})
    contract = resolve_contract(
        section, PreprocessSection(), cases=[], channels=("t1",), classes=classes, label_values=values
    )
    return {value: contract.class_of(value) for value in (0, 1, 2, 3, 4, 17)}, contract


def test_values_are_those_of_the_manifest_and_of_the_experiment() -> None:
    plain, contract = resolved()
    assert plain == {0: 0, 1: 1, 2: 2, 3: 3, 4: None, 17: None}
    assert contract.written_values == (0, 1, 2, 3)
    brats = {0: 0, 1: 1, 2: 2, 4: 3}
    noted, contract = resolved(values=brats)
    assert noted == {0: 0, 1: 1, 2: 2, 3: None, 4: 3, 17: None}
    by_index, _ = resolved(labels={4: 3})
    assert by_index == {0: 0, 1: 1, 2: 2, 3: 3, 4: 3, 17: None}
    by_name, _ = resolved(labels={4: "c"})
    assert by_name == noted
    both, _ = resolved(labels={17: "a"}, values=brats)
    assert both == {0: 0, 1: None, 2: 2, 3: None, 4: 3, 17: 1}
    merged, _ = resolved(("background", "tumor"), {2: 1, 3: 1})
    assert merged == {0: 0, 1: 1, 2: 1, 3: 1, 4: None, 17: None}
    with pytest.raises(CohortError, match=r"cohort\.labels names the class 'd', allowed are background, a, b, c"):
        resolved(labels={4: "d"})


def test_classes_that_the_experiment_names_are_those_of_the_manifest_by_name() -> None:
    turned, _ = resolved(("background", "c", "b", "a"))
    assert turned == {0: 0, 1: 3, 2: 2, 3: 1, 4: None, 17: None}
    renamed, _ = resolved(("background", "x", "y", "z"))
    assert renamed == {0: 0, 1: 1, 2: 2, 3: 3, 4: None, 17: None}
    fewer, _ = resolved(("background", "c"), {1: 0})
    assert fewer == {0: 0, 1: 0, 2: None, 3: 1, 4: None, 17: None}


@pytest.mark.parametrize(
    ("labels", "found", "written"),
    [
        ({}, (0, 1, 2, 3), ()),
        ({4: 3}, (0, 1, 2, 4), (0, 1, 2, 4)),
        ({4: "c"}, (0, 1, 2), (0, 1, 2, 4)),
        ({4: 2}, (0, 1, 2, 4), ()),
        ({2: 1, 4: 1}, (0, 2, 4), (0, 2, 5, 3)),
        ({5: 0}, (0, 1, 2, 3, 5), ()),
        ({3: 1, 1: 3}, (0, 1, 3), (0, 3, 2, 1)),
    ],
)
def test_predictions_get_the_lowest_value_of_each_class(labels, found, written) -> None:
    _, contract = resolved(labels=labels)
    after = with_written_values(contract, found)
    assert after.label_values == written
    assert len(set(after.written_values)) == len(after.classes)
    assert after.key() == contract.key()
    assert Contract.from_dict(json.loads(json.dumps(after.as_dict()))) == after


def test_a_contract_from_before_there_were_label_values_is_read() -> None:
    _, contract = resolved()
    values = contract.as_dict()
    del values["label_values"], values["labels_complete"]
    assert Contract.from_dict(values) == contract
    assert Contract.from_dict(values).written_values == (0, 1, 2, 3)
