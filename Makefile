SEED ?= 0
BIN := .venv/bin
TWO_AT_ONCE := -n 2 --dist loadfile  # not for tests that start Ray: each cluster takes both cores

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit test-slow bench-cold-start bench-rl chaos-rl chaos bench-search bench-serve chaos-serve bench-capacity bench-curate esci reproduce real dashboard docs check format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: ## create .venv with the locked packages; does nothing the second time
	@bash scripts/setup.sh

demo: setup ## a generated shop, from raw data to a running search page; SEED=7 generates another
	$(BIN)/lrem demo --config configs/demo.yaml seed=$(SEED)

test: setup check ## ruff, mypy and all tests that are not slow; as root on Debian it first installs Chromium and Prometheus
	@bash scripts/packages.sh
	$(BIN)/pytest -m "not slow" $(TWO_AT_ONCE) tests/unit tests/deploy lrem ray_apps
	$(BIN)/pytest -m "not slow" tests/ray

test-unit: setup ## the tests that need no Ray, no server and no browser
	$(BIN)/pytest -m "not slow" $(TWO_AT_ONCE) tests/unit lrem

test-slow: setup ## the slow tests alone: workers killed, runs resumed
	@bash scripts/packages.sh
	$(BIN)/pytest -m slow

bench-cold-start: setup ## stage 1 and its peers: sentence-transformers and an SFT trainer
	$(BIN)/python benchmarks/cold_start.py --out benchmarks/results/cold_start.json
	$(BIN)/lrem backbone smollm2
	$(BIN)/python benchmarks/cold_start.py --source runs/backbones/smollm2 --batches 64 --pairs 5 --out benchmarks/results/cold_start_smollm2.json

bench-rl: setup ## stage 2 and its peer: TRL's GRPOTrainer
	$(BIN)/python benchmarks/reinforce.py --out benchmarks/results/rl.json

chaos-rl: setup ## stage 2 with a process killed every 20 steps
	$(BIN)/python benchmarks/chaos_reinforce.py --out benchmarks/results/chaos_rl.json

chaos: setup ## every fault once: a killed worker, machine, driver or shard, a full disk, a damaged checkpoint, a silent store
	CHAOS_OUT=benchmarks/results/chaos.json $(BIN)/pytest tests/ray/cluster/test_chaos.py

bench-search: setup ## the live index and its peer: the Faiss index inside it
	$(BIN)/python benchmarks/search.py --out benchmarks/results/search.json

bench-serve: setup ## search, HTTP and embedding, and their peers: raw Faiss, hnswlib, FastAPI, sentence-transformers
	$(BIN)/python benchmarks/serve.py --out benchmarks/results/serve.json

chaos-serve: setup ## the service under load while its processes are killed and a new model takes over
	$(BIN)/python benchmarks/chaos_serve.py --out benchmarks/results/chaos_serve.json

bench-capacity: setup ## memory, latency and recall of the index structures at 10k, 100k and 1M vectors, for `lrem plan`
	$(BIN)/python benchmarks/capacity.py --out benchmarks/results/capacity.json

bench-curate: setup ## curation of a million generated queries: rows per second, memory, one actor and two
	$(BIN)/python benchmarks/curate.py --out benchmarks/results/curate.json

esci: setup ## train on a catalogue alone, test on real queries; DATA=FOLDER of the ESCI sample
	$(BIN)/python benchmarks/esci.py --data $(DATA) --out benchmarks/results/esci.json

reproduce: setup ## the paper's comparison on three generated shops, with intervals; writes docs/results.md
	$(BIN)/python benchmarks/reproduce.py

real: setup ## a pretrained backbone on a real shop, with and without thinking; DATA=FOLDER of both data sets; hours, resumable
	$(BIN)/python benchmarks/real.py --data $(DATA)

dashboard: setup ## write deploy/grafana/lrem.json from panels.yaml and the list of metrics
	$(BIN)/python deploy/grafana/make.py

docs: setup ## build the documentation site in site/, with a new page of settings
	$(BIN)/python scripts/configuration.py
	$(BIN)/mkdocs build --strict

check: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and build output; .venv and runs/ stay
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
