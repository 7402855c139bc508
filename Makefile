# A newcomer needs two of these: `make demo` and `make test`.
PYTHON ?= python3
RUN := PYTHONPATH=. .venv/bin/python
RESUME = $(if $(wildcard runs/demo/last.pth),--resume)

.PHONY: install demo test test-all torture lint

install: .venv/installed  # the environment, in .venv

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: install  # draw a data set, train a small detector on it, score it, draw what it finds; goes on where it was stopped
	$(RUN) scripts/make_shapes.py data/shapes
	$(RUN) scripts/train.py configs/shapes_r18_fpn.yaml --output runs/demo $(RESUME)
	$(RUN) scripts/evaluate.py runs/demo/best.pth --output runs/demo
	$(RUN) scripts/infer.py runs/demo/best.pth data/shapes/images/val --output runs/demo/pictures

test: install lint  # the quick tests, a few minutes on two cores
	$(RUN) -m pytest -m 'not slow and not torture'

test-all: install lint  # these and the slow proofs
	$(RUN) -m pytest -m 'not torture'

torture: install  # kill, starve and poison it, many times over (docs/reliability.md); under 25 minutes on two cores
	$(RUN) -m pytest -m torture

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
