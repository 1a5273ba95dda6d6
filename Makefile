# make install   the environment in .venv, with .venv/bin/ppt; make install PYTHON=python3.12 for
#                another Python than python3, of 3.11 or newer
# make demo      the whole curriculum on the embedded world, and its report
# make test      all tests, on a real local Ray
# make test-unit the tests that need no Ray
# make chaos     runs that are killed, lose their disk or have damaged files, and go on (minutes);
#                make chaos CHAOS="--seed 7 --kills 40" for another seed and more kills
# make fuzz      generated and damaged inputs for everything that is read (COUNT, SEED)
# make benchmark the parts of a run, each beside what it could be at best, into runs/benchmark;
#                make benchmark BENCHMARK=--short for a form of minutes
# make lint      ruff and the type checker
# make pretrain  the weights of the embedded world again (long)

PYTHON ?= python3
BIN := .venv/bin
COUNT ?= 1200
SEED ?= 0

.PHONY: install demo test test-unit chaos fuzz benchmark lint pretrain clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: PYTHON must be Python 3.11 or newer, got $(PYTHON), which is" \
	    "$$($(PYTHON) --version): run make install PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/ppt train curricula/quickstart.yaml

test: test-unit
	$(BIN)/pytest tests/integration tests/cluster --numprocesses auto --dist loadfile

test-unit: install
	$(BIN)/pytest tests/unit --numprocesses auto --dist loadfile

chaos: install
	PYTHONPATH=tests $(BIN)/python -m chaos $(CHAOS)

fuzz: install
	PYTHONPATH=tests $(BIN)/python -m fuzz --count $(COUNT) --seed $(SEED)

benchmark: install
	$(BIN)/ppt benchmark $(BENCHMARK)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pretrain: install
	$(BIN)/python -m ppt.toybox.pretrain all

clean:
	rm -rf .venv runs
