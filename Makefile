SEED ?= 0
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow bench-cold-start bench-rl chaos-rl chaos bench-search bench-serve chaos-serve bench-capacity bench-curate esci reproduce dashboard docs check format clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: ## virtual environment and locked packages; nothing to do the second time
	@bash scripts/setup.sh

demo: setup ## the whole way on a small made-up shop, from data to a running search; SEED=7 makes another
	$(BIN)/lrem demo --config configs/demo.yaml seed=$(SEED)

test: setup check ## ruff, mypy and every test that is not slow; as root on Debian it installs Chromium and Prometheus first
	@bash scripts/packages.sh
	$(BIN)/pytest -m "not slow"

test-slow: setup ## the slow tests alone
	$(BIN)/pytest -m slow

bench-cold-start: setup ## stage 1 beside sentence-transformers and an SFT trainer
	$(BIN)/python benchmarks/cold_start.py --out benchmarks/results/cold_start.json

bench-rl: setup ## stage 2 beside TRL's GRPOTrainer
	$(BIN)/python benchmarks/reinforce.py --out benchmarks/results/rl.json

chaos-rl: setup ## stage 2 with a process killed every 20 steps
	$(BIN)/python benchmarks/chaos_reinforce.py --out benchmarks/results/chaos_rl.json

chaos: setup ## each fault once: a killed worker, machine, driver, shard, a full disk, a damaged checkpoint, a silent store
	CHAOS_OUT=benchmarks/results/chaos.json $(BIN)/pytest tests/ray/cluster/test_chaos.py

bench-search: setup ## the live index beside the Faiss index inside it
	$(BIN)/python benchmarks/search.py --out benchmarks/results/search.json

bench-serve: setup ## search, HTTP and embedding beside raw Faiss, hnswlib, a FastAPI server and sentence-transformers
	$(BIN)/python benchmarks/serve.py --out benchmarks/results/serve.json

chaos-serve: setup ## the service under load while its parts are killed and a new model takes over
	$(BIN)/python benchmarks/chaos_serve.py --out benchmarks/results/chaos_serve.json

bench-capacity: setup ## the model of `lrem plan` beside measurements at 10k, 100k and 1M vectors
	$(BIN)/python benchmarks/capacity.py --out benchmarks/results/capacity.json --constants lrem/capacity/constants.json

bench-curate: setup ## curation of a million made-up queries: rows a second, memory, one actor beside two
	$(BIN)/python benchmarks/curate.py --out benchmarks/results/curate.json

esci: setup ## a catalogue alone against real queries; DATA=FOLDER of the ESCI sample
	$(BIN)/python benchmarks/esci.py --data $(DATA) --out benchmarks/results/esci.json

reproduce: setup ## the paper's comparison on three made-up shops, with intervals; writes docs/results.md
	$(BIN)/python benchmarks/reproduce.py

dashboard: setup ## deploy/grafana/lrem.json from panels.yaml and the list of metrics
	$(BIN)/python deploy/grafana/make.py

docs: setup ## the book, as HTML in site/; its page of settings is written anew
	$(BIN)/python scripts/configuration.py
	$(BIN)/mkdocs build --strict

check: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## rewrite the sources as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and build leftovers; .venv and runs/ stay
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
