# `make demo` and `make test` are all it takes on a fresh machine with Python 3.10+ and a C++ compiler. `make help` lists
# the rest. VENV= (empty) uses $(PYTHON) as it stands, downloads nothing, and installs radam_fused alone into it.

PYTHON  ?= python3
# `make gpu` takes a Python that has torch as it stands: the machine may have no network.
ifneq ($(filter gpu,$(MAKECMDGOALS)),)
VENV    ?= $(shell $(PYTHON) -c 'import importlib.util as u; print("" if u.find_spec("torch") else ".venv")')
STAGES  ?= build test sanitize formats bench
endif
# The baselines depend on dozens of packages, so `make bench` has its own environment.
ifneq ($(filter bench,$(MAKECMDGOALS)),)
VENV    ?= .venv-bench
endif
# So do the tools that large models are trained with.
ifneq ($(filter tools,$(MAKECMDGOALS)),)
VENV    ?= .venv-tools
endif
# So does what changes the package's code and looks at which lines run.
ifneq ($(filter mutants coverage,$(MAKECMDGOALS)),)
VENV    ?= .venv-mutants
endif
VENV    ?= .venv
DOCS_VENV ?= .venv-docs
WHEEL_VENV ?= .venv-wheel
BACKEND ?= auto
PROCESSES ?= 2
export CIFAR10

ifeq ($(strip $(VENV)),)
PY    := $(PYTHON)
TOOLS :=
BUILT := build/.always
OTHERS :=
TRAINERS :=
LARGE_TOOLS :=
MUTANT_TOOLS :=
else
PY    := $(VENV)/bin/python
TOOLS := $(VENV)/.tools
BUILT := $(VENV)/.built
OTHERS := $(VENV)/.baselines
TRAINERS := $(VENV)/.trainers
LARGE_TOOLS := $(VENV)/.large_tools
MUTANT_TOOLS := $(VENV)/.mutants
export PATH := $(abspath $(VENV))/bin:$(PATH)
endif

CXX_FILES := $(shell find csrc bench tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

# Two files of tests at a time where pytest-xdist is there, as it is in .venv.
PARALLEL = $(shell $(PY) -c 'import importlib.util as u; print("-n 2 --dist loadfile" if u.find_spec("xdist") else "")')

.PHONY: help venv build demo pretrain test test-all test-long trainers tools matrix large bench readme paper docs wheel gpu cuda-check triton-check arm-check sanitize faults properties mutants coverage lint format clean build/.always
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

venv: $(TOOLS)  ## the environment in .venv, with the versions pinned in requirements/dev.txt

build: $(BUILT)  ## the package, installed in place with its extension; again when the C++ code or its build changed

demo: build  ## train a small GPT with FusedRAdam and with torch.optim.RAdam (BACKEND=auto|cpu|triton|reference)
	$(PY) examples/train_gpt.py --backend $(BACKEND) $(DEMO_ARGS)

pretrain: build  ## pre-train the demo's GPT with FSDP2 (PROCESSES=2, PRETRAIN_ARGS)
	$(PY) -m torch.distributed.run --standalone --nproc-per-node $(PROCESSES) examples/pretrain.py $(PRETRAIN_ARGS)

# Two processes with two threads each, on two cores: threads that spin while they wait take the others' time, a third of all.
test test-all test-long: export OMP_WAIT_POLICY := passive
test: build  ## the quick tests, without a GPU (PYTEST_ARGS="-k rectification")
	$(PY) -m pytest $(PARALLEL) -m "not long" --durations=15 $(PYTEST_ARGS)

test-all: build  ## all tests, without a GPU: the quick and the long ones
	$(PY) -m pytest $(PARALLEL) --durations=15 $(PYTEST_ARGS)

test-long: build  ## the tests that `make test` leaves out
	$(PY) -m pytest $(PARALLEL) -m long --durations=15 $(PYTEST_ARGS)

trainers: $(TRAINERS)  ## Transformers, Accelerate and Lightning, for tests/trainers, which `make test` skips without them

# DeepSpeed asks for a GPU's compiler unless it is told that there is no GPU.
tools: export DS_ACCELERATOR := cpu
tools: export OMP_WAIT_POLICY := passive
tools: build $(LARGE_TOOLS)  ## DeepSpeed, Megatron-Core, torchtitan and others, in .venv-tools, and tests/tools with two processes; minutes
	$(PY) -m pytest --durations=5 tests/tools $(PYTEST_ARGS)

matrix: build  ## one wheel under torch 2.10 to 2.15 and CPython 3.10 to 3.14; 20 GB of downloads, hours (QUICK=1, RESULTS=file)
	$(PY) -m tests.packaging.matrix $(if $(QUICK),--quick) $(if $(RESULTS),--results $(RESULTS)) $(MATRIX_ARGS)

large: build  ## more than 2^31 elements in a tensor, a bucket and the norm; 17 GiB of memory, minutes
	$(PY) -m pytest --durations=5 tests/large

bench: build $(OTHERS)  ## the benchmarks, saved under bench/results (CASES="16M gpt2" BASELINES="torch optimi" BENCH_ARGS)
	$(PY) -m bench $(if $(CASES),--cases $(CASES)) $(if $(BASELINES),--baselines $(BASELINES)) $(BENCH_ARGS)

readme: $(TOOLS)  ## the numbers of README.md, docs/benchmarks.md and docs/performance.md, and the pictures, from the files under bench/results
	$(PY) -m bench.report.readme
	$(PY) -m bench.report.plots

paper: build  ## the paper's claims, and docs/paper.md; 30 minutes, goes on where it was; QUICK=1, RESULTS=folder, CIFAR10=folder
	$(PY) -m bench.paper $(if $(QUICK),--sizes quick) $(if $(RESULTS),--results $(RESULTS)) $(PAPER_ARGS)

cuda-check: build  ## the CUDA kernels' machine code (SAVE=1: into bench/results/cuda), and the CUDA library against torch in .venv-cuda; nvcc, but no GPU
	$(PY) tests/codegen/cuda_code.py $(if $(SAVE),--save)
	$(PY) tests/packaging/cuda_build.py

# Never with --quiet: mkdocs then counts no warnings, and --strict finds none.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS_VENV)/.tools  ## the documentation site, in build/site; fails for a link that leads nowhere
	$(DOCS_VENV)/bin/python -m mkdocs build --strict

# By the recipe of [tool.cibuildwheel] in pyproject.toml, without its container: the tag has this machine's glibc.
wheel: $(TOOLS) $(WHEEL_VENV)/.tools  ## a manylinux wheel without the CUDA library, in dist
	rm -rf build/wheel
	RADAM_FUSED_NO_CUDA=1 $(PY) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH=$(abspath $(WHEEL_VENV))/bin:$$PATH auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl

triton-check: build  ## the Triton kernels' machine code for NVIDIA and AMD; no GPU (TRITON="3.6.0 3.8.0 3.9.0" for other versions)
	$(PY) -m tests.codegen.triton_check $(if $(TRITON),--triton $(TRITON)) $(TRITON_ARGS)

arm-check: build  ## the C++ for aarch64: all of it compiles, its kernels' bits under qemu-user (needs a cross compiler and qemu-aarch64)
	$(PY) -m tests.codegen.arm_check

sanitize: build  ## the extension's tests under AddressSanitizer with UndefinedBehaviorSanitizer and ThreadSanitizer (SANITIZE_ARGS)
	$(PY) -m tests.sanitizers $(SANITIZE_ARGS)

faults: export RADAM_FUSED_TEST_WHOLE := 1
faults: export OMP_WAIT_POLICY := passive
faults: build  ## a signal at every line of a step and of what changes the layout, a failure of every allocation; 15 minutes
	$(PY) -m pytest $(PARALLEL) --durations=5 tests/state/test_interrupted_steps.py tests/state/test_first_steps_interrupted.py tests/state/test_all_or_nothing.py tests/state/test_failing_allocations.py

properties: build  ## random models under random sequences of what users do: 10,000 examples, half an hour (PROPERTIES_ARGS)
	$(PY) -m tests.properties $(PROPERTIES_ARGS)

mutants: build $(MUTANT_TOOLS)  ## how many small changes of the code the tests notice; hours (MUTANTS_ARGS="'radam_fused.options.*'", "--every 8", --results)
	$(PY) -m tests.mutants $(MUTANTS_ARGS)

coverage: export OMP_WAIT_POLICY := passive
coverage: build $(MUTANT_TOOLS)  ## the share of the package's lines that the quick tests run; fails below that of pyproject.toml (PYTEST_ARGS)
	$(PY) -m pytest $(PARALLEL) -m "not long" --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

gpu: $(TOOLS)  ## on a machine with a GPU: STAGES="build test sanitize formats bench" (and tune), RESULTS=folder; nine minutes
	$(PY) -m bench.gpu --stages $(STAGES) $(if $(RESULTS),--results $(RESULTS))

lint: $(TOOLS)  ## ruff, clang-format, mypy and import-linter; changes nothing
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(if $(CXX_FILES),clang-format --dry-run --Werror $(CXX_FILES))
	$(PY) -m mypy
	lint-imports --no-logo

format: $(TOOLS)  ## what ruff and clang-format can put right by themselves
	$(PY) -m ruff check --fix
	$(PY) -m ruff format
	$(if $(CXX_FILES),clang-format -i $(CXX_FILES))

clean:  ## everything that make made
	rm -rf .venv .venv-cuda .venv-bench .venv-docs .venv-tools .venv-wheel .venv-mutants mutants .coverage* build dist *.egg-info radam_fused/*.so .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(TOOLS): requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "PYTHON=$(PYTHON) is older than 3.10")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --requirement $<
	@touch $@

$(TRAINERS): $(TOOLS) requirements/trainers.txt
	$(PY) -m pip install --quiet --constraint requirements/dev.txt --requirement requirements/trainers.txt
	@touch $@

$(LARGE_TOOLS): $(TOOLS) requirements/tools.txt requirements/tools-alone.txt
	$(PY) -m pip install --quiet --constraint requirements/dev.txt --requirement requirements/tools.txt
	$(PY) -m pip install --quiet --no-deps --requirement requirements/tools-alone.txt
	@touch $@

$(MUTANT_TOOLS): $(TOOLS) requirements/mutants.txt
	$(PY) -m pip install --quiet --constraint requirements/dev.txt --requirement requirements/mutants.txt
	@touch $@

$(DOCS_VENV)/.tools: requirements/docs.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --requirement $<
	@touch $@

$(WHEEL_VENV)/.tools: requirements/wheel.txt
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --quiet --requirement $<
	@touch $@

# One after the other where they do not install together. The tables skip what does not install, with the reason.
$(OTHERS): $(TOOLS) requirements/baselines.txt
	@$(PY) -m pip install --quiet --constraint requirements/dev.txt --requirement requirements/baselines.txt || \
	sed '/^#/d' requirements/baselines.txt | while read -r baseline; do \
	  $(PY) -m pip install --quiet --constraint requirements/dev.txt "$$baseline" || echo "$$baseline: left out"; \
	done
	@touch $@

$(BUILT): $(TOOLS) setup.py pyproject.toml $(shell find csrc -type f)
	$(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(if $(TOOLS),@touch $@)
