"""Rows of SFT and DPO, read back from real jsonl files with the shipped tokenizer."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minimind_jax.config import DataConfig, SftConfig
from minimind_jax.data import PairRows, SftRows, open_dpo, open_sft
from minimind_jax.data.dpo import MAX_PAIRS
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import Tokenizer, load_tokenizer

KEEP_THINK = SftConfig(system_prompt_prob=0.0, empty_think_drop_prob=0.0)
BLOCK = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer()


def chat(*turns: str, system: str = "") -> dict[str, Any]:
    """User and assistant take turns."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"conversations": [{"role": "system", "content": system}] * bool(system) + messages}


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        side: [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for side, answer in (("chosen", chosen), ("rejected", rejected))
    }


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


def data(path: Path, seq_len: int = 128, **changes: Any) -> DataConfig:
    return DataConfig(path=str(path), cache_dir=str(path.parent / "cache"), max_seq_len=seq_len, **changes)


def numbered(n: int) -> list[dict[str, Any]]:
    return [chat(f"What is {i}?", "A number. " * (1 + i % 7)) for i in range(n)]


def segments(rows: SftRows | PairRows, tokenizer: Tokenizer, epoch: int = 0) -> list[tuple[str, str]]:
    """(text, the targets in it) of every segment of an epoch, row by row."""
    ids = epoch * rows.rows_per_epoch + np.arange(rows.rows_per_epoch)
    batch = rows.batch(ids)
    found = []
    for r in range(len(ids)):
        row = {name: values[r] for name, values in batch.items()}
        for segment in range(1, row["segment_ids"].max() + 1):
            (places,) = np.nonzero(row["segment_ids"] == segment)
            assert np.array_equal(row["positions"][places], np.arange(len(places)))
            tokens, mask = row["tokens"][places], row["target_mask"][places]
            assert not mask[-1]
            assert np.array_equal(row["targets"][places][mask], tokens[1:][mask[:-1]])
            assert not row["targets"][places][~mask].any()
            text, targets = (
                tokenizer.decode(t.tolist(), skip_special_tokens=False) for t in (tokens, tokens[1:][mask[:-1]])
            )
            found.append((text, targets))
        padding = row["segment_ids"] == 0
        assert not (row["tokens"][padding].any() or row["target_mask"][padding].any())
    return found


def rendered(question: str, answer: str, block: str = BLOCK) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{block}{answer}<|im_end|>\n"


# --- SFT ------------------------------------------------------------------------------------------


def test_every_conversation_once_an_epoch_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows, val = open_sft(data(write(tmp_path / "a.jsonl", numbered(60))), KEEP_THINK, tokenizer, seed=0)
    assert val is None and rows.n_docs == 60
    wanted = sorted(
        (rendered(f"What is {i}?", "A number. " * (1 + i % 7)), BLOCK + "A number. " * (1 + i % 7) + "<|im_end|>\n")
        for i in range(60)
    )
    orders = [segments(rows, tokenizer, epoch) for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == wanted
    assert orders[0] != orders[1]
    assert rows.n_tokens == sum(len(tokenizer.encode_rendered(text)) for text, _ in wanted)


def test_order_and_augmentation_follow_from_seed_and_epoch(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config, options = data(write(tmp_path / "a.jsonl", numbered(60))), SftConfig(0.3, 0.5)

    def epochs(seed: int) -> list[list[tuple[str, str]]]:
        rows, _ = open_sft(config, options, tokenizer, seed)
        return [segments(rows, tokenizer, epoch) for epoch in (0, 1)]

    first, again, other = epochs(1), epochs(1), epochs(2)
    assert first == again
    assert len({str(sorted(epoch)) for epoch in (*first, *other)}) == 4  # other conversations are hit each time


def test_shares_of_the_augmentations(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [*numbered(400), *(chat("Hi", "Ho", system="Be kind.") for _ in range(100))]
    rows, _ = open_sft(data(write(tmp_path / "a.jsonl", records)), SftConfig(0.3, 0.6), tokenizer, 0)
    found = segments(rows, tokenizer)
    assert len(found) == 500
    own = [text for text, _ in found if "Be kind." in text]
    added = [text for text, _ in found if text.startswith("<|im_start|>system\n") and "Be kind." not in text]
    assert len(own) == 100 and all(text.count("<|im_start|>system\n") == 1 for text in own)
    assert 0.2 * 400 < len(added) < 0.4 * 400
    assert len({text.partition("<|im_end|>")[0] for text in added}) == 10  # every prompt comes
    dropped = [text for text, _ in found if BLOCK not in text]
    assert 0.5 * 500 < len(dropped) < 0.7 * 500
    # What is spliced is what the template would have rendered and the tokenizer encoded.
    for text, targets in found:
        assert tokenizer.decode(tokenizer.encode_rendered(text), skip_special_tokens=False) == text
        assert targets == text[text.rindex("assistant\n") + len("assistant\n") :]
    batch = rows.batch(np.arange(rows.rows_per_epoch))
    for tokens, ids in zip(batch["tokens"], batch["segment_ids"], strict=True):
        real = tokens[ids > 0].tolist()
        assert tokenizer.encode_rendered(tokenizer.decode(real, skip_special_tokens=False)) == real


def test_a_system_prompt_is_added_only_where_it_fits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [chat("Why?", "So. " * 50), chat("Hi", "Ho")])
    rows, _ = open_sft(data(path), SftConfig(1.0, 0.0), tokenizer, 0)
    with_system = [text for text, _ in segments(rows, tokenizer) if "<|im_start|>system" in text]
    assert len(with_system) == 1 and "Ho" in with_system[0]


@pytest.mark.parametrize("truncate", ["turn", "cut", "drop"])
def test_conversations_that_are_too_long(
    tmp_path: Path, tokenizer: Tokenizer, truncate: str, capfd: pytest.CaptureFixture[str]
) -> None:
    long_end = chat("one", "1", "two", "2", "three", "so many words " * 60)
    long_start = chat("word " * 200, "1")
    long_answer = chat("q", "words again " * 60)
    path = write(tmp_path / "a.jsonl", [chat("Hi", "Ho"), long_end, long_start, long_answer])
    rows, _ = open_sft(data(path, truncate=truncate), KEEP_THINK, tokenizer, 0)
    found = {
        text.split("<|im_end|>")[0].removeprefix("<|im_start|>user\n"): (text, targets)
        for text, targets in segments(rows, tokenizer)
    }
    message = capfd.readouterr().err
    assert "Hi" in found and ("of 4 conversations 3 are longer than data.max_seq_len=128" in message)
    if truncate == "drop":
        assert set(found) == {"Hi"} and "0 are cut, 3 dropped" in message
        return
    if truncate == "turn":
        assert set(found) == {"Hi", "one"} and "1 are cut, 2 dropped" in message
        text, targets = found["one"]
        assert text.endswith(f"<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n{BLOCK}2<|im_end|>\n")
        assert targets == f"{BLOCK}1<|im_end|>\n{BLOCK}2<|im_end|>\n"
    else:
        assert set(found) == {"Hi", "one", "q"} and "2 are cut, 1 dropped" in message
        assert all(len(tokenizer.encode_rendered(found[key][0])) == 128 for key in ("one", "q"))
        assert "so many words" in found["one"][1]


def test_validation_is_never_augmented_and_counts_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train = write(tmp_path / "a.jsonl", numbered(20))
    val = write(
        tmp_path / "b.jsonl", [chat("问题", "答案。"), chat("one", "1", "two", "2", "three", "so many words " * 60)]
    )
    _, held_out = open_sft(data(train, val_path=str(val)), SftConfig(1.0, 1.0), tokenizer, 0)
    assert held_out is not None
    found = dict(segments(held_out, tokenizer))
    assert rendered("问题", "答案。") in found and not any("system" in text for text in found)
    # The blocks, then what is said; of the cut conversation "1" and "2".
    assert held_out.n_bytes == 3 * len(BLOCK) + len("答案。".encode()) + 2
    with pytest.raises(IndexError, match="validation rows have one epoch"):
        held_out.batch(np.array([held_out.rows_per_epoch]))


def test_a_fraction_is_held_out_by_content(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [*numbered(100), *numbered(100)])
    rows, val = open_sft(data(path, val_fraction=0.2), KEEP_THINK, tokenizer, 0)
    assert val is not None
    train_texts, val_texts = ({text for text, _ in segments(r, tokenizer)} for r in (rows, val))
    assert not train_texts & val_texts and len(train_texts | val_texts) == 100 and 8 < len(val_texts) < 35


def test_of_two_conversations_one_is_held_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [chat("Hi", "Ho"), chat("Hi", "Ho"), chat("Bye", "See you")])
    for fraction in (1e-9, 0.999999):
        rows, val = open_sft(data(path, val_fraction=fraction), KEEP_THINK, tokenizer, 0)
        assert val is not None
        texts = [{text for text, _ in segments(r, tokenizer)} for r in (rows, val)]
        assert [len(t) for t in texts] == [1, 1] and texts[0] != texts[1]


def test_the_fingerprint_tells_what_changes_the_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", numbered(20))
    base = data(path)
    prints = [
        open_sft(config, options, tokenizer, 0)[0].fingerprint
        for config, options in [
            (base, KEEP_THINK),
            (dataclasses.replace(base, truncate="cut"), KEEP_THINK),
            (dataclasses.replace(base, max_seq_len=256), KEEP_THINK),
            (base, SftConfig(0.5, 0.0)),
            (base, SftConfig(0.0, 0.5)),
        ]
    ]
    assert len(set(prints)) == 5
    copy = write(tmp_path / "copy.jsonl", numbered(20))
    assert open_sft(data(copy), KEEP_THINK, tokenizer, 0)[0].fingerprint == prints[0]


def test_a_template_with_a_system_prompt_of_its_own_takes_no_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    directory = tmp_path / "tokenizer"
    tokenizer.save(directory)
    template = directory / "chat_template.jinja"
    own = "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\nI am me.<|im_end|>\n' -}}{%- endif -%}"
    template.write_text(own + template.read_text("utf-8"), "utf-8")
    path = write(tmp_path / "a.jsonl", [chat("Hi", "Ho")])
    with pytest.raises(UserError, match=r"a way of its own: set sft\.system_prompt_prob=0"):
        open_sft(data(path), SftConfig(0.5, 0.0), load_tokenizer(str(directory)), 0)
    rows, _ = open_sft(data(path), KEEP_THINK, load_tokenizer(str(directory)), 0)
    assert segments(rows, tokenizer)[0][0].startswith("<|im_start|>system\nI am me.<|im_end|>\n")


def advised(message: str, key: str) -> list[str]:
    """The values of `key` that a message says to set."""
    return re.findall(rf"--config\.{re.escape(key)}=(\w+)", message)


@pytest.mark.parametrize("truncate", ["turn", "cut", "drop"])
@pytest.mark.parametrize("kind", ["long question", "long answer", "two turns"])
def test_where_nothing_fits_the_advice_helps(
    tmp_path: Path, tokenizer: Tokenizer, truncate: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    records = {
        "long question": [chat("word " * n, "1") for n in (300, 200)],
        "long answer": [chat("q", "word " * n) for n in (300, 200)],
        "two turns": [chat("word " * n, "1", "and so on " * 20, "2") for n in (300, 200)],
    }[kind]
    config = data(write(tmp_path / "a.jsonl", records), truncate=truncate)
    if (kind, truncate) == ("long answer", "cut"):
        assert open_sft(config, KEEP_THINK, tokenizer, 0)[0].n_docs == 2
        return
    with pytest.raises(
        UserError, match=r"none of the conversations in .*a\.jsonl fits into data\.max_seq_len=128"
    ) as e:
        open_sft(config, KEEP_THINK, tokenizer, 0)
    (length,) = advised(str(e.value), "data.max_seq_len")
    for max_seq_len, n_docs in {int(length): 1, int(re.findall(r"(\d+) for all", str(e.value))[0]): 2}.items():
        followed = dataclasses.replace(config, max_seq_len=max_seq_len)
        assert open_sft(followed, KEEP_THINK, tokenizer, 0)[0].n_docs == n_docs
    with pytest.raises(UserError, match="none of the conversations"):
        open_sft(dataclasses.replace(config, max_seq_len=int(length) - 1), KEEP_THINK, tokenizer, 0)
    others = advised(str(e.value), "data.truncate")
    assert others == (["cut"] if kind == "long answer" else [])
    for other in others:
        assert open_sft(dataclasses.replace(config, truncate=other), KEEP_THINK, tokenizer, 0)[0].n_docs == 2


# --- DPO ------------------------------------------------------------------------------------------


def test_pairs_stay_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [pair(f"Question {i}?", "good " * (1 + i % 5), "bad " * (1 + i % 3)) for i in range(50)]
    rows, val = open_dpo(data(write(tmp_path / "a.jsonl", records)), tokenizer, 0)
    assert val is None and rows.seq_len == 256 and rows.n_docs == 50 and rows.n_bytes == 0
    found = segments(rows, tokenizer)
    seen = []
    for (chosen, good), (rejected, bad) in zip(found[::2], found[1::2], strict=True):
        i = int(chosen.partition("Question ")[2].partition("?")[0])
        seen.append(i)
        # The empty block belongs to the prompt here: both sides share it.
        assert (
            chosen == rendered(f"Question {i}?", "good " * (1 + i % 5))
            and good == "good " * (1 + i % 5) + "<|im_end|>\n"
        )
        assert (
            rejected == rendered(f"Question {i}?", "bad " * (1 + i % 3))
            and bad == "bad " * (1 + i % 3) + "<|im_end|>\n"
        )
    assert sorted(seen) == list(range(50))


def test_pair_mask_and_reference_follow_the_epochs_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [pair(f"Question {i}?", "good " * (1 + i % 9), "bad") for i in range(80)]
    rows, _ = open_dpo(data(write(tmp_path / "a.jsonl", records)), tokenizer, 0)
    n = rows.rows_per_epoch
    batch = rows.batch(np.array([0, n - 1, -1]))
    assert batch["pair_mask"].shape == (3, MAX_PAIRS) and batch["ref_logps"].shape == (3, MAX_PAIRS, 2)
    assert not batch["ref_logps"].any() and not batch["pair_mask"][2].any()
    assert np.array_equal(batch["pair_mask"].sum(axis=1), batch["segment_ids"].max(axis=1) // 2)
    by_plan = rows.plan_batch(np.arange(n))
    assert by_plan["pair_mask"].sum() == 80
    rows.reference = np.arange(n, dtype=np.float32)[:, None, None] + np.zeros((n, MAX_PAIRS, 2), np.float32)
    for epoch in (0, 3):
        batch = rows.batch(epoch * n + np.arange(n))
        for i in range(n):
            plan_row = int(batch["ref_logps"][i, 0, 0])
            assert np.array_equal(batch["tokens"][i], by_plan["tokens"][plan_row])


def test_a_row_has_at_most_max_pairs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [pair("?", "!", f"{i}") for i in range(MAX_PAIRS + 1)]
    rows, _ = open_dpo(data(write(tmp_path / "a.jsonl", records), seq_len=2048), tokenizer, 0)
    assert rows.rows_per_epoch == 2


def test_pairs_that_are_too_long(tmp_path: Path, tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]) -> None:
    records = [
        pair("a", "1", "2"),
        pair("b", "1", "very many words " * 60),  # its answer is cut
        pair("word " * 200, "1", "2"),  # no answer left
    ]
    path = write(tmp_path / "a.jsonl", records)
    rows, _ = open_dpo(data(path, truncate="cut"), tokenizer, 0)
    assert (
        rows.n_docs == 2
        and "of 3 pairs 2 have a side longer than data.max_seq_len=128: 1 are cut, 1 dropped" in capfd.readouterr().err
    )
    for truncate in ("turn", "drop"):
        assert open_dpo(data(path, truncate=truncate), tokenizer, 0)[0].n_docs == 1
        assert "0 are cut, 2 dropped" in capfd.readouterr().err


@pytest.mark.parametrize("truncate", ["turn", "cut", "drop"])
@pytest.mark.parametrize("kind", ["long question", "long rejected", "long answers"])
def test_where_no_pair_fits_the_advice_helps(tmp_path: Path, tokenizer: Tokenizer, truncate: str, kind: str) -> None:
    records = {
        "long question": [pair("word " * n, "1", "2") for n in (300, 200)],
        "long rejected": [pair("q", "1", "word " * n) for n in (300, 200)],
        "long answers": [pair("q", "yes " * n, "word " * n) for n in (300, 200)],
    }[kind]
    config = data(write(tmp_path / "a.jsonl", records), truncate=truncate)
    if truncate == "cut" and kind != "long question":
        assert open_dpo(config, tokenizer, 0)[0].n_docs == 2
        return
    with pytest.raises(UserError, match=r"none of the pairs in .*a\.jsonl fits into data\.max_seq_len=128") as e:
        open_dpo(config, tokenizer, 0)
    (length,) = advised(str(e.value), "data.max_seq_len")
    for max_seq_len, n_docs in {int(length): 1, int(re.findall(r"(\d+) for all", str(e.value))[0]): 2}.items():
        assert open_dpo(dataclasses.replace(config, max_seq_len=max_seq_len), tokenizer, 0)[0].n_docs == n_docs
    with pytest.raises(UserError, match="none of the pairs"):
        open_dpo(dataclasses.replace(config, max_seq_len=int(length) - 1), tokenizer, 0)
    others = advised(str(e.value), "data.truncate")
    assert others == ([] if kind == "long question" else ["cut"])
    for other in others:
        assert open_dpo(dataclasses.replace(config, truncate=other), tokenizer, 0)[0].n_docs == 2


def test_pairs_with_different_prompts_are_dropped_and_counted(
    tmp_path: Path, tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    other = pair("b", "1", "2") | {"rejected": pair("c", "1", "2")["rejected"]}
    path = write(tmp_path / "a.jsonl", [pair("a", "1", "2"), other, pair("d", "same", "same")])
    rows, _ = open_dpo(data(path, max_bad_share=0.0), tokenizer, 0)
    assert rows.n_docs == 1
    message = capfd.readouterr().err
    assert f"{path}: dropped 2 of 3 lines: {path}:2: " in message and f"{path}:3: " in message
    with pytest.raises(UserError, match=r"b\.jsonl has no usable line .*b\.jsonl:1: .*differ before"):
        open_dpo(data(write(tmp_path / "b.jsonl", [other])), tokenizer, 0)


def test_dropped_pairs_do_not_hide_bad_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    same = [pair(str(i), "same", "same") for i in range(50)]
    path = write(tmp_path / "a.jsonl", [*same, {"chosen": []}, pair("a", "1", "2")])
    with pytest.raises(UserError, match=r"1 of 52 lines are unusable .*a\.jsonl:51: `chosen` is empty"):
        open_dpo(data(path), tokenizer, 0)


def test_all_pairs_of_a_prompt_are_on_one_side_of_the_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [pair(f"Question {i % 40}?", "good", f"bad {i}") for i in range(200)]
    rows, val = open_dpo(data(write(tmp_path / "a.jsonl", records), val_fraction=0.3), tokenizer, 0)
    assert val is not None and rows.n_docs + val.n_docs == 200
    prompts = [{text.partition("<|im_end|>")[0] for text, _ in segments(r, tokenizer)} for r in (rows, val)]
    assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 40


def test_of_pairs_of_two_prompts_one_prompt_is_held_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [pair(prompt, "1", "2") for prompt in "aaab"]
    rows, val = open_dpo(data(write(tmp_path / "a.jsonl", records), val_fraction=1e-9), tokenizer, 0)
    assert val is not None
    assert sorted([rows.n_docs, val.n_docs]) == [1, 3]


def test_prompts_end_where_the_answer_begins(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [pair(f"Question {i}?", "good", "bad") for i in range(10)] + [pair("long " * 60, "1", "2")]
    rows, _ = open_dpo(data(write(tmp_path / "a.jsonl", records)), tokenizer, 0)
    prompts = rows.prompts(4, 40)
    assert len(prompts) == 4
    messages = [[{"role": "user", "content": f"Question {i}?"}] for i in range(10)]
    wanted = [tokenizer.encode_rendered(tokenizer.apply_chat_template(m, add_generation_prompt=True)) for m in messages]
    assert all(prompt in wanted for prompt in prompts)
    assert len(rows.prompts(100, 10**6)) == 11 and rows.prompts(3, 2) == []


# --- Real data ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_token_share_of_real_conversations(shared_data: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = DataConfig(path=str(shared_data / "sft_512.jsonl"), cache_dir=str(tmp_path), max_seq_len=512)
    rows, _ = open_sft(config, SftConfig(), tokenizer, 0)
    batch = rows.batch(np.arange(rows.rows_per_epoch))
    assert (batch["segment_ids"] > 0).mean() >= 0.95


def test_real_token_share_of_real_pairs(shared_data: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = DataConfig(path=str(shared_data / "dpo.jsonl"), cache_dir=str(tmp_path), max_seq_len=2048, truncate="cut")
    rows, _ = open_dpo(config, tokenizer, 0)
    batch = rows.batch(np.arange(rows.rows_per_epoch))
    assert (batch["segment_ids"] > 0).mean() >= 0.9
