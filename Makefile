# Each target sets up what it needs by itself; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_ALL := $(VENV)/.ready-all
DMX := $(BIN)/dmx
DEMO := demo/cohort_a/manifest.csv
NEXT := demo/cohort_next/few.csv
FEW := demo/cohort_b/few.csv
LESIONS := experiments/lesion_transfer/target.yaml
OTHERS := --set name=demo-few --set cohort.manifest=$(NEXT)
SHORT := --set training.epochs=3 --set training.steps_per_epoch=40
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint format ui train resume finetune transfer predict evaluate bench coverage mutants clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

# torch comes first and by its own version, so that no other package chooses a larger build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13))' \
	  || { echo "dmx needs Python 3.11 to 3.13; say which one: make PYTHON=python3.11 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,networks,images,inside,dev]'
# What the package of nnU-Net's networks requires (timm, torchvision) is not needed for them.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps dynamic-network-architectures
	@touch $@

setup: $(READY)  ## Make the virtual environment (every target does it when needed)

# Each call makes runs of its own names, so that it can be repeated.
demo: NOW := $(shell date +%Y%m%d-%H%M%S)
demo: $(DEMO) $(NEXT) $(FEW)  ## Train on one cohort, carry it to others, print scores and lineage (about 5 minutes on two cores)
	$(DMX) train experiments/demo/stroke.yaml
	$(DMX) predict --from-run demo/last $(DEMO) --split evaluation -o demo/predictions --overwrite
	$(DMX) evaluate --from-run demo/last
	@echo
	@echo "Now strokes of another study, from 4 cases: from scratch, and fine-tuned from what was learned."
	$(DMX) train experiments/demo/stroke.yaml $(OTHERS) $(SHORT) --name scratch-$(NOW)
	$(DMX) finetune experiments/demo/next.yaml --from-run demo/last $(OTHERS) --name finetuned-$(NOW)
	$(DMX) evaluate --from-run demo-few/scratch-$(NOW)
	$(DMX) evaluate --from-run demo-few/finetuned-$(NOW)
	$(DMX) runs compare demo-few/scratch-$(NOW) demo-few/finetuned-$(NOW)
	@echo
	@echo "Now tumors, on other channels, from 4 cases: from scratch, and with what was learned on strokes."
	$(DMX) train $(LESIONS) $(SHORT) --name scratch-$(NOW)
	$(DMX) train $(LESIONS) $(SHORT) --name transfer-$(NOW) --set transfer.sources.stroke.run=demo/last
	$(DMX) evaluate --from-run lesion-transfer/scratch-$(NOW)
	$(DMX) evaluate --from-run lesion-transfer/transfer-$(NOW)
	$(DMX) runs compare lesion-transfer/scratch-$(NOW) lesion-transfer/transfer-$(NOW)
	$(DMX) runs lineage lesion-transfer/transfer-$(NOW)
	@echo
	@echo "Label maps: demo/predictions/. To look at the runs in MLflow: make ui"

# A manifest is written last: where it is, the cohort is complete.
$(DEMO): | $(READY)
	$(DMX) cohort make A -o demo/cohort_a --processes 2

$(NEXT): | $(READY)
	$(DMX) cohort make A --seed 7 -o demo/cohort_next --cases 16 --processes 2
	$(DMX) cohort split demo/cohort_next/manifest.csv -o $@ --training 0.25 --evaluation 0.75

$(FEW): | $(READY)
	$(DMX) cohort make B -o demo/cohort_b --cases 16 --processes 2
	$(DMX) cohort split demo/cohort_b/manifest.csv -o $@ --training 0.25 --evaluation 0.75

test: $(READY)  ## Run the tests (a few minutes)
	$(BIN)/python -m pytest -n 2 $(ARGS)

# A team server for the tests, about 100 MB more. What is skipped all the same is named at the end, with the reason.
$(READY_ALL): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server-tests]'
	@touch $@

test-all: $(READY_ALL)  ## Run the slow tests too (about 40 minutes on two cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal -rs -m 'slow or not slow' $(ARGS)

# Mutation testing, which is not part of continuous integration: make mutants ARGS='training --sample 100'
mutants: $(READY)  ## Change the numerical code a little, many times, and see whether a test fails (an hour)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	$(BIN)/python tests/mutants.py $(ARGS)

coverage: $(READY)  ## Run the tests and show the branch coverage
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered $(ARGS)

lint: $(READY)  ## Check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(READY)  ## Open the MLflow UI on this machine
	$(DMX) ui

train: $(READY)  ## Train: make train EXPERIMENT=experiments/demo/stroke.yaml
	@test -n "$(EXPERIMENT)" || { echo "Say which experiment: make train EXPERIMENT=experiments/demo/stroke.yaml"; exit 2; }
	$(DMX) train $(EXPERIMENT) $(ARGS)

resume: $(READY)  ## Go on with an interrupted run: make resume RUN=…
	@test -n "$(RUN)" || { echo "Say which run: make resume RUN=… ($(DMX) runs list shows them)"; exit 2; }
	$(DMX) resume $(RUN) $(ARGS)

finetune: $(READY)  ## Train a run's network on another cohort: make finetune FROM=… EXPERIMENT=…
	@test -n "$(FROM)" -a -n "$(EXPERIMENT)" || { echo "Say what: make finetune FROM=demo/last EXPERIMENT=….yaml"; exit 2; }
	$(DMX) finetune $(EXPERIMENT) --from-run $(FROM) $(ARGS)

transfer: $(READY)  ## Give what a run learned to another network: make transfer FROM=… EXPERIMENT=…
	@test -n "$(FROM)" -a -n "$(EXPERIMENT)" || { echo "Say what: make transfer FROM=demo/last EXPERIMENT=….yaml"; exit 2; }
	$(DMX) transfer $(EXPERIMENT) --from-run $(FROM) $(ARGS)

predict: $(READY)  ## Predict new scans: make predict RUN=… COHORT=… OUT=…
	@test -n "$(RUN)" -a -n "$(COHORT)" -a -n "$(OUT)" || { echo "Say what: make predict RUN=… COHORT=cohort.csv OUT=folder"; exit 2; }
	$(DMX) predict --from-run $(RUN) $(COHORT) -o $(OUT) $(ARGS)

evaluate: $(READY)  ## Score a run: make evaluate RUN=… COHORT=…
	@test -n "$(RUN)" || { echo "Say which run: make evaluate RUN=… [COHORT=cohort.csv] ($(DMX) runs list shows them)"; exit 2; }
	$(DMX) evaluate --from-run $(RUN) $(COHORT) $(ARGS)

bench: $(READY)  ## Measure speed and memory on this machine
	$(BIN)/python benchmarks/run.py $(ARGS)

clean:  ## Remove the environment, caches and the demonstration (never runs)
	rm -rf $(VENV) demo build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
