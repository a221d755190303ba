# Every target makes the environment it needs: on a fresh clone any of them can be the first and only command.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
DISTRIBUTED := "distributed==2026.8.0"
PROFILE ?= mini
export VENV

# Study options, e.g. `make reproduce RUN="4 10" JOBS=2 PROFILE=smoke`.
STUDY := --profile $(PROFILE) $(foreach run,$(RUN),--run $(run)) $(if $(JOBS),--jobs $(JOBS))

# Tests of one file run in one process, since they share what its fixtures make.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help venv install test test-fast test-saelens test-tl4 test-cluster test-gelu-1l faults bench bench-saes lint types reproduce claims smoke reports notebooks docs format lock clean distclean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

reproduce: venv ## The whole study: text, model, 15 runs, reports/mini/. Options: PROFILE=, RUN="4 10", JOBS=.
	@$(BIN)/saelib reproduce $(STUDY)

claims: venv ## The study, then its claims with many seeds an arm and the calibration of the verdict.
	@$(BIN)/saelib reproduce $(STUDY) --claims

smoke: venv ## The same at the smallest size, into reports/smoke/: seconds a notebook.
	@$(BIN)/saelib reproduce --profile smoke $(if $(JOBS),--jobs $(JOBS))

reports: reproduce ## Write the reports again; what is already computed is not computed again.

test: venv ## Lint, types, and all tests, notebooks included. All three run, whichever fails.
	@status=0; \
	$(MAKE) lint || status=1; \
	$(MAKE) types || status=1; \
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS) || status=$$?; \
	exit $$status

test-fast: venv ## Only the tests that take a second or less, some 1,100 in a minute and a half: for while you work.
	@$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE) $(PYTEST_ARGS)

test-saelens: venv ## SAEs exchanged with sae-lens itself, in both directions, in .venv-saelens.
	@scripts/overlay.sh .venv-saelens "sae-lens==6.54.12"
	@.venv-saelens/bin/python -m pytest tests/sae/test_saelens.py tests/sae/test_sae_format.py $(PYTEST_ARGS)

test-tl4: venv ## The model adapter on transformer_lens 4.3, in .venv-tl4.
	@scripts/overlay.sh .venv-tl4 "transformer_lens==4.3.0"
	@.venv-tl4/bin/python -m pytest tests/lm/test_model.py tests/lm/test_gelu_1l.py tests/lm/test_hf_model.py $(PYTEST_ARGS)

test-cluster: venv ## The benchmark on a real Dask cluster of two workers, one of them killed, in .venv-cluster.
	@scripts/overlay.sh .venv-cluster $(DISTRIBUTED)
	@.venv-cluster/bin/python -m pytest tests/bench/test_bench_cluster.py $(PYTEST_ARGS)

test-gelu-1l: venv ## The study's own profile through its notebooks, on stand-ins in full size: minutes.
	@SAELIB_TEST_GELU_1L=1 $(BIN)/python -m pytest tests/test_gelu_1l_study.py $(PYTEST_ARGS)

bench: venv ## SplitBench: many parents, many methods; reports/splitbench/. Option: BENCH="--quick".
	@$(BIN)/saelib bench $(BENCH)

bench-saes: venv ## The SAEs of its suite that sae-lens trains (BatchTopK, JumpReLU, Matryoshka), into reports/splitbench/saes/.
	@scripts/overlay.sh .venv-saelens "sae-lens==6.54.12"
	@PYTHON=.venv-saelens/bin/python scripts/train_bench_saes.sh

faults: venv ## 120 kills, damaged files, full disks, races, wrong clocks: writes reports/faults/. Option: FAULTS="--seed 1".
	@scripts/overlay.sh .venv-cluster $(DISTRIBUTED)
	@OMP_NUM_THREADS=1 JUPYTER_PATH=$(abspath $(VENV))/share/jupyter .venv-cluster/bin/python tests/faults.py $(FAULTS)

lint: venv ## Ruff: rules and formatting.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: venv ## Mypy over the library.
	@$(BIN)/python -m mypy

format: venv ## Let ruff fix and format what it can.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

notebooks: venv ## Write each notebooks/*.ipynb again from its .py, which is the source.
	@$(BIN)/python scripts/pair_notebooks.py

docs: venv ## Draw the pictures of README and docs again, and write their numbers from reports/.
	@$(BIN)/python scripts/draw_rooms.py
	@$(BIN)/python scripts/readme_picture.py
	@$(BIN)/python scripts/update_numbers.py

venv: ## Make .venv and install into it (silent when up to date). PYTHON= names the interpreter.
	@scripts/install.sh

install: venv ## The same, under the name that one tries first.

lock: venv ## Write requirements.lock and environment.yml from what is installed.
	@$(BIN)/python scripts/pin.py

clean: ## Remove what tools leave behind. The cache folder with the study's data stays.
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis reports/smoke
	@find saelib tests notebooks scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## Also remove .venv.
	@rm -rf $(VENV)
