from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmx.cohort.case import Case, Cohort
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.errors import CohortError

GOOD = """\
# cohort: stroke
# classes: background, lesion
# written by hand
case,subject,channel_flair,channel_dwi,label_map,roi,weight_lesion,split
a,s1,scans/a f.nii.gz,-,a_l.nii,,w/a.nii,training

# b,s1,,,,,,
"c",s2,/data/c.nii.gz,../c.nii,-,r.nii,,
"""


def test_a_manifest_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("\ufeff" + GOOD.replace("\n", "\r\n"), encoding="utf-8")
    cohort = read_manifest(tmp_path / "m.csv")
    assert (cohort.name, cohort.classes, cohort.channels) == ("stroke", ("background", "lesion"), ("flair", "dwi"))
    assert cohort.manifest == tmp_path / "m.csv"
    first, second = cohort.cases
    assert first == Case(
        name="a",
        subject="s1",
        channels={"flair": tmp_path / "scans/a f.nii.gz", "dwi": None},
        label_map=tmp_path / "a_l.nii",
        weight_maps={"lesion": tmp_path / "w/a.nii"},
        split="training",
    )
    assert second.channels["flair"] == Path("/data/c.nii.gz")
    assert second.label_map is None
    assert second.roi == tmp_path / "r.nii"
    assert cohort.in_split("training") == (first,)
    assert cohort.subjects == ("s1", "s2")


def test_what_was_written_is_read_and_paths_move_with_the_folder(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(GOOD)
    cohort = read_manifest(tmp_path / "m.csv")
    write_manifest(cohort, tmp_path / "deep" / "er" / "n.csv")
    again = read_manifest(tmp_path / "deep" / "er" / "n.csv")
    resolved = [{column: path.resolve() for column, path in case.files().items()} for case in again.cases]
    assert resolved == [{column: path.resolve() for column, path in case.files().items()} for case in cohort.cases]
    assert again.classes == cohort.classes
    assert [replace(case, channels={}) for case in again.cases] != cohort.cases
    assert "../../scans/a f.nii.gz" in (tmp_path / "deep" / "er" / "n.csv").read_text()
    assert again.cases[0].channels["dwi"] is None


HEADER = "case,subject,channel_t1,label_map,split"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no header"),
        ("# cohort: x\n", "has no header"),
        (f"{HEADER}\n", "has no cases"),
        (f"{HEADER}\na,s,t.nii,l.nii\n", "row 2: must have 5 cells like the header, got 4"),
        (f"{HEADER}\n\na,s,t.nii,,\na,s,u.nii,,\n", r"row 4, column 'case': must be unique, got 'a'"),
        (f"{HEADER},label_map\n", "row 1, column 'label_map': must be there only once"),
        ("# x\nsubject,channel_t1\ns,t.nii", "row 2: must have a column 'case'"),
        ("case,channel_t1\ns,t.nii", "must have a column 'subject'"),
        ("case,subject,roi\na,s,t.nii", "at least one column 'channel_<name>'"),
        ("case,subject,channel_\na,s,t.nii", "the name after 'channel_' must not be empty"),
        ("case,subject,channel_a/b\na,s,t.nii", "must consist of letters"),
        ("case;subject;channel_t1\na;s;t.nii", "columns separated by commas, got semicolons"),
        ("case\tsubject\tchannel_t1\na\ts\tt.nii", "got tabs"),
        ("case,subjct,channel_t1\na,s,t.nii", "column 'subjct': is not a column .*Did you mean 'subject'"),
        (
            "case,subject,t1,channel_t2\na,s,t.nii,u.nii",
            "column 't1': is not a column .*A channel's column is 'channel_t1'",
        ),
        (f"{HEADER}\na,s,t.nii,,trainin\n", "column 'split': must be one of .*Did you mean 'training'"),
        (f"{HEADER}\na,s,-,l.nii,training\n", "must have at least one channel"),
        (f"{HEADER}\n../a,s,t.nii,,\n", "column 'case': must be fit for a file name"),
        (f"{HEADER}\na,,t.nii,,\n", "row 2, column 'subject': must not be empty"),
        (f'{HEADER}\n"a,s,t.nii,,\nb,s,t.nii,,\n', r"row 2: is not valid CSV"),
        (f'{HEADER}\na,s,t.nii,,\n"b"x,s,t.nii,,\n', r"row 3: is not valid CSV"),
        (f"# classes: background\n{HEADER}\na,s,t.nii,,", "at least two classes"),
        (f"# classes: a, b, a\n{HEADER}\na,s,t.nii,,", "the class 'a' twice"),
        (f"# classes: a, b(c)\n{HEADER}\na,s,t.nii,,", "class name that must consist"),
        (f"# class: a, b\n{HEADER}\na,s,t.nii,,", "no note '# class:'. Did you mean 'classes'"),
        (f"# cohort: a\n# cohort: b\n{HEADER}\na,s,t.nii,,", "row 2: has '# cohort:' a second time"),
    ],
)
def test_a_wrong_manifest_is_one_sentence_with_file_row_and_column(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(CohortError, match=problem) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (f"{HEADER}\nä,s,t.nii,,\n".encode("latin-1"), "row 2: must be UTF-8"),
        (HEADER.encode("utf-16"), "must be UTF-8"),
        (HEADER.encode() + b"\0", "got binary data"),
    ],
)
def test_a_wrong_encoding_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(CohortError, match=problem):
        read_manifest(tmp_path / "m.csv")


def test_a_manifest_that_is_not_there_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"m.csv' cannot be read: there is no such file"):
        read_manifest(tmp_path / "m.csv")
    case = Case("a", "a", {"t1": tmp_path / "a.nii"})
    (tmp_path / "file").write_text("")
    with pytest.raises(CohortError, match="cannot be written"):
        write_manifest(Cohort("x", (), ("t1",), (case,)), tmp_path / "file" / "m.csv")
    for wrong, problem in (
        (Cohort("x", (), ("t1",), ()), "has no cases"),
        (Cohort("x", ("a", "b,c"), ("t1",), (case,)), "class name"),
        (Cohort("x", (), ("t1",), (replace(case, name="a/b"),)), "its case must be fit"),
        (Cohort("x", (), ("t1",), (replace(case, channels={"t1": Path("a\nb.nii")}),)), "cannot stand in a manifest"),
    ):
        with pytest.raises(CohortError, match=problem):
            write_manifest(wrong, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rest=st.text(alphabet=st.sampled_from(list('ab,"\n\r#-: ;/.\u2028\x85é')), max_size=60), cut=st.integers(0, 40))
def test_any_text_is_a_manifest_or_one_sentence(tmp_path: Path, rest: str, cut: int) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(f"{HEADER}\na,s,t.nii,,\n"[: 60 - cut].encode() + rest.encode())
    try:
        cohort = read_manifest(path)
    except CohortError as error:
        assert "m.csv" in str(error)  # noqa: PT017 - the other outcome is right as well
        return
    write_manifest(cohort, tmp_path / "again.csv")
    assert [case.name for case in read_manifest(tmp_path / "again.csv").cases] == [case.name for case in cohort.cases]


LABELED = """\
# cohort: sizes
# labels: small, large
case,subject,channel_t1,label,target_age,target_volume,split
a,s1,a.nii,large,61.5,-,training
b,s2,b.nii,0,,1e3,
c,s3,c.nii,,,,
"""


def test_labels_and_targets_of_whole_cases_are_carried(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(LABELED)
    cohort = read_manifest(tmp_path / "m.csv")
    assert cohort.label_classes == ("small", "large")
    assert [case.label for case in cohort.cases] == [1, 0, None]
    assert [dict(case.targets) for case in cohort.cases] == [{"age": 61.5}, {"volume": 1000.0}, {}]
    write_manifest(cohort, tmp_path / "n.csv")
    assert replace(read_manifest(tmp_path / "n.csv"), manifest=cohort.manifest) == cohort


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (("7", "3", "7"), (), [7, 3, 7]),
        (("left", "right", "left"), (), [0, 1, 0]),
        (("s10", "s9", "s9"), (), [1, 0, 0]),
        (("right", "0", "-"), ("left", "right"), [1, 0, None]),
    ],
)
def test_integers_stand_for_themselves_and_names_for_their_place(
    tmp_path: Path, labels: tuple[str, ...], classes: tuple[str, ...], expected: list[int]
) -> None:
    note = f"# labels: {','.join(classes)}\n" if classes else ""
    rows = "".join(f"c{n},s,c.nii,{label}\n" for n, label in enumerate(labels))
    (tmp_path / "m.csv").write_text(f"{note}case,subject,channel_t1,label\n{rows}")
    cohort = read_manifest(tmp_path / "m.csv")
    assert [case.label for case in cohort.cases] == expected
    if classes:
        assert cohort.label_classes == classes


@pytest.mark.parametrize(
    ("note", "row", "problem"),
    [
        (
            "# labels: a, b\n",
            "c,s,t.nii,d,1",
            r"row 3, column 'label': must be a name or an index of '# labels:', got 'd'",
        ),
        ("# labels: a, b\n", "c,s,t.nii,2,1", "got '2'"),
        ("# labels: a, a\n", "c,s,t.nii,a,1", "has 'a' twice in '# labels:'"),
        ("# labels: a, /\n", "c,s,t.nii,a,1", "has the label of a case that must consist of letters"),
        ("", "c,s,t.nii,/etc,1", "has the label of a case that must consist of letters"),
        ("", "c,s,t.nii,a,much", r"row 2, column 'target_x': must be a number, got 'much'"),
        ("", "c,s,t.nii,a,inf", "must be a number, got 'inf'"),
    ],
)
def test_a_label_or_target_that_cannot_be_used_is_named(tmp_path: Path, note: str, row: str, problem: str) -> None:
    (tmp_path / "m.csv").write_text(f"{note}case,subject,channel_t1,label,target_x\n{row}\n")
    with pytest.raises(CohortError, match=problem):
        read_manifest(tmp_path / "m.csv")


def test_a_cohort_without_labels_is_written_as_ever(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(GOOD)
    write_manifest(read_manifest(tmp_path / "m.csv"), tmp_path / "n.csv")
    lines = (tmp_path / "n.csv").read_text().splitlines()
    assert lines[2] == "case,subject,channel_flair,channel_dwi,label_map,roi,weight_lesion,split"
    assert not lines[1].startswith("# labels")


def test_label_values_are_kept_in_a_note(tmp_path: Path) -> None:
    text = GOOD.replace("# written by hand", "# label_values: 255=lesion")
    (tmp_path / "m.csv").write_text(text)
    cohort = read_manifest(tmp_path / "m.csv")
    assert cohort.label_values == {0: 0, 255: 1}
    write_manifest(cohort, tmp_path / "n.csv")
    assert "# label_values: 0=background, 255=lesion\n" in (tmp_path / "n.csv").read_text()
    assert read_manifest(tmp_path / "n.csv").label_values == {0: 0, 255: 1}
    for note, problem in (
        ("255=tumor", "names the class 'tumor', allowed are background, lesion"),
        ("lesion", "must be VALUE=CLASS, e.g. 17=Anterior, got 'lesion'"),
        ("1=lesion, 1=background", "names the value 1 twice"),
    ):
        (tmp_path / "m.csv").write_text(text.replace("255=lesion", note))
        with pytest.raises(CohortError, match=problem):
            read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text(text.replace("# classes: background, lesion\n", ""))
    with pytest.raises(CohortError, match="which takes '# classes"):
        read_manifest(tmp_path / "m.csv")


def test_a_table_that_a_spreadsheet_filled_up_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(GOOD)
    plain = read_manifest(tmp_path / "m.csv")
    lines = GOOD.splitlines()
    lines[1] = '"# classes: background, lesion"'
    padded = "\r\n".join(f"{line},,," if line else ",,,,,,,,,," for line in lines)
    (tmp_path / "m.csv").write_text("\ufeff" + padded + "\r\n,,,,,,,,,,\r\n", encoding="utf-8")
    assert read_manifest(tmp_path / "m.csv") == plain
    (tmp_path / "m.csv").write_text(padded.replace("a.nii,training,,,", "a.nii,training,,,oops"))
    with pytest.raises(CohortError, match="row 5: must have 8 cells like the header, got 11"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text(padded.replace("channel_dwi", ""))
    with pytest.raises(CohortError, match="row 4: column 4 has no name: name it, or remove it"):
        read_manifest(tmp_path / "m.csv")
