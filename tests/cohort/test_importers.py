import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmx.cohort.importers import import_cohort
from dmx.cohort.importers.deepmedic import import_deepmedic
from dmx.cohort.importers.imported import Imported
from dmx.cohort.importers.pattern import Patterns, import_by_pattern
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.volume import read_volume
from dmx.errors import CohortError

Write = Callable[..., Path]


def read(source: Path, **options: Any) -> Imported:
    options = {"patterns": Patterns({}), "split_dir": source.parent / "split"} | options
    return import_cohort(source, **options)


def write_json(folder: Path, **changes: Any) -> Path:
    content = {
        "name": "Brain",
        "modality": {"0": "FLAIR", "1": "T1+C"},
        "labels": {"0": "background", "1": "edema", "2": "enhancing tumor"},
        "training": [{"image": "./imagesTr/b1.nii.gz", "label": "./labelsTr/b1.nii.gz"}],
        "test": ["./imagesTs/b2.nii.gz"],
    }
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not None}))
    return folder


def test_a_decathlon_scan_of_several_channels_is_split(tmp_path: Path, write_scan: Write) -> None:
    folder = write_json(tmp_path / "task")
    array = np.arange(120, dtype=np.int16).reshape(3, 4, 5, 2)
    write_scan("task/imagesTr/b1.nii.gz", array)
    calls: list[tuple[int, int]] = []
    imported = read(folder, progress=lambda done, total: calls.append((done, total)))
    cohort = imported.cohort
    assert (cohort.name, cohort.channels) == ("Brain", ("FLAIR", "T1_C"))
    assert cohort.classes == ("background", "edema", "enhancing_tumor")
    assert imported.notes == ("1 test case without label map: left out.",)
    assert calls == [(1, 1)]
    case = cohort.cases[0]
    assert (case.name, case.subject, case.split) == ("b1", "b1", "")
    assert case.label_map == folder / "labelsTr" / "b1.nii.gz"
    for index, path in enumerate(case.channels.values()):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array, array[..., index])
        np.testing.assert_allclose(volume.spacing, (2.0, 1.5, 1.0))
        assert path.parent == tmp_path / "split"
    before = case.channels["FLAIR"].stat().st_mtime_ns
    assert (
        read(folder / "dataset.json", split_dir=tmp_path / "split").cohort.cases[0].channels["FLAIR"].stat().st_mtime_ns
        == before
    )


def test_a_corrected_dataset_json_gives_each_channel_its_own_volume(tmp_path: Path, write_scan: Write) -> None:
    array = np.arange(120, dtype=np.int16).reshape(3, 4, 5, 2)
    folder = write_json(tmp_path / "task")
    scan = write_scan("task/imagesTr/b1.nii.gz", array)
    read(folder)
    write_json(folder, modality={"0": "T1+C", "1": "FLAIR"})
    channels = read(folder).cohort.cases[0].channels
    np.testing.assert_array_equal(read_volume(channels["T1_C"]).array, array[..., 0])
    np.testing.assert_array_equal(read_volume(channels["FLAIR"]).array, array[..., 1])
    # A scan that is older than what was written, but holds something else; and a file that somebody changed.
    write_scan("task/imagesTr/b1.nii.gz", array + 1)
    os.utime(scan, (1e9, 1e9))
    channels = read(folder).cohort.cases[0].channels
    np.testing.assert_array_equal(read_volume(channels["T1_C"]).array, array[..., 0] + 1)
    channels["T1_C"].write_bytes(channels["FLAIR"].read_bytes())
    again = read(folder).cohort.cases[0].channels["T1_C"]
    np.testing.assert_array_equal(read_volume(again).array, array[..., 0] + 1)


def test_a_4d_scan_with_another_number_of_channels_is_refused(tmp_path: Path, write_scan: Write) -> None:
    folder = write_json(tmp_path / "task")
    write_scan("task/imagesTr/b1.nii.gz", np.zeros((3, 4, 5, 3), np.int16))
    with pytest.raises(CohortError, match=r"must hold the 2 channels FLAIR, T1_C, got shape \(3, 4, 5, 3\)"):
        read(folder)


NNUNET = {
    "modality": None,
    "training": None,
    "test": None,
    "channel_names": {"0": "T2", "1": "ADC"},
    "labels": {"background": 0, "PZ": 1, "TZ": 2},
    "file_ending": ".nii.gz",
}


def test_nnunet_folders_are_read_with_labels_the_other_way_round(tmp_path: Path) -> None:
    folder = write_json(tmp_path / "Dataset005", **NNUNET)
    (folder / "labelsTr").mkdir()
    for name in ("p_2", "p_1"):
        (folder / "labelsTr" / f"{name}.nii.gz").write_bytes(b"")
    cohort = read(folder, subject=r"^(p)_").cohort
    assert cohort.classes == ("background", "PZ", "TZ")
    assert [case.name for case in cohort.cases] == ["p_1", "p_2"]
    assert cohort.cases[0].channels == {
        "T2": folder / "imagesTr" / "p_1_0000.nii.gz",
        "ADC": folder / "imagesTr" / "p_1_0001.nii.gz",
    }
    assert cohort.subjects == ("p",)


def test_nnunet_lists_are_read(tmp_path: Path) -> None:
    listed = {"a": {"images": ["x/1.nii.gz", "x/2.nii.gz"], "label": "y.nii.gz"}}
    cohort = read(write_json(tmp_path / "d", **NNUNET, dataset=listed)).cohort
    assert cohort.cases[0].channels["ADC"] == tmp_path / "d" / "x" / "2.nii.gz"
    with pytest.raises(CohortError, match="case 'a': must list 2 'images'"):
        read(write_json(tmp_path / "d", **NNUNET, dataset={"a": {"images": ["1"], "label": "y"}}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions_class_order must name one label for each of the 1"),
        ({"labels": {"background": 0, "whole": [1, 2]}, "regions_class_order": [3]}, r"consists of \[1, 2\]"),
        ({"labels": {"background": 0, "whole": [0, 1]}, "regions_class_order": [1]}, "one or more labels from 1"),
        ({"labels": {"background": 0, "whole": ["x", 1]}}, "must be a whole number, or a list"),
        ({"labels": {"background": 0, "a": 1, "ignore": [2, 3]}}, "'ignore' must be one whole number"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "each label its own name"),
        ({"labels": {"a": 1, "b": 2}}, "its own label from 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "its own label from 0"),
        ({"labels": {"background": 0, "a": "x"}}, "a number for each label"),
        ({"labels": None}, "must name its classes"),
        ({"modality": None}, "must name its channels"),
        ({"modality": {"0": "a", "2": "b"}}, "from 0 without gaps"),
        ({"modality": {"0": "a", "1": "?"}}, "must have different names"),
        ({"training": [{"image": "a.nii.gz"}]}, "training case 0: must name an 'image' and a 'label'"),
        ({"training": []}, "describes no training cases"),
        ({**NNUNET, "file_ending": ".nrrd"}, "must describe NIfTI files .* got '.nrrd'"),
    ],
)
def test_a_wrong_dataset_json_is_one_sentence(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(CohortError, match=problem):
        read(write_json(tmp_path / "d", **changes))


def test_classes_can_be_named(tmp_path: Path) -> None:
    one = {"modality": {"0": "a"}}
    folder = write_json(tmp_path / "d", **one, labels={"background": 0, "whole": [1, 2]})
    imported = read(folder, classes=("background", "x", "y"))
    assert imported.cohort.classes == ("background", "x", "y")
    assert any("regions whole are left out" in note for note in imported.notes)


def test_regions_and_the_ignored_label_of_nnunet_are_read(tmp_path: Path) -> None:
    labels = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    folder = write_json(tmp_path / "d", modality={"0": "a"}, labels=labels, regions_class_order=[1, 2, 3])
    cohort = read(folder).cohort
    assert cohort.regions.members == {"whole_tumor": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert (cohort.regions.order, cohort.ignore, cohort.classes) == ((1, 2, 3), 4, ())
    write_manifest(cohort, tmp_path / "m.csv")
    again = read_manifest(tmp_path / "m.csv")
    assert (again.regions, again.ignore, again.num_labels) == (cohort.regions, 4, 4)
    # A class that is beside the ignored label stays a class.
    folder = write_json(tmp_path / "d", modality={"0": "a"}, labels={"background": 0, "a": 1, "ignore": 2})
    assert (read(folder).cohort.classes, read(folder).cohort.ignore) == (("background", "a"), 2)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_json_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(CohortError, match=r"dataset.json' (is not valid JSON|must be a JSON object)"):
        read(tmp_path)


def test_the_hippocampus_cohort_is_imported(shared: Path, tmp_path: Path) -> None:
    cohort = read(shared / "data" / "hippocampus", split_dir=tmp_path).cohort
    assert len(cohort.cases) == 208
    assert cohort.classes == ("background", "Anterior", "Posterior")
    assert all(path.is_file() for case in cohort.cases for path in case.files().values())


def write_deepmedic(folder: Path, **lists: str) -> Path:
    files = {
        "model/modelConfig.cfg": "modelName = 'tiny'\nnumberOfOutputClasses = 3\n",
        "train/trainConfig.cfg": """\
# comment
folderForOutput = "../../out/"
channelsTraining = ["./lists/trainChannels_flair.cfg", "./lists/trainChannels_t1c.cfg"]
gtLabelsTraining = "./lists/trainGtLabels.cfg"
roiMasksTraining = "./lists/trainRoiMasks.cfg"
weightedMapsForSamplingEachCategoryTrain = ["./lists/w_core.cfg"]
channelsValidation = ["./lists/valChannels_flair.cfg", "./lists/valChannels_t1c.cfg"]
namesForPredictionsPerCaseVal = "./lists/valNames.cfg"
learningRate = 0.1 * 2
""",
        "train/lists/trainChannels_flair.cfg": "# flair\n../../data/p1/Flair.nii.gz\n\n/abs/p2/Flair.nii.gz\n",
        "train/lists/trainChannels_t1c.cfg": "../../data/p1/T1c.nii.gz\n-\n",
        "train/lists/trainGtLabels.cfg": "../../data/p1/gt.nii.gz\n/abs/p2/gt.nii.gz\n",
        "train/lists/trainRoiMasks.cfg": "../../data/p1/roi.nii.gz\n/abs/p2/roi.nii.gz\n",
        "train/lists/w_core.cfg": "w1.nii.gz\nw2.nii.gz\n",
        "train/lists/valChannels_flair.cfg": "/abs/p3/Flair.nii.gz\n",
        "train/lists/valChannels_t1c.cfg": "/abs/p3/T1c.nii.gz\n",
        "train/lists/valNames.cfg": "pred_p3.nii.gz\n",
        "test/testConfig.cfg": "channels = ['./a.cfg', './b.cfg']\ngtLabels = './c.cfg'\n",
        "test/a.cfg": "/abs/p3/Flair.nii.gz\n/abs/p4/Flair.nii.gz",
        "test/b.cfg": "/abs/p3/T1c.nii.gz\n/abs/p4/T1c.nii.gz",
        "test/c.cfg": "/abs/p3/gt.nii.gz\n/abs/p4/gt.nii.gz",
    }
    for name, text in (files | lists).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_deepmedic_folder_is_read(tmp_path: Path) -> None:
    folder = write_deepmedic(tmp_path / "brats")
    imported = read(folder)
    cohort = imported.cohort
    assert (cohort.name, cohort.channels) == ("brats", ("flair", "t1c"))
    assert cohort.classes == ("background", "class_1", "class_2")
    p1, p2, p3, p4 = cohort.cases
    assert [case.name for case in cohort.cases] == ["p1", "p2", "pred_p3", "p4"]
    assert [case.split for case in cohort.cases] == ["training", "training", "validation", "evaluation"]
    assert p1.channels["t1c"] == folder / "data" / "p1" / "T1c.nii.gz"
    assert p1.weight_maps == {"core": folder / "train" / "lists" / "w1.nii.gz"}
    assert p2.channels == {"flair": Path("/abs/p2/Flair.nii.gz"), "t1c": None}
    assert p2.roi == Path("/abs/p2/roi.nii.gz")
    assert (p3.label_map, p4.label_map) == (None, Path("/abs/p4/gt.nii.gz"))
    assert imported.notes == ("Case 'pred_p3' of evaluation is in validation already and stays there.",)


def test_nothing_of_a_deepmedic_file_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    attack = f"open({str(mark)!r}, 'w')\nchannelsTraining = [open({str(mark)!r}, 'w').name]\n"
    with pytest.raises(CohortError, match="'channelsTraining' must be a plain value; expressions are not executed"):
        import_deepmedic(write_deepmedic(tmp_path / "x", **{"train/trainConfig.cfg": attack}))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("lists", "problem"),
    [
        ({"train/lists/trainGtLabels.cfg": "one.nii"}, "list of label maps must have 2 lines .* got 1"),
        ({"train/lists/trainChannels_t1c.cfg": ""}, "list of channel 't1c' must have 2 lines .* got 0"),
        ({"train/trainConfig.cfg": "channelsTraining = ['./no.cfg']"}, "no.cfg' cannot be read: there is no such"),
        ({"train/trainConfig.cfg": "channelsTraining = 3"}, "must be a list of files, got 3"),
        ({"train/trainConfig.cfg": "channelsTraining = [3]"}, "must name files, got 3"),
        ({"test/testConfig.cfg": "channels = ['./a.cfg']"}, "same number of channels .* 2 in training and 1"),
        ({"test/a.cfg": "-\n-", "test/b.cfg": "-\n-", "test/c.cfg": "x\ny"}, "Case 1 of evaluation must have"),
    ],
)
def test_a_wrong_deepmedic_list_is_one_sentence(tmp_path: Path, lists: dict[str, str], problem: str) -> None:
    with pytest.raises(CohortError, match=problem):
        import_deepmedic(write_deepmedic(tmp_path / "x", **lists))


def test_deepmedic_tables_are_read(tmp_path: Path) -> None:
    table = "channel_t2,channel_t1,ground_truth,roi_mask,prediction_filename\nb.nii,a.nii,g.nii,-,p1.nii.gz\n"
    (tmp_path / "t.csv").write_text(table)
    imported = read(tmp_path / "t.csv", classes=("background", "x"), name="mine")
    case = imported.cohort.cases[0]
    assert imported.cohort.channels == ("t1", "t2")
    assert (imported.cohort.name, imported.cohort.classes) == ("mine", ("background", "x"))
    assert (case.name, case.label_map, case.roi, case.split) == ("p1", tmp_path / "g.nii", None, "")
    (tmp_path / "train.cfg").write_text("dataframe_train = './t.csv'\n")
    assert read(tmp_path / "train.cfg").cohort.cases[0].split == "training"
    for text, problem in (("a,b\n1,2", "must have rows and columns"), ('channel_a\n"x', "not valid CSV")):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(CohortError, match=problem):
            read(tmp_path / "t.csv")


def test_what_is_no_deepmedic_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text("/some/file.nii.gz\n")
    with pytest.raises(CohortError, match="is not a DeepMedic configuration"):
        read(tmp_path / "a.cfg")
    with pytest.raises(CohortError, match="has no DeepMedic configuration that names channels"):
        read(tmp_path)
    (tmp_path / "a.cfg").unlink()
    with pytest.raises(CohortError, match=r"must be or hold a dataset.json"):
        read(tmp_path)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


BIDS = (
    "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
    "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz",
    "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
    "sub-02/anat/sub-02_T1w.nii.gz",
    "derivatives/lesions/sub-01/ses-1/anat/sub-01_ses-1_label-L_mask.nii.gz",
    "derivatives/lesions/sub-03/anat/sub-03_label-L_mask.nii.gz",
    "derivatives/brain/sub-01/sub-01_mask.nii.gz",
)


@pytest.mark.parametrize("t1", ["sub-*/**/*_T1w.nii.gz", "**/anat/*_T1w.nii.gz", "./sub-*/**/*_T1?.nii.gz"])
def test_bids_is_found_by_pattern(tmp_path: Path, t1: str) -> None:
    patterns = Patterns(
        {"t1": t1, "flair": "sub-*/**/*_FLAIR.nii.gz"},
        label_map="derivatives/lesions/**/*_label-L_mask.nii.gz",
        roi="derivatives/brain/sub-{subject}/*_mask.nii.gz",
    )
    imported = import_by_pattern(touch(tmp_path, *BIDS), patterns, classes=("background", "lesion"))
    one, two, three = imported.cohort.cases
    assert [case.name for case in imported.cohort.cases] == ["01_1", "01_2", "02"]
    assert imported.cohort.subjects == ("01", "02")
    assert one.channels["flair"] == tmp_path / BIDS[1]
    assert (one.label_map, one.roi) == (tmp_path / BIDS[4], tmp_path / BIDS[6])
    assert (two.channels["flair"], two.label_map, two.roi) == (None, None, tmp_path / BIDS[6])
    assert three.roi is None
    assert imported.notes == ("1 file belongs to no case that has a channel: left out.",)


def test_any_layout_is_found_by_placeholders(tmp_path: Path) -> None:
    touch(tmp_path, "train/a_1/f.nii", "train/a_1/w.nii", "val/b/f.nii", "other/c/g.nii")
    patterns = Patterns({"f": "{split}/{subject}/f.nii"}, weight_maps={"core": "{split}/{subject}/w.nii"})
    cohort = import_by_pattern(tmp_path, patterns, name="x").cohort
    assert [(case.name, case.split) for case in cohort.cases] == [("a_1", "training"), ("b", "validation")]
    assert cohort.cases[0].weight_maps == {"core": tmp_path / "train" / "a_1" / "w.nii"}
    repeated = import_by_pattern(
        touch(tmp_path, "s/sub-1_x/1.nii", "s/sub-1_x/2.nii"), Patterns({"f": "s/sub-{subject}_x/{subject}.nii"})
    )
    assert [case.channels["f"] for case in repeated.cohort.cases] == [tmp_path / "s" / "sub-1_x" / "1.nii"]


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("*/nothing.nii", "channel_t1 finds no file"),
        ("**/*.nii.gz", "finds .* files for case '01_1'"),
        ("plain.nii", "no 'sub-<label>': mark the subject with {subject}"),
        ("{subjekt}/x.nii", "Did you mean 'subject'"),
        ("{split}/{subject}/f.nii", "lies in the split 'odd'"),
        ("../x.nii", "must stay below the folder"),
        ("/x.nii", "must stay below the folder"),
        ("", "cannot be used"),
    ],
)
def test_a_wrong_pattern_is_one_sentence(tmp_path: Path, pattern: str, problem: str) -> None:
    touch(tmp_path, *BIDS, "plain.nii", "odd/a/f.nii")
    with pytest.raises(CohortError, match=problem):
        import_by_pattern(tmp_path, Patterns({"t1": pattern}))


def test_patterns_need_a_folder_a_channel_and_names_that_manifests_allow(tmp_path: Path) -> None:
    touch(tmp_path, "a/f.nii", "b/f.nii", "c/f[1].nii")
    assert import_by_pattern(tmp_path, Patterns({"t1": "{subject}/f[1].nii"})).cohort.subjects == ("c",)
    with pytest.raises(CohortError, match="must be a folder"):
        import_by_pattern(tmp_path / "no", Patterns({"t1": "x"}))
    with pytest.raises(CohortError, match="At least one channel"):
        import_by_pattern(tmp_path, Patterns({}, roi="x"))
    with pytest.raises(CohortError, match="A channel's name must consist"):
        read(tmp_path, patterns=Patterns({"a/b": "{subject}/f.nii"}))
    with pytest.raises(CohortError, match="finds no subject in the case name 'a'"):
        read(tmp_path, patterns=Patterns({"f": "{subject}/f.nii"}), subject="x(.)")
    with pytest.raises(CohortError, match="is not a regular expression"):
        read(tmp_path, patterns=Patterns({"f": "{subject}/f.nii"}), subject="(")
    assert read(tmp_path, patterns=Patterns({"f": "{subject}/f.nii"}), subject=".").cohort.subjects == ("a", "b")


def test_brats_is_found_by_pattern(shared: Path) -> None:
    folder = shared / "data" / "brats2015"
    patterns = Patterns({"flair": "{split}/{subject}/Flair*.nii.gz"}, label_map="{split}/{subject}/OT*.nii.gz")
    cohort = import_by_pattern(folder, patterns).cohort
    assert (len(cohort.in_split("training")), len(cohort.in_split("validation"))) == (2, 2)
    assert all(case.label_map for case in cohort.cases)


def nnunet_folder(tmp_path: Path, names: tuple[str, ...], **changes: Any) -> Path:
    folder = write_json(tmp_path / "Dataset007", **{**NNUNET, **changes})
    for part, endings in (("labelsTr", ("",)), ("imagesTr", ("_0000", "_0001"))):
        (folder / part).mkdir()
        for name in names:
            for ending in endings:
                (folder / part / f"{name}{ending}.nii.gz").write_bytes(b"")
    return folder


def test_images_without_label_map_and_a_wrong_number_of_cases_are_said(tmp_path: Path) -> None:
    folder = nnunet_folder(tmp_path, ("a", "b", "c"), numTraining=3)
    assert read(folder).notes == ()
    (folder / "labelsTr" / "b.nii.gz").unlink()
    imported = read(folder)
    assert [case.name for case in imported.cohort.cases] == ["a", "c"]
    assert imported.notes == (
        "1 case of imagesTr without label map (b): left out.",
        "dataset.json says numTraining 3, and there are 2 cases.",
    )


def test_links_to_files_that_were_not_fetched_leave_their_case_out(tmp_path: Path) -> None:
    folder = nnunet_folder(tmp_path, ("a", "b"))
    for file in (folder / "labelsTr/b.nii.gz", folder / "imagesTr/b_0001.nii.gz"):
        file.unlink()
        file.symlink_to("../.git/annex/objects/nothing")
    imported = read(folder)
    assert [case.name for case in imported.cohort.cases] == ["a"]
    assert imported.notes[0].startswith("1 case with a link to a file that is not there")
    (folder / "labelsTr/a.nii.gz").unlink()
    (folder / "labelsTr/a.nii.gz").symlink_to("nowhere")
    with pytest.raises(CohortError, match=r"no training cases\. 2 cases with a link"):
        read(folder)


def test_a_folder_of_version_1_lists_cases_and_has_a_file_per_channel(tmp_path: Path) -> None:
    folder = nnunet_folder(tmp_path, ("a", "b"))
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("a", "b")]
    write_json(folder, training=listed, test=[], numTraining=2)
    imported = read(folder)
    assert imported.notes == ()
    assert imported.cohort.cases[1].channels == {
        "FLAIR": folder / "imagesTr" / "b_0000.nii.gz",
        "T1_C": folder / "imagesTr" / "b_0001.nii.gz",
    }


def test_channels_of_the_same_name_are_numbered_or_get_other_names(tmp_path: Path) -> None:
    folder = nnunet_folder(tmp_path, ("a",), channel_names={"0": "CT", "1": "CT"})
    imported = read(folder)
    assert imported.cohort.channels == ("CT_0", "CT_1")
    assert imported.notes == ("Channels of the same name are numbered: CT_0, CT_1. --channel-names gives others.",)
    chosen = read(folder, channels=("early", "late"))
    assert (chosen.cohort.channels, chosen.notes) == (("early", "late"), ())
    with pytest.raises(CohortError, match=r"2 channels \(CT, CT\), --channel-names gives 1: early"):
        read(folder, channels=("early",))
    with pytest.raises(CohortError, match=r"--channel-names is for a dataset\.json"):
        read(tmp_path, patterns=Patterns({"t1": "*.nii.gz"}), channels=("early",))


def test_a_gap_in_the_labels_is_no_class(tmp_path: Path) -> None:
    folder = nnunet_folder(tmp_path, ("a",), labels={"background": 0, "edema": 2, "core": 4})
    imported = read(folder)
    assert imported.cohort.classes == ("background", "edema", "core")
    assert imported.cohort.label_values == {0: 0, 2: 1, 4: 2}
    assert imported.notes == ("The values in the label maps are 0=background, 2=edema, 4=core.",)
    renamed = read(folder, classes=("background", "a", "b")).cohort
    assert (renamed.classes, renamed.label_values) == (("background", "a", "b"), {0: 0, 2: 1, 4: 2})


def test_files_of_macos_and_links_are_no_scans(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    for name in ("s1/t1.nii.gz", "s1/._t1.nii.gz", "s1/seg.nii.gz", "s3/t1.nii.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    for name in ("t1", "seg"):
        (tmp_path / f"elsewhere/deep/{name}.nii.gz").write_bytes(b"")
    (folder / "s2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/loop").symlink_to(folder)
    (folder / "s3/seg.nii.gz").symlink_to("gone")
    imported = import_by_pattern(folder, Patterns({"t1": "{subject}/**/*t1.nii.gz"}, "{subject}/**/seg.nii.gz"))
    assert [case.name for case in imported.cohort.cases] == ["s1", "s2"]
    assert all(case.label_map is not None for case in imported.cohort.cases)
    assert imported.cohort.cases[1].channels["t1"] == folder / "s2/deep/t1.nii.gz"
    assert imported.notes == (
        "1 file of macOS ('._…'): left out.",
        f"1 case with a link to a file that is not there, such as '{folder}/s3/seg.nii.gz': left out. Fetch the files "
        "first ('datalad get').",
    )


def test_label_values_are_recorded(tmp_path: Path) -> None:
    folder = nnunet_folder(tmp_path, ("a",))
    cohort = read(folder, labels=["4=tz"]).cohort
    assert (cohort.classes, cohort.label_values) == (("background", "PZ", "TZ"), {0: 0, 1: 1, 4: 2})
    patterns = Patterns({"t1": "imagesTr/{subject}_0000.nii.gz"})
    named = read(folder, patterns=patterns, labels=["255=lesion"]).cohort
    assert (named.classes, named.label_values) == (("background", "lesion"), {0: 0, 255: 1})
    with pytest.raises(CohortError, match="--labels names the class 'XZ', allowed are background, PZ, TZ"):
        read(folder, labels=["4=XZ"])
    with pytest.raises(CohortError, match="--labels must be VALUE=CLASS"):
        read(folder, labels=["TZ=4"])
