"""What all tests share: one thread per process, and no settings of the machine's own."""

import os

# Tests run in as many processes as there are cores; torch would start as many threads in each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "DMX_CACHE"):
    os.environ.pop(_name, None)
