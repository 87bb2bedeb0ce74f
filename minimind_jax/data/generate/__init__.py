"""A synthetic bilingual corpus in MiniMind's jsonl formats, small enough to be learnt on a CPU in minutes.

    python -m minimind_jax.data.generate --out DIR [--seed 0] [--documents 14000] [--conversations 12000] ...

Everything is a pure function of the seed and the counts: the files are byte-identical on every machine, and a smaller
count gives a prefix of a larger one's file. Sixteen families of questions, each in Chinese and English; the operands of
held-out files never occur in training files (`Family`). The files, one JSON object a line:

    pretrain.jsonl   {"text": "柠檬一般是黄色。青蛙一般是绿色。"}
                     {"text": "Question: What is 7 plus 5?\\nAnswer: 12\\nQuestion: ..."}
    sft.jsonl        {"conversations": [{"role": "user", "content": "Which is larger, 37 or 52?"},
                                        {"role": "assistant", "content": "52"}]}
    dpo.jsonl        {"chosen": [{"role": "user", "content": "3米等于多少厘米？"},
                                 {"role": "assistant", "content": "300厘米"}],
                      "rejected": [..., {"role": "assistant", "content": "30厘米"}]}
    questions.jsonl  {"id": "units-zh-001", "family": "units", "language": "zh",
                      "conversations": [{"role": "user", "content": "3米等于多少厘米？"}],
                      "answer": "300厘米", "gt": ["300厘米", "300", "300 厘米"]}

`pretrain_val.jsonl`, `sft_val.jsonl` and `dpo_val.jsonl` have the same formats on held-out operands; questions.jsonl is
all held out. `generated.json` says what was generated, with each file's SHA-256.

Needs nothing but the standard library.
"""

from minimind_jax.data.generate.check import is_correct
from minimind_jax.data.generate.item import LANGUAGES, Family, Item
from minimind_jax.data.generate.records import FAMILIES, plain_prompt
from minimind_jax.data.generate.write import MANIFEST, Sizes, generate

__all__ = ["FAMILIES", "LANGUAGES", "MANIFEST", "Family", "Item", "Sizes", "generate", "is_correct", "plain_prompt"]
