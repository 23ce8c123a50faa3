"""Manifests, and descriptions of cohorts by other tools, that cannot be used."""

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

from tests.faults.world import Bad, World

Change = Callable[[str], str | bytes]
_COMMANDS = (
    ("cohort", "check", "{here}/cohort.csv"),
    ("train", "{root}/balls.yaml", "--set", "cohort.manifest={here}/cohort.csv"),
    ("predict", "{here}/cohort.csv", "--from-run", "{run}", "-o", "{here}/out"),
    ("evaluate", "{here}/cohort.csv", "--from-run", "{run}"),
    ("cohort", "split", "{here}/cohort.csv", "-o", "{here}/split.csv"),
    ("cohort", "show", "{here}/cohort.csv", "-o", "{here}/out"),
)


def _cell(old: str, new: str) -> Change:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


def _without(column: str) -> Change:
    def change(text: str) -> str:
        note, *rows = text.splitlines()
        cells = [row.split(",") for row in rows]
        place = cells[0].index(column)
        return "\n".join([note, *(",".join(c for i, c in enumerate(row) if i != place) for row in cells)])

    return change


def _lines(*lines: str) -> Change:
    return lambda text: "\n".join(lines) + "\n"


def _without_scan(text: str) -> str:
    note, header, first, *rest = text.splitlines()
    cells = first.split(",")
    cells[2] = "-"
    return "\n".join([note, header, ",".join(cells), *rest]) + "\n"


MANIFESTS: dict[str, tuple[Change, str]] = {
    "nothing": (lambda text: "", "cohort.csv"),
    "only blanks": (lambda text: " \n\n \t\n", "cohort.csv"),
    "only comments": (lambda text: "# cohort: x\n# more\n", "cohort.csv"),
    "no cases": (_lines("case,subject,channel_t1"), "cohort.csv"),
    "no column case": (_without("case"), "case"),
    "no column subject": (_without("subject"), "subject"),
    "no channel": (_without("channel_t1"), "channel_"),
    "an unknown column": (_cell("label_map", "labels"), "label_map"),
    "a channel without its prefix": (_cell("channel_t1", "t1"), "channel_t1"),
    "a column twice": (_cell(",roi,", ",label_map,"), "label_map"),
    "a channel without a name": (_cell("channel_t1", "channel_"), "channel_"),
    "a channel with a slash": (_cell("channel_t1", "channel_a/b"), "channel_a/b"),
    "a channel above the folder": (_cell("channel_t1", "channel_..t1"), "channel_..t1"),
    "a cell more": (_cell(",training\n", ",training,more\n"), "row 3"),
    "a cell less": (_cell(",training\n", "\n"), "row 3"),
    "an unknown split": (_cell(",training\n", ",test\n"), "split"),
    "a split in capitals": (_cell(",training\n", ",Training\n"), "split"),
    "a case twice": (_cell("case_1,", "case_0,"), "case_0"),
    "a case without a name": (_cell("case_1,", ","), "case"),
    "a subject without a name": (_cell(",s1,", ",,"), "subject"),
    "a case above the folder": (_cell("case_1,", "../../x,"), "case"),
    "a case with a slash": (_cell("case_1,", "a/b,"), "case"),
    "a case with a backslash": (_cell("case_1,", "a\\b,"), "case"),
    "a case of a dot": (_cell("case_1,", ".,"), "case"),
    "a hidden case": (_cell("case_1,", ".case,"), "case"),
    "a case with an escape": (_cell("case_1,", "a\x1b[31mb,"), "case"),
    "a case with a bell": (_cell("case_1,", "a\x07b,"), "case"),
    "a case that turns the writing": (_cell("case_1,", "a\u202eb,"), "case"),
    "a case with a line end": (_cell("case_1,", '"a\nb",'), "case"),
    "a case of 500 letters": (_cell("case_1,", "x" * 500 + ","), "case"),
    "a subject with a colon": (_cell(",s1,", ",s:1,"), "subject"),
    "no file of any channel": (_without_scan, "channel"),
    "one class": (_cell("background, ball", "background"), "classes"),
    "a class twice": (_cell("background, ball", "ball, ball"), "ball"),
    "a class without a name": (_cell("background, ball", "background,,ball"), "class"),
    "a class with a slash": (_cell("background, ball", "background, a/b"), "a/b"),
    "a misspelled note": (_cell("# classes:", "# classses:"), "classses"),
    "a note twice": (_cell("# classes:", "# classes: a, b\n# classes:"), "classes"),
    "semicolons": (lambda text: text.replace(",", ";"), "semicolons"),
    "tabs": (lambda text: text.replace(",", "\t"), "tabs"),
    "an open quotation mark": (_cell("case_1,", '"case_1,'), "row"),
    "a quotation mark inside": (_cell("case_1,", '"ca"se_1,'), "row"),
    "Latin-1": (lambda text: text.replace("case_1", "cas\xe9_1").encode("latin-1"), "row 4"),
    "UTF-16": (lambda text: text.encode("utf-16"), "cohort.csv"),
    "UTF-32": (lambda text: text.encode("utf-32"), "cohort.csv"),
    "NUL bytes": (lambda text: text.replace("case_1", "case\0_1"), "cohort.csv"),
    "binary": (lambda text: bytes(range(256)) * 4, "cohort.csv"),
    "a spreadsheet": (lambda text: b"PK\x03\x04" + bytes(range(256)) * 4, "cohort.csv"),
    "JSON": (lambda text: '{"training": [{"image": "a.nii.gz"}]}', "cohort.csv"),
    "YAML": (lambda text: "name: x\ncohort:\n  manifest: a.csv\n", "cohort.csv"),
    "a line of a million cells": (lambda text: text + "x," * 1_000_000, "row"),
    "a cell of a million letters": (lambda text: text + "x" * 1_000_000 + "," * 6, "row"),
    "a path with NUL": (_cell("scans/t1_1", "sc\0ans"), "cohort.csv"),
    "a subject in two splits": (_cell(",s2,", ",s0,"), "s0"),
    "a scan in two splits": (lambda text: text.replace("scans/t1_2", "scans/t1_0"), "case_2"),
    "a scan of another name": (_cell("scans/t1_0", "scans/t9_0"), "case_0|t9_0"),
    "a label map as its own scan": (_cell("scans/label_0", "scans/t1_0"), "case_0"),
    "a path of 5000 letters": (_cell("scans/t1_0", "x" * 5000), "case_0|xxx"),
}


# What is nothing to a command that opens no scan.
_NEEDS_SCANS = {
    name for name in MANIFESTS if name.startswith(("a subject in two", "a scan", "a label map", "a path of"))
}


def manifests() -> Iterator[Bad]:
    turn = cycle(_COMMANDS)
    for name, (change, part) in MANIFESTS.items():

        def make(world: World, here: Path, change: Change = change) -> None:
            path = world.cohort_with(here, "roi", "")
            changed = change(path.read_text())
            path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())

        words = next(turn)
        yield Bad(
            f"{name}: {words[0]} {words[1][:5]}", words if name not in _NEEDS_SCANS else _COMMANDS[1], (part,), make
        )
    for name, write in NO_FILES.items():
        for words in (_COMMANDS[0], _COMMANDS[1], _COMMANDS[2]):
            # A link is named by what it leads to.
            yield Bad(f"{name} as manifest: {words[0]}", words, ("cohort.csv|/nowhere|/dev/null",), write)


NO_FILES: dict[str, Callable[[World, Path], object]] = {
    "a folder": lambda world, here: (here / "cohort.csv").mkdir(),
    "nothing": lambda world, here: None,
    "a dangling link": lambda world, here: (here / "cohort.csv").symlink_to("nowhere"),
    "a link to itself": lambda world, here: (here / "cohort.csv").symlink_to("cohort.csv"),
    "a device": lambda world, here: (here / "cohort.csv").symlink_to("/dev/null"),
}

_DATASET: dict[str, object] = {
    "name": "study",
    "channel_names": {"0": "t1"},
    "labels": {"background": 0, "ball": 1},
    "file_ending": ".nii.gz",
    "dataset": {"case_0": {"images": ["../scans/t1_0.nii.gz"], "label": "../scans/label_0.nii.gz"}},
}
DATASETS: dict[str, object] = {
    "nothing": "",
    "no JSON": "{",
    "a list": [1],
    "a number": 3,
    "deep JSON": "[" * 100_000 + "]" * 100_000,
    "NaN": "NaN",
    "Latin-1": '{"name": "caf\xe9"}'.encode("latin-1"),
    "NUL bytes": "\0" * 100,
    "no channels": {**_DATASET, "channel_names": {}},
    "channels as a number": {**_DATASET, "channel_names": 4},
    "channels from 1": {**_DATASET, "channel_names": {"1": "t1"}},
    "a channel of no number": {**_DATASET, "channel_names": {"x": "t1"}},
    "a huge channel number": {**_DATASET, "channel_names": {"9" * 5000: "t1"}},
    "no labels": {**_DATASET, "labels": {}},
    "labels as a list": {**_DATASET, "labels": ["a", "b"]},
    "a label of no number": {**_DATASET, "labels": {"background": 0, "ball": "x"}},
    "labels without background": {**_DATASET, "labels": {"ball": 1, "cube": 2}},
    "two classes of one label": {**_DATASET, "labels": {"background": 0, "ball": 1, "cube": 1}},
    "a label of a billion": {**_DATASET, "labels": {"background": 0, "ball": 10**9}},
    "a negative label": {**_DATASET, "labels": {"background": 0, "ball": -1}},
    "regions": {**_DATASET, "labels": {"background": 0, "whole": [1, 2]}},
    "another ending": {**_DATASET, "file_ending": ".png"},
    "no cases": {**_DATASET, "dataset": {}},
    "a case of no files": {**_DATASET, "dataset": {"a": {}}},
    "a case of too many images": {**_DATASET, "dataset": {"a": {"images": ["x", "y"], "label": "z"}}},
    "a case above the folder": {**_DATASET, "dataset": {"../x": {"images": ["x.nii"], "label": "z.nii"}}},
    "a training of numbers": {"modality": {"0": "t1"}, "labels": {"0": "a", "1": "b"}, "training": [1, 2]},
    "an image that is missing": {
        "modality": {"0": "t1", "1": "t2"},
        "labels": {"0": "a", "1": "b"},
        "training": [{"image": "none.nii.gz", "label": "none.nii.gz"}],
    },
    "an image of one channel for two": {
        "modality": {"0": "t1", "1": "t2"},
        "labels": {"0": "a", "1": "b"},
        "training": [{"image": "../../scans/t1_0.nii.gz", "label": "../../scans/label_0.nii.gz"}],
    },
}
CONFIGS = {
    "nothing": "",
    "no Python": "this is (no python",
    "code": "import os\nchannelsTraining = os.listdir('/')\n",
    "code that runs": "channelsTraining = [__import__('os').system('touch hacked')]\n",
    "a list of lists": "channelsTraining = [['a.txt', 3]]\ngtLabelsTraining = 'a.txt'\n",
    "a list that is missing": "channelsTraining = ['./none.cfg']\ngtLabelsTraining = './none.cfg'\n",
    "a number": "channelsTraining = 7\n",
    "deep": "channelsTraining = " + "[" * 5000 + "]" * 5000 + "\n",
    "long": "channelsTraining = ['x'] * 10000000000\n",
    "NUL": "channelsTraining = ['\0']\n",
}


def imports() -> Iterator[Bad]:
    words = ("cohort", "import", "{here}/dataset.json", "-o", "{here}/new.csv")
    for name, content in DATASETS.items():

        def make(world: World, here: Path, content: object = content) -> None:
            data = content if isinstance(content, str | bytes) else json.dumps(content)
            (here / "dataset.json").write_bytes(data if isinstance(data, bytes) else data.encode())

        yield Bad(f"dataset.json: {name}", words, ("{here}|name",), make)
    for name, text in CONFIGS.items():

        def config(world: World, here: Path, text: str = text) -> None:
            (here / "train.cfg").write_text(text)

        for source in ("train.cfg", ""):
            place = ("cohort", "import", f"{{here}}/{source}", "-o", "{here}/new.csv")
            yield Bad(f"{source or 'folder'} of DeepMedic: {name}", place, ("{here}",), config)
    for name, more in PATTERNS.items():
        place = ("cohort", "import", "{root}/scans", "-o", "{here}/new.csv", *more)
        yield Bad(f"pattern: {name}", place, ())
    yield Bad("import of nothing", ("cohort", "import", "{here}/nothing", "-o", "{here}/new.csv"), ("nothing",))
    yield Bad(
        "import onto a folder",
        ("cohort", "import", "{root}/scans", "-o", "{here}", "--channel", "t1=t1_{subject}.nii.gz"),
        ("{here}",),
    )


PATTERNS = {
    "no equals sign": ("--channel", "t1"),
    "nothing behind it": ("--channel", "t1="),
    "a name twice": ("--channel", "t1=a*", "--channel", "t1=b*"),
    "no file": ("--channel", "t1=none_{subject}.nii.gz"),
    "absolute": ("--channel", "t1=/etc/{subject}"),
    "above the folder": ("--channel", "t1=../{subject}.nii.gz"),
    "an unknown word": ("--channel", "t1={nobody}.nii.gz"),
    "a subject that is no expression": ("--channel", "t1=t1_{subject}.nii.gz", "--subject", "("),
    "a subject without a group": ("--channel", "t1=t1_{subject}.nii.gz", "--subject", "s"),
    "one class": ("--channel", "t1=t1_{subject}.nii.gz", "--classes", "a"),
    "a name of blanks": ("--channel", " =t1_{subject}.nii.gz"),
    "a bad name": ("--channel", "a/b=t1_{subject}.nii.gz"),
}


def bad_manifests() -> list[Bad]:
    return [*manifests(), *imports()]
