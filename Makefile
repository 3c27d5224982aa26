# Each target sets itself up: on a machine with Python >= 3.11 (with venv), make and git,
# `make demo` and `make test` are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak lint demo-weights bench lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv with everything in requirements.lock

# uv, bootstrapped by pip, because plain pip may pick a torch that torchvision can't import with.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps -e .
	@touch $@

demo: setup ## segment and score a small made dataset on this machine
	$(BIN)/panoptic demo

test: setup ## run the tests
	$(BIN)/python -m pytest -q

soak: setup ## kill, resume and retry for 20 minutes, and the tests that take minutes
	$(BIN)/python -m pytest -q -m slow
	$(BIN)/python -m tests.soak --minutes 20

lint: setup ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Six trainings, each from the one before: what the backbone sees, where things are, their masks, all
# of it together; then that an object is one query's alone, and all of it again. About two hours on
# two free cores; run again, it goes on where it stopped.
SCENES = runs/scenes-train/panoptic.json --val runs/scenes-val/panoptic.json --seed 0
TRAIN = $(BIN)/panoptic train $(SCENES) --threshold 0.5
demo-weights: setup ## train the demo weights anew and record their figures (about two hours)
	test -e runs/scenes-train/panoptic.json || (rm -rf runs/scenes-train && \
	  $(BIN)/panoptic scenes runs/scenes-train --images 6000 --seed 1)
	test -e runs/scenes-val/panoptic.json || (rm -rf runs/scenes-val && \
	  $(BIN)/panoptic scenes runs/scenes-val --images 300 --seed 2)
	$(TRAIN) --out runs/demo-1 --phase backbone --steps 1600 --lr 1.5e-3 \
	  --validate-every 1600
	$(TRAIN) --out runs/demo-2 --phase detector --weights runs/demo-1/weights.safetensors \
	  --steps 2500 --batch-size 32 --lr 5e-4 --validate-every 2500
	$(TRAIN) --out runs/demo-3 --phase masks --weights runs/demo-2/weights.safetensors \
	  --steps 2000 --lr 1e-3 --validate-every 1000
	$(TRAIN) --out runs/demo-4 --phase joint --weights runs/demo-3/weights.safetensors \
	  --steps 2000 --cooldown 0 --lr 3e-4 --backbone-lr 3e-4 --mask-weight 3 --half \
	  --validate-every 1000
	$(TRAIN) --out runs/demo-5 --phase detector --weights runs/demo-4/weights.safetensors \
	  --steps 2000 --batch-size 32 --lr 5e-4 --no-object-weight 0.5 \
	  --validate-every 1000
	$(TRAIN) --out runs/demo-6 --phase joint --weights runs/demo-5/weights.safetensors \
	  --steps 1700 --lr 4e-4 --backbone-lr 3e-4 --mask-weight 2 --no-object-weight 0.5 --half \
	  --validate-every 1000
	mkdir -p jobs/demo_weights
	cp runs/demo-6/weights.safetensors jobs/demo_weights/demo.safetensors
	$(BIN)/python benchmarks/demo_weights.py --record

bench: setup ## run every benchmark
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

lock: ## resolve pyproject.toml into requirements.lock
	$(BIN)/uv pip compile --universal --quiet --no-emit-index-url --no-header --group dev pyproject.toml -o requirements.lock

clean: ## remove the virtual environment and the demo
	rm -rf $(VENV) demo
