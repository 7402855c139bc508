# A newcomer needs two of these: `make demo` and `make test`.
PYTHON ?= python3
RUN := PYTHONPATH=. .venv/bin/python
DETECTOR := $(RUN) -m detector
QUICK := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --dist loadgroup
RESUME = $(if $(wildcard runs/demo/last.pth),--resume)

.PHONY: install demo test test-all torture gpu lint keys wheel

install: .venv/installed  # the environment, in .venv

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: install  # draw a data set, train a small detector on it, score it, draw its detections; continues where it was stopped
	$(DETECTOR) make-shapes data/shapes
	$(DETECTOR) train configs/shapes_r18_fpn.yaml --output runs/demo $(RESUME)
	$(DETECTOR) evaluate runs/demo/best.pth --output runs/demo
	$(DETECTOR) infer runs/demo/best.pth data/shapes/images/val --output runs/demo/pictures

test: install lint  # style, types and the quick tests, a few minutes on two cores
	$(QUICK) -m 'not slow and not torture'

test-all: install lint  # these and the slow proofs
	$(QUICK) -m 'not torture'

torture: install  # many provoked faults (docs/reliability.md); under 25 minutes on two cores
	$(RUN) -m pytest -m torture

gpu:  # the tests that need a GPU, and its speed; under 8 minutes on one, with the packages that `python3` has
	PYTHONPATH=. $(PYTHON) -m pytest -m gpu
	PYTHONPATH=. $(PYTHON) scripts/benchmark_gpu.py

lint: install  # style, and no more errors of the type checker than before
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(RUN) scripts/check_types.py

keys: install  # docs/keys.md, which lists every key of a configuration
	$(DETECTOR) config --markdown > docs/keys.md

wheel: install  # the package with its configurations, in dist/
	.venv/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
