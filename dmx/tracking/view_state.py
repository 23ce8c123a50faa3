"""What the MLflow page of an experiment shows: the columns of its table and the order of its charts."""

import json

# MLflow leaves out those that no run of the experiment has, so an experiment shows the scores of its own task.
COLUMNS = (
    "metrics.`evaluation/dice`",
    "metrics.`evaluation/accuracy`",
    "metrics.`evaluation/r2`",
    "metrics.`val_volume/dice`",
    "metrics.`val/dice`",
    "metrics.`val/accuracy`",
    "metrics.`val/auc`",
    "metrics.`val/r2`",
    "metrics.`ablation/dice`",
    "metrics.`ablation/accuracy`",
    "metrics.`ablation/r2`",
    "metrics.`probe/best`",
    "tags.`dmx.kind`",
    "params.`source.run`",
    "params.`cohort`",
    "params.`lr`",
    "params.`freeze.normal`",
    "params.`freeze.subsampled`",
    "params.`freeze.fc`",
    "params.`freeze.layers`",
)
SCORES = ("evaluation/dice", "evaluation/accuracy", "evaluation/balanced_accuracy", "evaluation/r2", "probe/best")
CURVES = ("val_volume/dice", "val/dice", "val/accuracy", "val/r2", "val/loss", "train/mean_loss", "train/loss", "lr")
# MLflow sorts sections by name and keeps its own two at the end. Blanks in front come first and are not seen.
_FIRST = {"Scores": "  Scores", "Curves": " Curves"}
_LAST = ("Model metrics", "System metrics")


def experiment_tags() -> dict[str, str]:
    """Return the tag of an experiment that gives its pages these columns and charts; links name it."""
    return {"mlflow.sharedViewState.dmx": view_state()}


def view_state() -> str:
    """Return the state of the page as the JSON that MLflow 3.17 reads."""
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "compareRunSections": _sections(),
        "compareRunCharts": [_chart("BAR", "Scores", key) for key in SCORES]
        + [_chart("LINE", "Curves", key) for key in CURVES],
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    return json.dumps(state)


def _sections() -> list[dict[str, object]]:
    """Return the sections that do not come from the prefix of a metric."""
    return [
        {"uuid": f"dmx-{name.strip()}", "name": name, "display": True, "isReordered": False}
        for name in (*_FIRST.values(), *_LAST)
    ]


def _chart(kind: str, section: str, key: str) -> dict[str, object]:
    """Return a chart of one metric as MLflow makes it itself, so that it does not make another one."""
    chart: dict[str, object] = {
        "type": kind,
        "uuid": f"dmx-{section}-{key}",
        "metricSectionId": f"dmx-{section}",
        "metricKey": key,
        "displayName": key,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 10,
    }
    if kind == "LINE":
        chart |= {
            "selectedMetricKeys": [key],
            "xAxisKey": "step",
            "selectedXAxisMetricKey": "",
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "lineSmoothness": 0,
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
        }
    return chart
