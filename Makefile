# Each target sets up what it needs, in a virtual environment below this folder. `make help` lists them.

SHELL := bash
VENV ?= .venv

# The newest supported Python there is, on the PATH or of pyenv, whose shims exist for versions that they do not run.
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell for version in 3.13 3.12 3.11; do \
  for found in python$$version $$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python 2>/dev/null | sort -rV); do \
    "$$found" -c 'import venv' 2>/dev/null && echo "$$found" && exit; \
  done; done; echo python3)
endif

# JAX comes with CUDA where the NVIDIA driver answers. Each lock serves Python 3.11 to 3.13.
EXTRA := $(if $(shell nvidia-smi >/dev/null 2>&1 && echo yes),cuda12,test)
INSTALLED := $(VENV)/.installed-$(EXTRA)
TFDS_INSTALLED := .venv-tfds/.installed-tf
TORCH_INSTALLED := .venv-torch/.installed-torch
BROWSER_INSTALLED := .venv-browser/.installed-browser
ONNX_INSTALLED := .venv-onnx/.installed
IN_VENV := source $(VENV)/bin/activate &&

.DEFAULT_GOAL := help
.PHONY: help install demo test slow follow lint recipes tfds browser parity densecrf onnx bench beside drills fuzz large slurm \
  pictures docs lock clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# $(1): a virtual environment to make, $(2): the lock to fill it from. Every file that pip fetches for it has a hash.
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "mcis needs Python 3.11 to 3.13, and $(PYTHON) is `$(PYTHON) --version 2>&1`: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "$(1): $$($(PYTHON) --version), $(PYTHON)"
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(2)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@
endef

$(INSTALLED): pyproject.toml requirements/$(EXTRA).lock
	$(call make_venv,$(VENV),requirements/$(EXTRA).lock)

$(TFDS_INSTALLED): pyproject.toml requirements/tf.lock
	$(call make_venv,.venv-tfds,requirements/tf.lock)

# PyTorch is what we are held against: never needed to use mcis. torchvision comes without its needs, for which pip
# would replace a CPU build of torch.
$(TORCH_INSTALLED): pyproject.toml requirements/test.lock
	$(call make_venv,.venv-torch,requirements/test.lock)
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 pillow matplotlib onnx onnxruntime
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0

# What drives a browser; the browser itself is Debian's (apt install chromium), or named by $CHROMIUM.
$(BROWSER_INSTALLED): pyproject.toml requirements/test.lock
	$(call make_venv,.venv-browser,requirements/test.lock)
	.venv-browser/bin/python -m pip install --quiet --disable-pip-version-check playwright==1.65.2

install: $(INSTALLED)  ## mcis and the tools of its tests in .venv, nothing else

demo: $(INSTALLED)  ## the whole path on phantoms, below ./demo: data, five trainings, findings, a page
	@$(IN_VENV) launch/demo.sh

PYTEST := python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal

test: $(INSTALLED)  ## the tests, on every core
	@$(IN_VENV) $(PYTEST) -m "not slow"

slow: $(INSTALLED)  ## those tests that take long: processes stopped and killed, twenty steps on several devices
	@$(IN_VENV) $(PYTEST) -m slow

follow: $(INSTALLED)  ## the worked examples of docs/, each command of them, in copies of this checkout; ten minutes
	@$(IN_VENV) PYTHONPATH=. python -m pytest tests/lanes/docs/follow.py

lint: $(INSTALLED)  ## style, types, and which module may import which
	@$(IN_VENV) ruff check --output-format=concise
	@$(IN_VENV) ruff format --check
	@$(IN_VENV) mypy
	@$(IN_VENV) lint-imports

.venv-recipes/.installed: requirements/recipes.lock
	$(PYTHON) -m venv .venv-recipes
	.venv-recipes/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

recipes: $(INSTALLED) .venv-recipes/.installed  ## launch/: Dockerfile and scripts linted, the JobSet held against its schemas
	@.venv-recipes/bin/python tests/lanes/recipes/check.py $(VENV)/bin/python

tfds: $(TFDS_INSTALLED)  ## TensorFlow's own `tfds build` on the builder, and `mcis build` under Beam, in .venv-tfds
	@source .venv-tfds/bin/activate && launch/tfds.sh

browser: $(BROWSER_INSTALLED)  ## the page of `mcis serve` in a real Chromium, and a load of 200 requests; shots in ./browser
	@source .venv-browser/bin/activate && PYTHONPATH=. python -m pytest -s tests/lanes/browser/page.py

parity: $(TORCH_INSTALLED)  ## every published network, and light, against PyTorch's with equal weights, in .venv-torch
	@source .venv-torch/bin/activate && PYTHONPATH=. python -m pytest -s tests/lanes/parity/parity.py

# The authors' CRF: its source is older than Cython 3 and NumPy 2, and the C++ that lies in it than Python 3.11.
.venv-densecrf/.installed:
	$(PYTHON) -m venv .venv-densecrf
	.venv-densecrf/bin/python -m pip install --quiet --disable-pip-version-check 'cython<3' 'numpy<2' 'setuptools<81' wheel
	.venv-densecrf/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
	  --no-build-isolation --dest .venv-densecrf pydensecrf==1.0rc3
	cd .venv-densecrf && tar xzf pydensecrf-1.0rc3.tar.gz && touch pydensecrf-1.0rc3/pydensecrf/*.pyx
	.venv-densecrf/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation .venv-densecrf/pydensecrf-1.0rc3
	touch $@

densecrf: $(INSTALLED) .venv-densecrf/.installed  ## our CRF against the authors' on real scans; DATA=folder of prepared data
	@$(IN_VENV) python tests/lanes/parity/densecrf.py --densecrf=.venv-densecrf/bin/python --data_dir=$(or $(DATA),data)

# jax2onnx asks for an older Orbax than ours, which pip puts in the place of that of the lock: it reads weights as well.
$(ONNX_INSTALLED): pyproject.toml requirements/test.lock
	$(call make_venv,.venv-onnx,requirements/test.lock)
	.venv-onnx/bin/python -m pip install --quiet --disable-pip-version-check jax2onnx==0.17.0 onnx==1.23.2 onnxruntime==1.32.0

onnx: $(ONNX_INSTALLED)  ## every network as ONNX Runtime runs it against itself in JAX, and what ships, in .venv-onnx; ONNX="--only shipped"
	@source .venv-onnx/bin/activate && PYTHONPATH=. python tests/lanes/parity/exported.py $(ONNX)

bench: $(TORCH_INSTALLED)  ## our times as ratios to others', into ./bench; BENCH="--only crf --rounds 9" and the like
	@source .venv-torch/bin/activate && PYTHONPATH=. python tests/lanes/bench/bench.py $(BENCH)

beside: $(TORCH_INSTALLED)  ## our training beside PyTorch's on prepared BUSI, for as many minutes; BESIDE="--epochs 10" and the like
	@source .venv-torch/bin/activate && PYTHONPATH=. python tests/lanes/bench/training.py $(BESIDE)

drills: $(INSTALLED)  ## a training killed a hundred times at random moments ends where it would have; DRILLS="--kills 20" and the like
	@$(IN_VENV) PYTHONPATH=. python tests/lanes/drills/kills.py $(DRILLS)

fuzz: $(INSTALLED)  ## thousands of bad inputs to every reader, into ./fuzz what fails; FUZZ="--target dicom --only 1234" one again
	@$(IN_VENV) PYTHONPATH=. python -m tests.lanes.fuzz.fuzz $(FUZZ)

large: $(INSTALLED)  ## memory and speed with 10,000 and 100,000 synthetic scans, an hour; LARGE="--scans 1000 --data_dir DIR"
	@$(IN_VENV) PYTHONPATH=. python tests/lanes/bench/large.py $(LARGE)

slurm: $(INSTALLED)  ## the recipes of launch/slurm under a real Slurm on this machine (Debian's slurm-wlm and munge; root)
	@$(IN_VENV) PYTHONPATH=. python tests/lanes/slurm/lane.py

pictures: $(INSTALLED)  ## the pictures of README and docs/python_api.md anew, by the weights of `make demo`
	@$(IN_VENV) python docs/pictures.py

DOCS_INSTALLED := .venv-docs/.installed-docs
$(DOCS_INSTALLED): pyproject.toml requirements/test.lock
	$(call make_venv,.venv-docs,requirements/test.lock)
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check pdoc==16.0.0

docs: $(DOCS_INSTALLED)  ## the API reference from the docstrings, below ./site, in .venv-docs
	@.venv-docs/bin/python -W ignore docs/reference.py

lock:  ## resolve requirements/*.lock anew for what pyproject.toml says; UPGRADE=--upgrade takes newer versions
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	for extra in test cuda12 beam tf dicom web; do \
	  .venv-lock/bin/uv pip compile pyproject.toml --extra test --extra dicom --extra web --extra $$extra --python-version 3.11 --universal \
	    --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet $(UPGRADE) \
	    --output-file requirements/$$extra.lock || exit 1; \
	done
	.venv-lock/bin/uv pip compile requirements/recipes.in --python-version 3.11 --universal \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet $(UPGRADE) \
	  --output-file requirements/recipes.lock

clean:  ## remove the environments, the demo and what tools keep
	rm -rf .venv .venv-* bench browser demo fuzz site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
