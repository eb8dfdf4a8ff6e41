# Two commands do everything on a fresh machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PHOTOGRAPH = $(shell $(BIN)/python -c "from sklearn.datasets import images; print(images.__path__[0])")/china.jpg
export TOKENIZERS_PARALLELISM := false

SCENES ?= 50

.PHONY: demo test unit notebooks elsewhere figures browser lab lint docs

demo: $(INSTALLED)
	$(BIN)/emerdiff-probe segment "$(PHOTOGRAPH)" --model photo --out out
	$(BIN)/emerdiff-probe segment emerdiff_probe/pocket/assets/scene.png --out out
	@echo
	@echo "out/china: a photograph that the small model of street photographs never saw."
	@echo "out/scene: a drawn scene that the pocket model never saw, of the world whose truth is known."
	@echo "Look at readings.png and difference_maps.png in both folders."

test: unit browser notebooks

unit: $(INSTALLED)  # tiny models: two processes of one thread each beat one process of two
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests --ignore=tests/browser

notebooks: $(INSTALLED)  # studies of one scene: that they run, not what they find; no browser started for every figure
	PLOTLY_RENDERER=plotly_mimetype EMERDIFF_SCENES=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --nbmake --nbmake-timeout=600 notebooks

elsewhere: $(INSTALLED)  # the code of every notebook on a small Stable Diffusion and photographs
	EMERDIFF_ALL_NOTEBOOKS=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/test_notebooks.py

figures: $(INSTALLED)  # hours: measures what the notebooks show, then runs them all and keeps their outputs
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.notebook_results --scenes $(SCENES)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.notebooks

browser: $(INSTALLED)  # the explorers in a real JupyterLab; skipped where there is no Chromium
	$(BIN)/pytest tests/browser

lab: $(INSTALLED)
	$(BIN)/jupyter lab notebooks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

docs: $(INSTALLED)  # the documentation site, in docs/_build/html; every page's code is run
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build --fail-on-warning --keep-going -q -b html docs docs/_build/html
