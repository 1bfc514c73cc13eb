# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiling all that is installed takes pip more than half of its time: Python compiles what is imported, where it may write that down.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-long test-browser test-gpu setup report reference docs lint clean

demo: $(VENV)/.installed
	$(BIN)/sparsebench run quickstart.yaml
	@if $(INSTALL) --requirement requirements-llamacpp.txt; then $(BIN)/sparsebench run examples/gguf.yaml; \
	else echo "The package of llama.cpp does not install here: its row is left out."; fi
	mkdir -p out
	$(BIN)/sparsebench figures --out out/figures >out/pictures.txt
	$(BIN)/sparsebench report --brief --out out/brief.md --figures out/figures >out/pages.txt
	$(BIN)/sparsebench report --out out/report.md --figures out/figures >>out/pages.txt
	@echo
	@echo "The table above is the answer; out/report.html is the page, out/brief.md its first part, out/figures has the pictures. Then try:"
	@echo "  $(BIN)/sparsebench sql \"select model, method, sparsity, task, score, dense_score, verdict, detectable from results order by all\""
	@echo "  $(BIN)/sparsebench sql \"select model, sparsity, bytes_packed / bytes_dense as packed from results where task is null or task in ('piqa', 'sciq_retrieval') order by all\""
	@echo "  $(BIN)/sparsebench sql \"select model, kind, sum(count) as weights from tensors where method = 'dense' group by all order by all\""

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# The type checker has one process, for half a minute: the tests are run beside it.
	$(BIN)/mypy & types=$$!; trap 'kill $$types 2>/dev/null; exit 130' INT TERM; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not setup and not long'; tests=$$?; \
	wait $$types || { echo "The type checker found mistakes: make lint"; exit 1; }; exit $$tests

# Tests that take a minute or more each, and property tests with more and other inputs. Not run on every change.
test-long: $(VENV)/.installed-dev
	$(INSTALL) 'triton>=3.4; platform_system == "Linux"' -r requirements-ray.txt -r requirements-moefy.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'long or hypothesis' --hypothesis-profile=other --timeout 3600

# The HTML report in Chromium, the one inside Qt. `make test` runs these too where it is installed.
test-browser: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet 'PySide6-Addons[webengine]'
	$(BIN)/python -m pytest tests/report/test_browser.py

# What is done on GPUs, by doing it: for a machine that has one. The JSON is worth keeping, with the card and the date.
test-gpu: $(VENV)/.installed
	$(BIN)/sparsebench doctor --gpu --out gpu-acceptance.json

setup: $(VENV)/.installed-dev

# What the report tells of. Smaller shapes are in docs/shapes.md, with their own figure.
REPORTED = small g2p coder methods kinds training g2p-recovery g2p-skipping minilm-recovery mpnet calibration engines rehearsal floors llamacpp llamacpp-coder

# Rebuilds the tracked report, its pictures and the numbers that pages quote from the committed records.
report: $(VENV)/.installed
	rm -f ledger/published.duckdb ledger/report.duckdb
	$(BIN)/sparsebench ingest $(REPORTED:%=ledger/published/%.jsonl.zst) --ledger ledger/report.duckdb
	$(BIN)/sparsebench figures --ledger ledger/report.duckdb --out figures
	$(BIN)/sparsebench report --ledger ledger/report.duckdb --out report.md --results docs/results.md --figures figures
	$(BIN)/sparsebench ingest ledger/published --ledger ledger/published.duckdb
	$(BIN)/sparsebench figures shapes removed training --format png --ledger ledger/published.duckdb --out docs
	$(BIN)/python docs/quotes.py ledger/published.duckdb
	$(BIN)/python docs/systems.py ledger/published.duckdb

# The pages and the JSON Schema that are made from the code; a test compares them.
reference: $(VENV)/.installed
	$(BIN)/python docs/generate.py

# The site, in out/docs/index.html. Nothing is fetched while it is built or read; a warning is an error.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs out/docs
	@echo "Open out/docs/index.html"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Removes out/, which make demo and make docs wrote. Keep ledgers elsewhere: records cannot be made again.
clean:
	rm -rf out

$(VENV)/.installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[measure]'
	touch $@

# One call of pip for all that a fresh clone lacks.
$(VENV)/.installed-dev: requirements.txt requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[measure,dev]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: $(VENV)/.installed requirements-docs.txt
	$(INSTALL) --editable '.[measure,docs]'
	touch $@
