# make setup | demo | test | check | bench | docs | gpu. Only gpu needs a GPU; it needs no network. PYTHON=... chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
RESULTS := benchmarks/results/cpu
BENCHES := condense steps mmd loaders streaming

.PHONY: setup demo test check bench docs gpu

# tests start many processes, and each would compile our modules again
unexport PYTHONDONTWRITEBYTECODE

setup: $(INSTALLED)

$(INSTALLED): setup.py pyproject.toml .ci/debian-packages .ci/ffcv
	.ci/debian-packages $(PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	.ci/ffcv $(BIN)/python
	touch $@

# resumes an interrupted demo; a finished one prints its table again
demo: $(INSTALLED)
	.ci/debian-packages --data
	$(BIN)/python -m m3d_fast.condense --dataset fashionmnist --ipc 1 --preset strong --iterations 300 --real-batch 32 --out runs/demo --resume
	$(BIN)/python -m m3d_fast.evaluate runs/demo --baselines random --no-initial --epochs 120 --repeats 3
	$(BIN)/python -m m3d_fast.reproduce page runs/demo
	@echo
	@echo "Picture, one row per class: runs/demo/grid.png; report: runs/demo/report.html"
	@echo "ImageNet-100 on a GPU, where IMAGENET is the folder of train/ and val/:"
	@echo "  $(BIN)/python -m m3d_fast.condense --dataset imagenet100 --data-root IMAGENET --ipc 10 --out runs/imagenet100"
	@echo "  $(BIN)/python -m m3d_fast.evaluate runs/imagenet100 --baselines random,herding"

# a file's tests share its runs; tests/conftest.py puts the longest files first
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -p no:benchmark

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture

# make bench-mmd runs one of them. Warnings come from torch.compile and the peers; missing peers are named
bench: $(addprefix bench-,$(BENCHES))
	$(BIN)/python -m benchmarks.report $(BENCHES:%=$(RESULTS)/%.json)

bench-%: $(INSTALLED)
	mkdir -p $(RESULTS)
	$(BIN)/python -m pytest -W default benchmarks/bench_$*.py --benchmark-json=$(RESULTS)/$*.json

bench-mmd bench-loaders bench-streaming: export OMP_NUM_THREADS := 1

# pages of the guide and of the docstrings, in site/; a warning is an error
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[docs]'
	PATH="$(BIN):$$PATH" $(BIN)/python -m mkdocs build --strict

# works from a bare checkout, within nine minutes; OUT=... is the folder of the results.
# The engine's benchmark is separate: $(PYTHON) -m benchmarks.gpu engine
gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(OUT),--out $(OUT))
