# Everything runs in .venv, which is made on first use. Needs Python 3.11 or later and nothing else.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --quiet --disable-pip-version-check
CONSTRAINTS = -c constraints.txt

.PHONY: demo test coverage test-slow test-triton lint docs dist clean

demo: .venv/ready
	@echo "kbc demo: about half a minute on two idle cores"
	.venv/bin/kbc demo

test: .venv/ready-dev
	@echo "the test suite: five to ten minutes on two cores"
	.venv/bin/python -m pytest

# The same tests; fails below the floor that pyproject.toml sets.
coverage: .venv/ready-dev
	.venv/bin/python -m pytest --cov --cov-report=term:skip-covered

test-slow: .venv/ready-dev
	.venv/bin/python -m pytest -m slow

# The Triton kernels in its interpreter: right values on a CPU, no GPU needed. Minutes.
test-triton: .venv/ready-dev
	$(PIP) install $(CONSTRAINTS) "triton>=3.9"
	.venv/bin/python -m pytest -m "slow or not slow" tests/ops/test_conv4d_triton.py

lint: .venv/ready-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy kbc adapters

docs: .venv/ready-docs
	.venv/bin/mkdocs build --strict

# Wheel and sdist, checked: what CONTRIBUTING.md's "Releasing" uploads.
dist: .venv/ready-dev
	rm -rf dist
	.venv/bin/python -m build
	.venv/bin/python -m twine check --strict dist/*

clean:
	rm -rf .venv build dist site *.egg-info

# torch first and alone: its version decides which build pip takes for everything that asks for torch.
.venv/ready: pyproject.toml constraints.txt
	@echo "installing torch and kbc into .venv, once: a minute, and the download: torch is 0.2 GB, on Linux with CUDA 3 GB"
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install $(CONSTRAINTS) torch
	$(PIP) install $(CONSTRAINTS) -e ".[viz,progress]"
	@.venv/bin/python -c "import cv2" 2>/dev/null || { \
	  echo "no libGL here: falling back to opencv-python-headless"; \
	  $(PIP) uninstall -y opencv-python; $(PIP) install $(CONSTRAINTS) opencv-python-headless; }
	touch $@

.venv/ready-dev: .venv/ready
	@echo "installing the development tools into .venv, once: about a minute"
	$(PIP) install $(CONSTRAINTS) -e ".[dev]"
	@.venv/bin/python -c "import cv2" 2>/dev/null || { \
	  $(PIP) uninstall -y opencv-python; $(PIP) install --force-reinstall --no-deps opencv-python-headless; }
	touch $@

.venv/ready-docs: .venv/ready
	@echo "installing the documentation tools into .venv, once: half a minute"
	$(PIP) install $(CONSTRAINTS) -e ".[docs]"
	touch $@
