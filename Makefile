# Everything runs in a virtual environment of the project's own, made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-oldest quick faults sanitize docs lint check clean

# Python compiles what is imported, on first use; to compile all takes longer than to install it.
$(READY): pyproject.toml setup.py constraints.txt src/sparsehyper/_util/_kernels.c
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt \
		-e '.[dev]'
	@touch $@

demo: $(READY)  ## compare generators and baselines on the digits that scikit-learn ships
	OMP_NUM_THREADS=1 $(BIN)/sparsehyper compare --out runs/demo --data digits --tasks split:2,all \
		--latent-dim 32 --budget 2 --budget 4 --steps 1000 --eval-every 250

test: $(READY)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# uv takes the oldest release that each range in pyproject.toml admits. Old releases warn of new
# ones of what they need, which is no error here.
OLDEST := $(VENV)-oldest
test-oldest:  ## run the tests with the oldest versions that pyproject.toml admits
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct -e '.[dev]'
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -n 2 --dist worksteal -W default

quick: $(READY)  ## run the tests that are not slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

faults: $(READY)  ## test every promise of docs/reliability.md at length
	rm -f docs/results/faults.jsonl
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal tests/faults --full-faults docs/results/faults.jsonl

# Works on a copy of the package, so that the ordinary kernels stay as they are. A finding aborts the
# tests; -s shows it.
SANITIZED := build/sanitized
SANITIZERS = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)
INCLUDE = $(shell $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('include'))")

sanitize: $(READY)  ## run the tests of the kernels under AddressSanitizer and UBSan
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED) && cp -R src/sparsehyper $(SANITIZED)
	$(CC) -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
		-fopenmp -shared -fPIC -I$(INCLUDE) src/sparsehyper/_util/_kernels.c \
		-o $(SANITIZED)/sparsehyper/_util/_kernels.abi3.so
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		PYTHONPATH=$(SANITIZED) OMP_NUM_THREADS=2 $(BIN)/pytest -q -s -p no:cacheprovider \
		tests/sparse tests/target/test_unpacking.py tests/_util/test_memory.py

# An environment of its own, without PyTorch: the package is read and not imported.
DOCS := $(VENV)-docs
$(DOCS)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check --upgrade pip
	$(DOCS)/bin/pip install --quiet --group docs
	@touch $@

docs: $(DOCS)/.ready  ## build the documentation in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

lint: $(READY)  ## formatting, lint and types
	$(BIN)/ruff format --check src tests examples setup.py
	$(BIN)/ruff check src tests examples setup.py
	$(BIN)/mypy

check: lint test  ## what CI runs

clean:
	rm -rf $(VENV) $(OLDEST) $(DOCS) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
