# make demo: install into .venv and go through the whole chain on generated data.
# make test: install what the tests need into the same environment and run them.
# make test-all: those too that take minutes.
# make test-gpu: those that need an accelerator. make gpu-report: its speed, and labels against the CPU, as one page.
# make check: the same for ruff and mypy. make coverage: the tests, and which lines none of them reaches.
# make wheel: build the package and try it in an environment of its own.
# make clean: the environment and what tools leave go, runs stay.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/demo
# Processes of the tests, with one thread each.
JOBS ?= 2

.PHONY: demo test test-all test-gpu gpu-report check coverage wheel clean

demo: $(VENV)/.installed
	@rm -rf $(RUN)
	$(BIN)/afactl train demo --out $(RUN)
	$(BIN)/afactl pseudo-eval --split train --run $(RUN)
	$(BIN)/afactl eval --split val --worst 8 --run $(RUN)
	$(BIN)/afactl viz-attn --query 60,50 --run $(RUN)
	$(BIN)/afactl viz-cams --run $(RUN)
	$(BIN)/afactl viz-heads --run $(RUN)
	$(BIN)/afactl predict "$${AFACTL_CACHE:-$$HOME/.cache/afactl}/demo/images/val/000[0-5].png" --crf --overlay --run $(RUN)
	$(BIN)/afactl report $(RUN)
	@echo
	@echo "one page:    $(RUN)/report.html (photos, CAMs, labels and masks with a slider)"
	@echo "run folder:  $(RUN) (preset, metrics, checkpoints)"
	@echo "figures:     $(RUN)/figures"
	@echo "masks:       $(RUN)/predictions"
	@echo "caches:      $(RUN)/cache (HDF5)"

test: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: $(VENV)/.tested
	$(BIN)/python -m pytest -m "slow or not slow"

test-gpu: $(VENV)/.tested
	$(BIN)/python -m pytest -m gpu

gpu-report: $(VENV)/.tested
	$(BIN)/python benchmarks/gpu_report.py

coverage: $(VENV)/.tested
	$(BIN)/python -m pytest --cov --cov-report=
	$(BIN)/coverage report --show-missing

check: $(VENV)/.checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks

wheel: $(VENV)/.installed
	rm -rf build/wheel dist
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet dist/*.whl
	cd build && wheel/bin/afactl --version && wheel/bin/afactl presets voc > /dev/null
	cd build && wheel/bin/python -c "import afactl, pathlib; pathlib.Path(afactl.__file__).with_name('py.typed').stat()"

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[all,docs,test]"
	@touch $@

$(VENV)/.checked: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[check]"
	@touch $@

clean:
	rm -rf $(VENV) build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
