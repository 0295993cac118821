# make install   an environment of its own in $(VENV)
# make demo      from nothing to runs/demo/report.html; again: it continues (STEPS=200: shorter training, weaker clips)
# make test      style, types and tests, as .ci/run runs them (WORKERS=4: more files at once)
# make soak      hours: kills, stops, 5,000 decodes, the suite 20 times; a table at the end (SOAK="--only kills")

VENV ?= .venv
PYTHON ?= python3
WORKERS ?= 2

bin := $(abspath $(VENV))/bin
export PATH := $(bin):$(PATH)

demo_run := runs/demo
demo_data := data/sounding_objects_demo
shipped := $(wildcard checkpoints/sounding_objects_joint)
prompts := configs/prompts/demo.txt
free_port := import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1])

.PHONY: install demo test soak

install: $(VENV)/.installed

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

# A stamp is younger than what it was made from, so a second call costs nothing.
$(VENV)/.installed: $(VENV)/.created pyproject.toml setup.py
	$(bin)/python -m pip install --disable-pip-version-check --progress-bar on -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(bin)/python -m pip install --disable-pip-version-check -e ".[test]"
	touch $@

demo: install
	$(bin)/python datasets/sounding_objects/prepare.py --tier cpu --clips 4096 --out $(demo_data)
	$(bin)/deepspeed --quiet --master_port $$($(bin)/python -c "$(free_port)") tools/train.py configs/sounding_objects/demo.yaml run=$(demo_run) $(if $(STEPS),steps=$(STEPS))
	$(bin)/python tools/sample_video.py $(demo_run) --prompts $(prompts) --out $(demo_run)/clips/demo --scale 8
ifneq ($(shipped),)
	$(bin)/python tools/sample_video.py $(shipped) --prompts $(prompts) --out $(demo_run)/clips/shipped --scale 8
endif
	$(bin)/python tools/report.py $(demo_run) $(if $(shipped),--clips $(demo_run)/clips/shipped) --clips $(demo_run)/clips/demo

test: $(VENV)/.installed-test
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy mmdiff
	OMP_NUM_THREADS=1 $(bin)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

soak: $(VENV)/.installed-test
	$(bin)/python tests/soak $(SOAK)
