# make quickstart   the whole job, small: data -> tokenizer -> pretraining -> SFT -> DPO -> answers -> export, on a laptop's CPU
# make demo         a web page to chat with the quickstart's model, and its training curves: http://127.0.0.1:8998/
# make test         the tests (a few minutes on two cores)
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
QUICK := out/quickstart
ASK := $(PY) evaluate.py --task questions --data $(QUICK)/data/questions.jsonl

.PHONY: quickstart demo test test-slow test-lowest lint clean

quickstart: $(VENV)/.run
	$(PY) -m minimind_jax.data.generate --out $(QUICK)/data
	test -e $(QUICK)/tokenizer/tokenizer.json || \
		$(PY) -m minimind_jax.tokenizer train --data $(QUICK)/data/pretrain.jsonl --vocab-size 2048 --out $(QUICK)/tokenizer
	$(PY) train.py --config configs/quickstart.py
	$(ASK) --model $(QUICK)/pretrain --plain
	$(PY) train.py --config configs/quickstart_sft.py
	$(ASK) --model $(QUICK)/sft
	$(PY) train.py --config configs/quickstart_dpo.py
	$(PY) -m minimind_jax.training.plot $(QUICK)/pretrain $(QUICK)/sft --out $(QUICK)/curves.png
	$(PY) -m minimind_jax.training.plot $(QUICK)/dpo
	$(ASK) --model $(QUICK)/dpo --json $(QUICK)/answers.json
	$(PY) evaluate.py --model $(QUICK)/pretrain --model $(QUICK)/sft --model $(QUICK)/dpo --task mini_core \
		--json $(QUICK)/mini_core.json --plot $(QUICK)/mini_core.png
	$(PY) -m convert.to_hf --model $(QUICK)/dpo --out $(QUICK)/dpo-hf --force
	$(PY) -m convert.to_gguf --model $(QUICK)/dpo --out $(QUICK)/dpo.gguf --type q8_0 --force
	@echo
	@echo "chat with it:  $(PY) chat.py --model $(QUICK)/dpo"
	@echo "in a browser:  make demo"

demo: $(VENV)/.run
	$(PY) serve.py --model $(QUICK)/dpo --runs $(QUICK) $(addprefix --suggestions ,$(wildcard $(QUICK)/answers.json))

test: $(VENV)/.test
	$(PY) -m pytest -q

test-slow: $(VENV)/.test
	$(PY) -m pytest -q -m slow

# The lowest versions that requirements.txt allows; the highest are what `make test` installs.
test-lowest:
	mkdir -p $(VENV)-lowest
	sed -nE 's/^([A-Za-z0-9_-]+)>=([0-9.]+),.*/\1==\2/p' requirements.txt > $(VENV)-lowest/constraints.txt
	PIP_CONSTRAINT=$(VENV)-lowest/constraints.txt $(MAKE) test VENV=$(VENV)-lowest

lint: $(VENV)/.test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf $(VENV) $(VENV)-lowest out

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11: say make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.run: $(VENV)/.python requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.test: $(VENV)/.run requirements-test.txt
	$(PY) -m pip install -q --disable-pip-version-check -r requirements-test.txt
	touch $@
