# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MARK := $(VENV)/.installed
SOURCES := setup.py pyproject.toml CMakeLists.txt $(wildcard patches/*) \
	$(shell find csrc -type f 2>/dev/null)

# Two threads that spin on a shared two-core machine are slower than one that does not.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1

.PHONY: demo test test-slow bench bench-sim lint upstream-tests wheel clean

$(MARK): $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[bench,demo,test]'
	$(BIN)/python -m compileall -q -j 2 $(VENV)/lib > /dev/null || true
	touch $(MARK)

demo: $(MARK)
	$(BIN)/python -m vllm_helium.demo

test: $(MARK)
	$(BIN)/python -m pytest -m "not slow"

# Tests that start engines get a process per file; all files run, and exit code 5 is no tests.
test-slow: $(MARK)
	@failed=0; \
	run() { echo "pytest $$*"; $(BIN)/python -m pytest "$$@" || [ $$? -eq 5 ] || failed=1; }; \
	run -m "slow and not engine"; \
	for file in $$(grep -rlE "mark\.engine" --include="test_*.py" tests | sort); do \
		run -m "slow and engine" $$file; \
	done; \
	exit $$failed

# Real systems on this machine, over the OpenAI API: stock vLLM and frameworks get environments of
# their own under build/real-systems on first use.
bench: $(MARK)
	$(BIN)/python -m benchmarks.real_systems

# Paper scale in virtual time; runs are kept, so that a second call makes only what has changed.
bench-sim: $(MARK)
	$(BIN)/python -m benchmarks.report --deadline 1500

lint: $(MARK)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

upstream-tests: $(MARK)
	$(BIN)/python tests/upstream/run.py

wheel:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf build dist $(VENV)
