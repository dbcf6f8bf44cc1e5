# Two commands do all that they need by themselves: `make demo` and `make test`.  They work in a virtual environment of
# their own, .venv, which is made once and brought up to date when what it was made from changes.
#
#   make demo     trains the sequential MNIST example; pictures go to demo_out/.  After Ctrl-C ARGS=--resume goes on and
#                 ARGS=--overwrite begins anew
#   make test     runs the tests that show that this installation is right, in TEST_PROCESSES processes: all but those
#                 marked slow, and of each large table of cases a part, which changes with the commit
#   make test-all runs all tests, whole tables
#   make bench    times one layer and makes a page of it, bench/results/layer/MACHINE/README.md; PEERS=1 installs the
#                 other packages and times them too
#   make gpu      builds, tests and times on this machine's CUDA GPU in eight minutes; no .venv, no network: PYTHON must
#                 have torch, numpy, setuptools, cmake, ninja, pybind11 and pytest.  Results go to
#                 bench/results/gpu/CARD/ or to the folder of --out; ARGS="--only build,routes" runs these stages only
#   make mutants  plants bugs in the CUDA kernels, one by one, and demands that the tests find each; needs g++ only
#   make machine  compiles the CUDA kernels with nvcc and holds registers and machine code against what is expected
#   make lint     ruff, mypy, clang-format
#   make build    the environment and the compiled part, nothing else
#   make clean    removes .venv and all that was built; keeps data/ and demo_out/
#
# ARGS goes to the program:        make demo ARGS="--minutes 2"      make test ARGS="-k models"
# PYTHON is what makes .venv, or what `make gpu` runs in:  make test PYTHON=python3.12  (Python 3.11 or newer)
# PIP_ARGS goes to pip install:    make test PIP_ARGS="--no-index --find-links wheels"
# CUDA=1 builds the CUDA kernels (needs nvcc), CUDA=0 does not; by default they are built where there is a GPU.
# LSNN_CASES=k/n chooses the part of the tables, k from 0:  make test LSNN_CASES=2/7

PYTHON ?= python3
VENV ?= .venv
TEST_PROCESSES ?= 2
cuda := $(or $(filter 0 1,$(CUDA)),$(if $(wildcard /dev/nvidiactl /dev/dxg),auto,0))
cuda_option := -DLSNN_BUILD_CUDA=$(patsubst 0,OFF,$(patsubst 1,ON,$(patsubst auto,AUTO,$(cuda))))
# One of seven parts, another one with each commit; a source distribution has no commits.
LSNN_CASES ?= $(shell echo $$((0x$$(git rev-parse --short=7 HEAD 2> /dev/null || echo 0) % 7)))/7
BIN := $(abspath $(VENV))/bin
in_venv := PATH="$(BIN):$$PATH"
run_tests = python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
SOURCES := setup.py CMakeLists.txt lsnn_ext/models.py $(shell find csrc -type f)

# Installs the requirements that pyproject.toml lists under a name: $(call install,build-system.requires)
define install
@$(BIN)/python -c "import functools, sys, tomllib; print(*functools.reduce(dict.get, sys.argv[1].split('.'), \
tomllib.load(open('pyproject.toml', 'rb'))), sep='\n')" $(1) > $@.new
@echo "installing into $(VENV):" $$(cat $@.new)
@$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r $@.new
@mv $@.new $@
endef

.PHONY: demo test test-all bench gpu mutants machine lint build here always clean
demo: build $(VENV)/.examples
	$(in_venv) python examples/smnist/train.py --models LSNN $(ARGS)

test: build $(VENV)/.test
	$(in_venv) LSNN_CASES=$(LSNN_CASES) $(run_tests) -m "not slow" $(ARGS)

test-all: build $(VENV)/.test
	$(in_venv) $(if $(filter command,$(origin LSNN_CASES)),,env -u LSNN_CASES) $(run_tests) $(ARGS)

bench: build $(VENV)/.bench $(if $(PEERS),$(VENV)/.peers)
	$(in_venv) python -m bench $(if $(PEERS),--peers) $(ARGS)

gpu:
	$(PYTHON) -m bench.gpu $(ARGS)

# -B: csrc/ holds what the build depends on.
mutants:
	$(PYTHON) -B csrc/tests/mutants/mutants.py $(ARGS)

machine: $(VENV)/.machine
	$(in_venv) python -B csrc/tests/cuda/machine_code.py $(ARGS)

lint: build $(VENV)/.dev
	$(in_venv) ruff check lsnn_ext bench examples python_tests csrc/tests csrc/model_table.py setup.py docs .ci
	$(in_venv) check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(in_venv) mypy
	$(in_venv) mypy csrc/tests/mutants/mutants.py csrc/tests/cuda/machine_code.py csrc/model_table.py
	$(in_venv) clang-format --dry-run --Werror $$(find csrc bench lsnn_ext -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

build: here $(VENV)/.built

clean:
	rm -rf $(VENV) build build-* *.egg-info lsnn_ext/_C.*.so .pytest_cache .hypothesis .ruff_cache .mypy_cache

# ------------------------------------------------------------------------------------------------- the environment
# An editable installation: what is edited under lsnn_ext/ takes effect at once, what is edited under csrc/ with the next
# `make`, which compiles again only what changed.  The requirements of the build are installed first and the build
# takes them from there: an isolated build would download and unpack torch a second time.
$(VENV)/.built: $(VENV)/.editable $(VENV)/.cuda $(SOURCES)
	$(in_venv) LSNN_CMAKE_ARGS="$(cuda_option) $$LSNN_CMAKE_ARGS" python setup.py --quiet build_ext --inplace
	@touch $@

# Whether CUDA kernels were built; newer than .built where another choice is made now.
$(VENV)/.cuda: always | $(VENV)/.made
	@echo "$(cuda)" | cmp -s - $@ || echo "$(cuda)" > $@

$(VENV)/.editable: $(VENV)/.build-requirements setup.py | here
	@LSNN_BUILD=off $(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.build-requirements: pyproject.toml | $(VENV)/.made
	$(call install,build-system.requires)

$(VENV)/.docs $(VENV)/.test $(VENV)/.examples $(VENV)/.bench $(VENV)/.peers $(VENV)/.machine $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(VENV)/.editable
	$(call install,project.optional-dependencies.$*)

# A virtual environment cannot be moved or copied: its programs begin with the path that it was made at.
here:
	@test ! -e $(VENV)/pyvenv.cfg || grep -q '^command = .* $(abspath $(VENV))$$' $(VENV)/pyvenv.cfg || \
	{ echo "VENV: expected an environment that was made at $(abspath $(VENV)), got one from elsewhere;" \
	"'make clean' removes it"; exit 1; }

$(VENV)/.made: | here
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	{ echo "PYTHON: expected Python 3.11 or newer, got '$(PYTHON)' ($$($(PYTHON) --version 2>&1)); name another:" \
	"make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" || \
	{ echo "PYTHON: expected the module venv, got a Python without it; on Debian: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c "import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))" || \
	{ echo "PYTHON: expected Python.h, got a Python without it; on Debian: apt-get install python3-dev"; exit 1; }
	@command -v $${CXX:-c++} > /dev/null || command -v g++ > /dev/null || command -v clang++ > /dev/null || \
	{ echo "CXX: expected a C++ compiler, found neither c++ nor g++ nor clang++; on Debian: apt-get install g++"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
