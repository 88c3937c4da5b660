# make demo   installs, then trains two small policies, with and without the recipe, and compares them (two CPU cores)
# make space  installs, then opens the Space in the browser with the model that make demo left (SPACE_OPTIONS: --quick, --model)
# make test   installs, checks style and types, builds the pages, runs the tests
# make docs   builds the pages into build/site; make docs-serve shows them while you write
# make test-transformers4   writes small repositories with transformers 5 and reads them with 4.57, in .venv-transformers4
# make release VERSION=x.y.z   writes the version, builds wheel and sdist, and runs the README's first example with each
# make lerobot    LeRobot in .venv-lerobot with the plugin, and its tests, which drive LeRobot's own commands
# make test-kernels   runs the GPU's kernels in Triton's interpreter on a CPU, with Triton in .venv-triton
# All make their own .venv; PYTHON chooses the interpreter it is made from, DEMO_OPTIONS and PYTEST_OPTIONS pass options on.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch first and by its exact version: a bare `torch` asked for by another package may take another build.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo space test test-transformers4 lerobot test-kernels lint types docs docs-serve release format clean system-packages browser

demo: $(VENV)/installed-sim system-packages
	$(BIN)/gen-vla demo $(DEMO_OPTIONS)

space: $(VENV)/installed-demo system-packages
	$(BIN)/gen-vla demo --space $(SPACE_OPTIONS)

test: lint docs system-packages browser
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(PYTEST_OPTIONS)

test-transformers4: $(VENV)/installed-dev $(VENV)-transformers4/installed
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) tests/modeling/hub/test_transformers4.py

lerobot: $(VENV)/installed-dev $(VENV)-lerobot/installed
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) tests/serving/test_lerobot_plugin.py

# Where there is a GPU, Triton comes with PyTorch, and `make test` runs the same tests on it.
test-kernels: $(VENV)/installed-dev $(VENV)-triton/installed
	TRITON_INTERPRET=1 PYTHONPATH=$(VENV)-triton $(BIN)/python -m pytest $(PYTEST_OPTIONS) tests/modeling/decoding/test_fused_layers.py

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python .ci/requirements.py
	$(BIN)/python -m deptry . spaces/*/
	$(BIN)/pyright

# Links by which pyright and the pages find the namespace gen_vla, which has no folder of its own.
types: $(VENV)/installed-dev
	@mkdir -p build/types/gen_vla
	@for part in modeling processors training evaluation serving commands; do \
	  ln -sfn ../../../$$part build/types/gen_vla/$$part; done

docs: types
	$(BIN)/python -m mkdocs build --strict --quiet

docs-serve: types
	$(BIN)/python -m mkdocs serve

# In the environment of `make test`, and in a new one that has the wheel alone, then the sdist.
release: types
	$(BIN)/python .ci/release.py $(VERSION)

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/installed-sim: $(VENV)/bin/python setup.cfg constraints.txt
	@echo "Installing (a few minutes the first time)"
	$(PIP) $(TORCH)
	$(PIP) --editable ".[sim]"
	@touch $@

$(VENV)/installed-demo: $(VENV)/installed-sim
	$(PIP) --editable ".[sim,demo]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-sim
	$(PIP) --editable ".[sim,eval,demo,dev]"
	$(PIP) --no-deps openpi-client==0.1.2 # which asks for numpy < 2, and runs with 2
	@touch $@

PIP4 := $(VENV)-transformers4/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-transformers4.txt
$(VENV)-transformers4/installed: constraints-transformers4.txt
	$(PYTHON) -m venv $(VENV)-transformers4
	$(PIP4) $(TORCH)
	$(PIP4) transformers huggingface_hub tokenizers safetensors accelerate numpy pillow
	@touch $@

# LeRobot 0.4 is the last for Python 3.11; it asks for transformers 4. gen-vla itself is there for its client alone.
# LEROBOT says what else to install, such as lerobot[core-scripts,transformers-dep]==0.6.1 with PYTHON=python3.12.
LEROBOT ?= lerobot==0.4.4 transformers==4.57.6
PIPL := $(VENV)-lerobot/bin/python -m pip install --quiet --disable-pip-version-check
PLUGIN := serving/lerobot_policy_gen_vla
$(VENV)-lerobot/installed: $(PLUGIN)/pyproject.toml
	$(PYTHON) -m venv $(VENV)-lerobot
	$(PIPL) $(LEROBOT)
	$(PIPL) --editable "$(PLUGIN)[server]"
	$(PIPL) --no-deps --editable .
	@touch $@

TRITON := triton==3.6.0
$(VENV)-triton/installed: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)-triton $(TRITON)
	@touch $@

# The simulator draws through EGL; Mesa's software renderer is enough.
EGL := libegl1 libegl-mesa0 libgl1-mesa-dri
system-packages:
	@ldconfig -p | grep -q 'libEGL.so.1' && ls /usr/share/glvnd/egl_vendor.d/*.json >/dev/null 2>&1 || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing $(EGL)"; apt-get update -qq && apt-get install -y -qq $(EGL) >/dev/null; \
	else echo "The simulator needs EGL: install $(EGL) (Debian's names)"; fi

# The Space's tests drive Debian's Chromium; without it they skip.
browser:
	@command -v chromium >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing chromium"; apt-get update -qq && apt-get install -y -qq chromium >/dev/null; \
	else echo "The Space's tests need Chromium: install chromium (Debian's name)"; fi

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
