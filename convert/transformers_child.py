"""What transformers makes of a model directory; `convert.transformers_check` runs it in a process of its own.

Reads {"directory", "tokens", "text", "marked", "messages", "logits"} as JSON from stdin, writes the float32 logits of
`tokens` to the .npy file `logits` and, as the last line of stdout, {"version", "problem", "token_ids", "marked_ids",
"rendered", "eos_id"} or {"unusable"}.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def look(request: dict[str, Any]) -> dict[str, Any]:
    try:
        import numpy as np
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except (ImportError, OSError) as e:  # OSError: a library that torch links to is missing
        return {"unusable": f"{type(e).__name__}: {e}"}
    loaded: Any = AutoModelForCausalLM.from_pretrained(request["directory"], output_loading_info=True)
    model, report = loaded
    odd = [f"{name} {key.replace('_', ' ')}" for key, names in report.items() for name in list(names or ())[:3]]
    with torch.no_grad():
        # Version 5 loads in the files' dtype, 4 in float32: float() makes both compute in float32.
        logits = model.float().eval()(torch.tensor([request["tokens"]])).logits[0]
    np.save(request["logits"], logits.numpy())
    tokenizer = AutoTokenizer.from_pretrained(request["directory"])
    token_ids, marked_ids = (tokenizer.encode(request[key], add_special_tokens=False) for key in ("text", "marked"))
    messages = request["messages"]
    return {
        "version": transformers.__version__,
        "problem": ", ".join(odd),
        "token_ids": token_ids,
        "marked_ids": marked_ids,
        "rendered": tokenizer.apply_chat_template(messages, tokenize=False) if messages else "",
        "eos_id": model.generation_config.eos_token_id,
    }


if __name__ == "__main__":
    print("\n" + json.dumps(look(json.load(sys.stdin))))
