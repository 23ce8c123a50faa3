"""What a person sees in MLflow's pages who follows the links that the command prints.

The pages load in pieces and never become idle, so every test waits for a text.
"""

from typing import Any

import pytest

from dmx.tracking.location import compare_link, experiment_link, run_link
from tests.browser.conftest import FREEZES, Study

pytestmark = pytest.mark.slow

COLUMNS = (
    *("val_volume/dice", "val/dice", "evaluation/dice"),
    *("cohort", "lr", "source.run", "dmx.kind"),
    *("freeze.normal", "freeze.subsampled", "freeze.fc", "freeze.layers"),
)


def keep(page: Any, study: Study, name: str) -> None:
    """Keep a picture of the page beside the project, for a person to look at."""
    page.screenshot(path=study.root / "pages" / f"{name}.png")


def cell(page: Any, row: str, column: str) -> str:
    """Return what the table of runs says in a column of a run; MLflow shows long numbers as they are."""
    index = page.locator(".ag-row", has=page.get_by_role("link", name=row, exact=True)).first.get_attribute("row-index")
    found = page.locator(f'.ag-row[row-index="{index}"] [col-id*="{column}"]').first
    return str(found.inner_text()).strip()


def test_the_table_of_runs_has_our_columns_and_the_children_below_their_parent(
    study: Study, base: str, page: Any
) -> None:
    # Columns that do not fit are not in the page at all.
    page.set_viewport_size({"width": 3200, "height": 1000})
    page.goto(experiment_link(base, study.parent.experiment_id))
    page.get_by_role("link", name="parent", exact=True).wait_for()
    headers = [text.strip() for text in page.locator(".ag-header-cell").all_inner_texts()]
    assert not set(COLUMNS) - set(headers), headers
    assert not page.get_by_role("link", name="head-only", exact=True).is_visible()
    page.locator(".ag-row button").first.click()
    for name in FREEZES:
        page.get_by_role("link", name=name, exact=True).wait_for()
    keep(page, study, "runs")
    assert cell(page, "head-only", "freeze.normal") == "1,2"
    assert cell(page, "first-frozen", "freeze.normal") == "1"
    assert cell(page, "head-only", "source.run") == "balls/parent"
    assert cell(page, "parent", "dmx.kind") == "train"
    assert cell(page, "head-only", "lr") == "0.01"
    assert float(cell(page, "head-only", "val_volume/dice")) > 0
    # The score of an evaluation, which is a run of its own below this one.
    assert float(cell(page, "head-only", "evaluation/dice")) >= 0


def test_scores_and_curves_are_the_first_charts_and_the_machine_comes_last(study: Study, base: str, page: Any) -> None:
    page.set_viewport_size({"width": 1600, "height": 2000})
    page.goto(experiment_link(base, study.parent.experiment_id) + "&compareRunsMode=CHART")
    page.get_by_text("System metrics").wait_for()
    keep(page, study, "charts")
    text = page.inner_text("body")
    places = [text.index(name) for name in ("Scores", "Curves", "val_volume/dice", "Model metrics", "System metrics")]
    assert places == sorted(places)
    assert "throughput" not in text


def test_a_child_links_to_its_source_and_the_source_to_its_child(study: Study, base: str, page: Any) -> None:
    child = study.children[1]
    page.goto(run_link(base, child.experiment_id, child.id))
    page.get_by_text("Source:", exact=True).wait_for()
    # MLflow opens the links of a description in another tab.
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="balls/parent", exact=True).first.click()
    page = opened.value
    page.wait_for_url(lambda url: study.parent.id in url)
    page.get_by_text("Used by", exact=True).wait_for()
    page.get_by_role("link", name="balls/head-only").first.wait_for()
    keep(page, study, "used-by")


def test_the_comparison_of_three_runs_preselects_what_differs(study: Study, base: str, page: Any) -> None:
    page.set_viewport_size({"width": 1600, "height": 2400})
    page.goto(compare_link(base, [study.parent.experiment_id], [run.id for run in study.children]))
    page.get_by_text("Comparing 3 Runs from 1 Experiment").wait_for()
    page.get_by_text("Run details").wait_for()
    page.get_by_text("source.run").first.wait_for()
    keep(page, study, "comparison")
    text = page.inner_text("body")
    chosen = text[text.index("Parameters:") : text.index("Metrics:")].split("\n")
    assert "freeze.normal" in chosen
    assert "freeze.fc" in chosen
    assert "seed" not in chosen
    for name in FREEZES:
        assert name in text
    assert "freeze.normal\t\t1,2\t1" in text
    # No score is looked for: of MLflow 3.17's table of metrics only the values scroll, the names beside them stay.


def test_parent_and_child_link_to_each_other(study: Study, base: str, page: Any) -> None:
    page.goto(run_link(base, study.parent.experiment_id, study.parent.id))
    child = page.get_by_role("link", name="head-only", exact=True)
    child.wait_for()
    keep(page, study, "parent")
    child.click()
    page.get_by_text("dmx finetune").wait_for()
    page.get_by_text("finished after 2 epochs").wait_for()
    keep(page, study, "child")
    page.get_by_role("link", name="parent", exact=True).click()
    page.get_by_text("dmx train").wait_for()
    assert study.parent.id in page.url


def test_the_lineage_is_drawn_in_the_artifact_viewer(study: Study, base: str, page: Any) -> None:
    child = study.children[1]
    page.goto(run_link(base, child.experiment_id, child.id).replace("?", "/artifacts/lineage.html?"))
    drawn = page.frame_locator("iframe").locator("svg")
    drawn.wait_for()
    keep(page, study, "lineage")
    text = str(drawn.text_content())
    assert "balls/parent" in text
    assert "frozen: normal 1 2" in text
    assert drawn.locator("rect.named").count() == 1


def test_the_mapping_of_a_transfer_is_drawn_in_the_artifact_viewer(study: Study, base: str, page: Any) -> None:
    """The viewer puts the page into a sandboxed frame: its script runs, and it asks for nothing."""
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.frame.parent_frame else None)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.set_viewport_size({"width": 1400, "height": 1400})
    run = study.transferred
    page.goto(run_link(base, run.experiment_id, run.id).replace("?", "/artifacts/transfer/mapping.html?"))
    frame = page.frame_locator("iframe")
    picture = frame.locator("svg#picture")
    picture.wait_for()
    keep(page, study, "mapping")
    text = str(picture.text_content())
    assert "Source parent" in text
    assert "Target target" in text
    assert picture.locator(".box").count() == 6 + 32
    colors = set(picture.locator("path.line").evaluate_all("all => all.map(one => getComputedStyle(one).stroke)"))
    # Blocks 1 and 2 of three pathways, and the first fc layer.
    assert picture.locator("path.line").count() == 7
    assert colors <= {"rgb(22, 121, 79)", "rgb(36, 99, 180)"}
    assert len(colors) == 2
    cut_off = "picture => picture.getBoundingClientRect().right > document.documentElement.clientWidth"
    assert not picture.evaluate(cut_off), "the frame is narrow"
    frame.get_by_label("full size").check()
    assert picture.evaluate(cut_off)
    frame.get_by_label("full size").uncheck()
    frame.locator('.box[data-key=":subsampled_2.block_2"]').hover()
    assert "subsampled_2.block_2" in str(frame.locator("#details").text_content())
    assert picture.locator("path.line.on").count() == 1
    keep(page, study, "mapping-pointed-at")
    assert not [url for url in asked if not url.startswith((base, "blob:", "about:", "data:"))]
    assert not [text for text in complaints if "sandbox" in text.lower() or "blocked" in text.lower()]
