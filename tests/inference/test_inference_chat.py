"""Chat prompts equal transformers'; answers are what `generate` continues them with."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.inference import Options, answer, chat_prompt, generate
from minimind_jax.model import abstract_params
from minimind_jax.tokenizer import load_tokenizer

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=6400, max_seq_len=512)
TOKENIZER = load_tokenizer()


@dataclasses.dataclass(frozen=True)
class Conversation:
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


USER = {"role": "user", "content": "柠檬是什么颜色的？"}
CHATS = [
    Conversation([USER]),
    Conversation([{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "黄色"}, USER]),
    Conversation([{"role": "user", "content": "What time is it?"}], [{"name": "now", "parameters": {}}]),
]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), abstract_params(CONFIG))


@pytest.mark.parametrize("thinking", [False, True])
def test_prompts_are_those_of_transformers(thinking):
    theirs = AutoTokenizer.from_pretrained(str(TOKENIZER.path))
    ids = [chat_prompt(TOKENIZER, chat, enable_thinking=thinking) for chat in CHATS]
    assert ids == [
        theirs.apply_chat_template(
            chat.messages,
            tools=chat.tools,
            add_generation_prompt=True,
            enable_thinking=thinking,
            return_dict=False,
        )
        for chat in CHATS
    ]
    assert all(TOKENIZER.decode(i).endswith("</think>\n\n") is not thinking for i in ids)


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "top_k": 50, "top_p": 0.9, "seed": 5}])
def test_answers_continue_the_prompts(params, options):
    prompts = [chat_prompt(TOKENIZER, chat, enable_thinking=True) for chat in CHATS]
    free = generate(CONFIG, params, prompts, Options(max_new_tokens=12, **options), eos_id=TOKENIZER.eos_id)
    texts = answer(CONFIG, params, TOKENIZER, CHATS, Options(max_new_tokens=12, **options), enable_thinking=True)
    assert texts == [TOKENIZER.decode(ids) for ids in free]
    assert len(set(texts)) == len(texts)  # not the same thing whatever was asked
    if not options:
        assert answer(CONFIG, params, TOKENIZER, CHATS, Options(max_new_tokens=12)) != texts  # another prompt


def test_an_answer_ends_before_its_end_token(params):
    prompt = chat_prompt(TOKENIZER, CHATS[0])
    free = generate(CONFIG, params, [prompt], Options(max_new_tokens=12), eos_id=-1)[0]
    ended = load_tokenizer()
    ended.eos_id = free[5]
    text = answer(CONFIG, params, ended, CHATS[:1], Options(max_new_tokens=12))[0]
    assert text == TOKENIZER.decode(free[: free.index(free[5])])


def test_no_conversation(params):
    assert answer(CONFIG, params, TOKENIZER, [], Options(max_new_tokens=4)) == []


def test_a_prompt_that_is_too_long(params):
    long = Conversation([{"role": "user", "content": "word " * 600}])
    with pytest.raises(UserError, match=r"prompt 1 has \d+ tokens.* limit of 512"):
        answer(CONFIG, params, TOKENIZER, [CHATS[0], long], Options(max_new_tokens=4))
