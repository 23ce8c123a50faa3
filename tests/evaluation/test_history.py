"""Three figures of a history."""

from dmx.evaluation.figures import figure_image
from dmx.evaluation.history import History, epoch_loss_figure, scores_figure, step_loss_figure

HISTORY = History(
    epoch_loss=(0.9, 0.5, 0.4),
    step_loss=((1.0, 0.8), (0.6, 0.4), (0.5, 0.3)),
    score_train=(0.5, 0.7, 0.9),
    score_validation=(0.4, None, 0.6),
)


def test_the_loss_of_an_epoch_is_over_epochs_from_0() -> None:
    panel = epoch_loss_figure(HISTORY).axes[0]
    assert panel.lines[0].get_xydata().tolist() == [[0, 0.9], [1, 0.5], [2, 0.4]]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("epoch", "loss")
    assert panel.get_legend() is None


def test_no_step_is_left_out() -> None:
    panel = step_loss_figure(HISTORY).axes[0]
    assert panel.lines[0].get_ydata().tolist() == [1.0, 0.8, 0.6, 0.4, 0.5, 0.3]
    assert [line.get_xdata()[0] for line in panel.lines[1:]] == [2.5, 4.5]
    many = step_loss_figure(History(epoch_loss=(1.0,) * 40, step_loss=((1.0, 2.0),) * 40)).axes[0]
    assert len(many.lines) == 1
    assert len(many.lines[0].get_ydata()) == 80


def test_both_scores_have_a_line_and_gaps_are_left_out() -> None:
    panel = scores_figure(HISTORY, label="R²").axes[0]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["train", "validation"]
    assert panel.lines[1].get_xydata().tolist() == [[0, 0.4], [2, 0.6]]
    assert panel.get_ylabel() == "R²"
    only = scores_figure(History(epoch_loss=(), step_loss=(), score_validation=(0.5,)))
    assert [line.get_label() for line in only.axes[0].lines] == ["validation"]
    assert figure_image(only, dpi=30).size
    assert figure_image(scores_figure(History(epoch_loss=(), step_loss=())), dpi=30).size


def test_a_history_is_the_four_lists() -> None:
    assert list(HISTORY.as_dict()) == ["epoch_loss", "step_loss", "score_train", "score_validation"]
    assert HISTORY.as_dict()["step_loss"] == [[1.0, 0.8], [0.6, 0.4], [0.5, 0.3]]
