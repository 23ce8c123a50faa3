import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from dmx.evaluation.figures import (
    _short,
    confusion_figure,
    curves_figure,
    dice_figure,
    figure_image,
    figure_png,
    lr_figure,
)
from dmx.evaluation.overlay import overlay_figure, telling_slices

CLASSES = ("background", "anterior", "posterior")
HISTORY = [
    {"epoch": epoch, "train/loss": 1 / epoch, "val/dice": 1 - 1 / epoch, "val/dice/anterior": None, "lr": 0.1**epoch}
    for epoch in (1, 2, 3)
]


def row(case, anterior, status="present"):
    scores = {f"dice/{name}": 0.8 for name in ("foreground", "posterior")} | {"dice/anterior": anterior}
    statuses = {f"status/{name}": "present" for name in ("foreground", "posterior")} | {"status/anterior": status}
    return {"case": case, **scores, **statuses}


def texts(figure):
    found = [text.get_text() for panel in figure.axes for text in panel.texts]
    return found + [label.get_text() for panel in figure.axes for label in panel.get_xticklabels()]


def test_png_and_image_show_the_same():
    figure = lr_figure(HISTORY)
    image = figure_image(figure, dpi=50)
    png = imread(io.BytesIO(figure_png(figure, dpi=50)))
    assert image.dtype == np.uint8
    assert np.abs(png[..., :3] * 255 - image).max() < 2
    assert image.min() < 100 < image.max()


def test_no_figure_touches_pyplot():
    # In a process of its own: other tests import libraries that do.
    code = (
        "import sys; from dmx.evaluation.figures import curves_figure, figure_png; "
        "figure_png(curves_figure([{'epoch': 0.0, 'val/dice': 0.5}])); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dice_names_the_lowest_case_and_counts_what_is_not_present():
    rows = [row("a", 0.9), row("b", 0.7), row("c", 0.0, "missed"), row("d", None, "absent"), row("e", 0.8)]
    figure = dice_figure([*rows, row("f", 0.75)], CLASSES)
    assert "c" in texts(figure)
    assert "anterior\n1 missed\n1 absent" in texts(figure)
    assert figure.axes[0].get_ylim()[0] < 0
    assert dice_figure(rows[:2], CLASSES).axes[0].get_ylim()[0] > 0.6


def test_dice_of_one_class_has_one_column_even_without_a_score():
    rows = [{"dice/lesion": None, "status/lesion": "absent"}]
    assert texts(dice_figure(rows, ("background", "lesion"))) == ["lesion\n1 absent"]


def test_confusion_shows_shares_of_rows_and_counts():
    figure = confusion_figure(np.array([[30, 10, 0], [0, 0, 0], [0, 12000, 36000]]), CLASSES)
    found = texts(figure)
    assert "75.0 %\n30" in found
    assert "25.0 %\n12.0 k" in found
    assert found.count("no voxels") == 3


def test_curves_leave_out_metrics_without_values():
    figure = curves_figure(HISTORY)
    loss, dice = figure.axes
    assert [line.get_label() for line in loss.lines] == ["train/loss"]
    assert [line.get_label() for line in dice.lines] == ["val/dice"]
    assert figure_image(curves_figure([]), dpi=30).size


def test_curves_of_two_classes_are_one_line_for_each_kind_of_data():
    alike = ("val/dice/lesion", "val/dice/foreground", "val/dice", "train/dice", "train/dice/lesion")
    rows = [{"epoch": epoch, **dict.fromkeys(alike, epoch / 4), "val/dice/core": 0.5} for epoch in (1, 2)]
    (dice,) = curves_figure(rows).axes
    assert sorted(line.get_label() for line in dice.lines) == ["train/dice", "val/dice", "val/dice/core"]


@pytest.mark.parametrize("last", [0.5, 0.001])
def test_the_learning_rate_is_logarithmic_when_it_spans_much(last):
    scale = lr_figure([{"epoch": 1, "lr": 1.0}, {"epoch": 2, "lr": last}]).axes[0].get_yscale()
    assert scale == ("log" if last == 0.001 else "linear")


@pytest.mark.parametrize("num_classes", [2, 3, 6])
@pytest.mark.parametrize("with_truth", [True, False])
def test_overlay_has_a_column_per_channel_and_label_map(num_classes, with_truth):
    generator = np.random.default_rng(0)
    channels = {name: generator.normal(size=(12, 10, 8)) for name in ("T1", "FLAIR")}
    truth, prediction = generator.integers(num_classes, size=(2, 12, 10, 8))
    classes = [f"class {n}" for n in range(num_classes)]

    figure = overlay_figure(
        channels, prediction, truth=truth if with_truth else None, classes=classes, spacing=(1, 1, 2), title="a"
    )

    titles = [panel.get_title() for panel in figure.axes if panel.get_title()]
    assert titles == ["T1", "FLAIR", *(["truth"] if with_truth else []), "prediction"]
    assert len(figure.axes) == 3 * len(titles)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == classes[1:]
    assert figure_image(figure, dpi=40).size


def test_an_empty_case_can_be_drawn():
    empty = np.zeros((6, 6, 4))
    assert figure_image(overlay_figure({"T1": empty}, empty, truth=empty, classes=CLASSES), dpi=30).size


def test_slices_go_where_truth_and_prediction_differ():
    truth, prediction = np.zeros((2, 8, 8, 40))
    truth[:4, :4, 2:8] = prediction[:4, :4, 2:8] = 1
    assert max(telling_slices(truth, prediction, count=3)) < 8
    prediction[..., 30:34] = 1
    assert max(telling_slices(truth, prediction, count=3)) >= 30


def test_a_class_is_outlined_where_it_lies():
    prediction = np.zeros((10, 10, 6), dtype=np.int64)
    prediction[2:8, 3:7, 1:5] = 1
    figure = overlay_figure({"T1": np.ones((10, 10, 6))}, prediction, classes=CLASSES, spacing=(1, 1, 1))
    lines = [np.concatenate([path.vertices for path in c.get_paths()]) for p in figure.axes for c in p.collections]
    drawn = [line for line in lines if len(line)]
    assert len(drawn) == 3
    # The edges of the box, half a voxel outside of the centers of its outermost voxels.
    widths = {tuple(np.round(line.max(axis=0) - line.min(axis=0), 1)) for line in drawn}
    assert widths <= {(6.0, 4.0), (4.0, 6.0), (6.0, 6.0), (4.0, 4.0)}


def test_counts_are_written_in_three_digits():
    assert [_short(n) for n in (999, 1000, 999_499, 1_000_000, 8_900_000, 10**9)] == [
        *("999", "1.00 k", "999 k"),
        *("1.00 M", "8.90 M", "1.00 G"),
    ]
