"""What the MLflow page of an experiment shows: the columns of the table of runs."""

import json

# MLflow leaves out those that no run of the experiment has, so an experiment shows the scores of its own task.
COLUMNS = (
    "metrics.`val_volume/dice`",
    "metrics.`val/dice`",
    "metrics.`val/accuracy`",
    "metrics.`val/auc`",
    "metrics.`val/r2`",
    "metrics.`evaluation/dice`",
    "metrics.`evaluation/accuracy`",
    "metrics.`evaluation/r2`",
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


def experiment_tags() -> dict[str, str]:
    """Return the tag of an experiment that gives its table of runs these columns; links name it."""
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
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    return json.dumps(state)
