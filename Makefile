# Each target sets itself up: on a machine with Python >= 3.11 (with venv), make and git,
# `make demo` and `make test` are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0
# Ray starts many processes that import torch: without kept bytecode each compiles it anew, for 10 s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test sample soak lint demo-weights bench gpu-bundle lock clean

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

test: setup ## run the tests, in two processes
	$(BIN)/python -m pytest -q -n 2

SEED ?= $(shell git rev-parse HEAD 2>/dev/null)
sample: setup ## two minutes of the slow tests, others for each commit (SEED=word: those again)
	$(BIN)/python -m pytest -q -m slow --slow-sample 120 --seed '$(SEED)'

soak: setup ## kill, resume and retry for 20 minutes, README walked, and the tests that take minutes
	$(BIN)/python -m pytest -q -n 2 -m slow
	PYTHON=$(BIN)/python tests/newcomer.sh
	$(BIN)/python -m tests.soak --minutes 20

lint: setup ## ruff, the rules of imports, and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright

# Nine trainings, each from the one before: what the backbone sees, where things are, their masks,
# all of it together; then that an object is one query's alone, and all of it again; then with half
# as many pixels again on a side (more tokens for each thing) and with three times as many scenes.
# About three and a half hours on two cores; run again, it goes on where it stopped.
SMALL = runs/scenes-train/panoptic.json --val runs/scenes-val/panoptic.json --seed 0
LARGE = runs/scenes-large/panoptic.json --val runs/scenes-val/panoptic.json --seed 0
TRAIN = $(BIN)/panoptic train --threshold 0.5
demo-weights: setup ## train the demo weights anew and record their figures (3.5 hours)
	for set in "train 6000 1" "large 18000 1" "val 300 2"; do \
	  set -- $$set; test -e runs/scenes-$$1/panoptic.json || (rm -rf runs/scenes-$$1 && \
	  $(BIN)/panoptic scenes runs/scenes-$$1 --images $$2 --seed $$3) || exit 1; done
	$(TRAIN) $(SMALL) --out runs/demo-1 --phase backbone --steps 1600 --lr 1.5e-3 \
	  --validate-every 1600
	$(TRAIN) $(SMALL) --out runs/demo-2 --phase detector --weights runs/demo-1/weights.safetensors \
	  --steps 2500 --batch-size 32 --lr 5e-4 --validate-every 2500
	$(TRAIN) $(SMALL) --out runs/demo-3 --phase masks --weights runs/demo-2/weights.safetensors \
	  --steps 2000 --lr 1e-3 --validate-every 1000
	$(TRAIN) $(SMALL) --out runs/demo-4 --phase joint --weights runs/demo-3/weights.safetensors \
	  --steps 2000 --cooldown 0 --lr 3e-4 --backbone-lr 3e-4 --mask-weight 3 --half \
	  --validate-every 1000
	$(TRAIN) $(SMALL) --out runs/demo-5 --phase detector --weights runs/demo-4/weights.safetensors \
	  --steps 2000 --batch-size 32 --lr 5e-4 --no-object-weight 0.5 --validate-every 1000
	$(TRAIN) $(SMALL) --out runs/demo-6 --phase joint --weights runs/demo-5/weights.safetensors \
	  --steps 1700 --lr 4e-4 --backbone-lr 3e-4 --mask-weight 2 --no-object-weight 0.5 --half \
	  --validate-every 1000
	$(TRAIN) $(SMALL) --out runs/demo-7 --phase joint --weights runs/demo-6/weights.safetensors \
	  --size 192 --steps 600 --cooldown 0 --lr 4e-4 --backbone-lr 4e-4 --mask-weight 2 \
	  --no-object-weight 0.5 --validate-every 600
	$(TRAIN) $(LARGE) --out runs/demo-8 --phase detector --weights runs/demo-7/weights.safetensors \
	  --steps 2200 --batch-size 32 --lr 5e-4 --no-object-weight 0.5 --validate-every 1100
	$(TRAIN) $(LARGE) --out runs/demo-9 --phase joint --weights runs/demo-8/weights.safetensors \
	  --steps 2400 --cooldown 0.4 --lr 4e-4 --backbone-lr 3e-4 --mask-weight 2 \
	  --no-object-weight 0.5 --half --validate-every 600
	mkdir -p jobs/demo_weights
	cp runs/demo-9/weights.safetensors jobs/demo_weights/demo.safetensors
	$(BIN)/python benchmarks/demo_weights.py --record

# benchmarks/gpu.py has a target of its own: it needs a GPU.
bench: setup ## run every benchmark
	@for script in $(filter-out benchmarks/gpu%,$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; $(BIN)/python $$script || exit 1; done

GPU_BUNDLE = dist/gpu-bundle.tar.gz
gpu-bundle: ## pack what benchmarks/gpu.py needs on a bare machine with a GPU, and say how to run it
	@mkdir -p dist
	@tar -czf $(GPU_BUNDLE) --exclude=__pycache__ LICENSE detr pipeline benchmarks \
	  jobs/demo_weights tests/__init__.py tests/random_weights.py tests/detr
	@test $$(wc -c < $(GPU_BUNDLE)) -lt 40000000 || (echo "$(GPU_BUNDLE) is over 40 MB"; exit 1)
	@echo "$(GPU_BUNDLE), $$(($$(wc -c < $(GPU_BUNDLE)) / 1000)) kB. On a machine with a GPU and Python 3.11 or newer"
	@echo "with torch, torchvision, transformers, numba, safetensors and pillow:"
	@echo "  tar -xzf gpu-bundle.tar.gz && python benchmarks/gpu.py --out OUT"
	@echo "then, here: python benchmarks/gpu.py --page OUT/gpu.jsonl"

lock: ## resolve pyproject.toml into requirements.lock
	$(BIN)/uv pip compile --universal --quiet --no-emit-index-url --no-header --group dev pyproject.toml -o requirements.lock

clean: ## remove the virtual environment and the demo
	rm -rf $(VENV) demo
