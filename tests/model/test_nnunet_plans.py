"""nnU-Net's plans and datasets in our terms; no network is built."""

from typing import Any

import pytest

from dmx.config.data import NormalizeSection
from dmx.errors import ModelError
from dmx.model.nnunet_plans import NnUNetModel, read_plans
from tests.model import nnunet_folder


def read(plans: dict[str, Any] | None = None, *, configuration: str = "3d_fullres", **described: Any) -> NnUNetModel:
    plans = plans or nnunet_folder.plans()
    return read_plans(plans, nnunet_folder.dataset(**described), configuration=configuration)


def normalized(*schemes: str, masked: tuple[bool, bool] = (False, False), **plans: Any) -> NormalizeSection:
    settings = nnunet_folder.plans(normalization_schemes=list(schemes), use_mask_for_norm=list(masked))
    return read({**settings, **plans}).preprocess.normalize


@pytest.mark.parametrize(
    ("transposed", "patch", "kernel", "mirrored"),
    [
        # nnU-Net's axes are k, j, i.
        ([0, 1, 2], (16, 12, 8), [3, 3, 1], (0, 2)),
        # They are i, k, j.
        ([2, 0, 1], (8, 16, 12), [1, 3, 3], (0, 1)),
        # They are j, i, k.
        ([1, 2, 0], (12, 8, 16), [3, 1, 3], (1, 2)),
    ],
)
def test_everything_along_axes_is_turned(
    transposed: list[int], patch: tuple[int, ...], kernel: list[int], mirrored: tuple[int, ...]
) -> None:
    model = read({**nnunet_folder.plans(), "transpose_forward": transposed})
    assert model.patch == patch
    assert model.section.arguments["kernel_sizes"][0] == kernel
    spacing = dict(zip((8, 12, 16), (2.0, 1.0, 1.0), strict=True))
    assert model.preprocess.spacing == tuple(spacing[size] for size in patch)
    assert model.mirrored((0, 2)) == mirrored
    assert model.mirrored(()) == ()


def test_a_configuration_inherits() -> None:
    plans = nnunet_folder.plans()
    plans["configurations"]["small"] = {"inherits_from": "3d_fullres", "patch_size": [8, 8, 8]}
    plans["configurations"]["smaller"] = {"inherits_from": "small", "spacing": [3.0, 3.0, 3.0]}
    model = read(plans, configuration="smaller")
    assert (model.patch, model.preprocess.spacing) == ((8, 8, 8), (3.0, 3.0, 3.0))
    plans["configurations"]["small"]["inherits_from"] = "smaller"
    for name in ("smaller", "nothing"):
        with pytest.raises(ModelError, match="have no configuration"):
            read(plans, configuration=name)


def test_scans_are_measured_as_nnunet_measures_them() -> None:
    zscore = ("ZScoreNormalization", "ZScoreNormalization")
    assert normalized(*zscore) == NormalizeSection(region="image")
    masked = normalized(*zscore, masked=(True, True))
    assert masked == NormalizeSection(region="foreground", outside="zero")
    preprocess = read().preprocess
    assert (preprocess.crop_to_roi, preprocess.crop_margin, preprocess.foreground) == (True, 0, "nonzero")


def test_ct_is_scaled_by_the_numbers_of_the_training_whatever_the_other_channel_is() -> None:
    ct = (-10.0, 200.0, 90.0, 40.0)
    both = normalized("CTNormalization", "CTNormalization")
    assert both == NormalizeSection(method="none", fixed={"T1": ct, "FLAIR": ct})
    assert normalized("CTNormalization", "NoNormalization") == NormalizeSection(method="none", fixed={"T1": ct})
    mixed = normalized("CTNormalization", "ZScoreNormalization", masked=(False, True))
    assert mixed == NormalizeSection(region="foreground", outside="zero", channels=("FLAIR",), fixed={"T1": ct})
    rescaled = normalized("RGBTo01Normalization", "RescaleTo01Normalization")
    assert rescaled.fixed == {"T1": (0.0, 255.0, 0.0, 255.0)}
    assert (rescaled.method, rescaled.channels) == ("range", ("FLAIR",))
    older = nnunet_folder.plans(normalization_schemes=["CTNormalization", "NoNormalization"])
    older["foreground_intensity_properties_by_modality"] = older.pop("foreground_intensity_properties_per_channel")
    assert read(older).preprocess.normalize.fixed == {"T1": ct}


@pytest.mark.parametrize(
    ("schemes", "masked", "plans", "words"),
    [
        (("ZScoreNormalization", "RescaleTo01Normalization"), (False, False), {}, "in one way here, apart from CT"),
        (("ZScoreNormalization", "ZScoreNormalization"), (True, False), {}, "in one way here"),
        (("ZScoreNormalization",), (False, False), {}, "normalization_schemes of 2 channels"),
        (
            ("CTNormalization", "CTNormalization"),
            (False, False),
            {"foreground_intensity_properties_per_channel": {"0": {}}},
            "lack intensities of channel 0",
        ),
    ],
)
def test_a_normalization_without_counterpart_is_one_sentence(
    schemes: tuple[str, ...], masked: tuple[bool, bool], plans: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        normalized(*schemes, masked=masked, **plans)


def test_the_reader_decides_how_scans_are_turned() -> None:
    for reader, orientation in (
        ("SimpleITKIO", "native"),
        ("NibabelIO", "native"),
        ("NibabelIOWithReorient", "RAS"),
        ("SimpleITKIOWithReorient", "RAS"),
    ):
        assert read({**nnunet_folder.plans(), "image_reader_writer": reader}).preprocess.orientation == orientation
    unknown = read({**nnunet_folder.plans(), "image_reader_writer": "Tiff3DIO"})
    assert unknown.preprocess.orientation == "native"
    assert any("Tiff3DIO, which dmx does not know" in note for note in unknown.notes)


def test_names_come_from_the_dataset() -> None:
    labels = {"shell": [2], "background": 0, "ball": 1, "ignore": 3}
    model = read(labels=labels)
    assert model.outputs == ("background", "ball", "shell")
    assert model.labels.ignore == 3
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    overlapping = read(labels=regions, regions_class_order=[1, 2]).labels
    assert (overlapping.regions, overlapping.order) == ({"whole": (1, 2), "core": (2,)}, (1, 2))
    twice = read(channel_names={"1": "zscore", "0": "zscore"})
    assert twice.channels == ("zscore_0", "zscore_1")
    assert any("share a name" in note for note in twice.notes)
    plans, described = nnunet_folder.plans(), nnunet_folder.dataset()
    chosen = read_plans(
        plans, described, configuration="3d_fullres", channels=("a", "b"), classes=("none", "some", "more")
    )
    assert (chosen.channels, chosen.outputs) == (("a", "b"), ("none", "some", "more"))
    for wrong in ({"labels": None}, {"labels": {"background": "zero"}}):
        with pytest.raises(ModelError, match=r"dataset\.json"):
            read(**wrong)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv_op": "torch.nn.Conv2d"}, "must be 3D"),
        ({"strides": None}, "strides of each stage"),
        ({"kernel_sizes": [[3, 3]] * 3}, "three numbers per size"),
    ],
)
def test_an_architecture_that_is_not_3d_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    plans = nnunet_folder.plans()
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= changes
    with pytest.raises(ModelError, match=words):
        read(plans)


def test_a_single_number_holds_for_all_axes() -> None:
    plans = nnunet_folder.plans()
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= {
        "kernel_sizes": 3,
        "strides": [1, 2, 2],
        "deep_supervision": True,
    }
    arguments = read(plans).section.arguments
    assert (arguments["kernel_sizes"], arguments["strides"]) == (3, [1, 2, 2])
    assert not {"conv_op", "deep_supervision"} & set(arguments)
    del plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    with pytest.raises(ModelError, match="no arch_kwargs"):
        read(plans)
