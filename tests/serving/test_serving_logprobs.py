"""Log-probabilities of tokens that are parts of characters, special, or impossible."""

import json

from serving_helpers import TOKENIZER

from minimind_jax.inference.request import Token
from minimind_jax.serving.logprobs import CompletionLogprobs, chat_logprobs, token_text


def test_tokens_that_are_parts_of_a_character():
    text = "a𠮷b🙂"
    ids = TOKENIZER.encode(text)
    assert len(ids) > len(text)  # else nothing is split
    entries = chat_logprobs(TOKENIZER, [Token(id, -1.0, ()) for id in ids])
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == text.encode()
    assert entries[0]["token"] == "a"
    assert any(entry["token"].startswith("bytes:\\x") for entry in entries)

    logprobs = CompletionLogprobs(TOKENIZER)
    offsets = [offset for id in ids for offset in logprobs.push([Token(id, -1.0, ())])["text_offset"]]
    assert offsets == sorted(offsets) and offsets[0] == 0
    assert {text[offset] for offset in offsets} == set(text)
    assert offsets[entries.index(next(e for e in entries if e["token"] == "b"))] == text.index("b")


def test_special_tokens_take_no_room():
    eos, a = TOKENIZER.eos_id, TOKENIZER.encode("a")[0]
    tokens = [Token(a, -1.0, ()), Token(eos, -1.0, ()), Token(a, -1.0, ())]
    new = CompletionLogprobs(TOKENIZER).push(tokens)
    assert (new["tokens"], new["text_offset"]) == (["a", "<|im_end|>", "a"], [0, 1, 1])


def test_what_json_cannot_hold():
    token = Token(65, float("-inf"), ((66, float("nan")), (-1, 0.0)))
    (entry,) = chat_logprobs(TOKENIZER, [token])
    assert entry["logprob"] == -9999.0
    assert [alternative["logprob"] for alternative in entry["top_logprobs"]] == [-9999.0]  # -1 fills up
    json.dumps(entry, allow_nan=False)


def test_ids_beyond_the_tokenizer():
    assert token_text(TOKENIZER, 6500) == ""  # embeddings may have more rows
    assert chat_logprobs(TOKENIZER, [Token(6500, -1.0, ())])[0]["bytes"] is None
