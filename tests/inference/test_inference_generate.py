"""generate's contract: ends, limits, seeds, errors, compilation, where the parameters live."""

import dataclasses
import importlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.inference import Options, decode, generate, generate_text
from minimind_jax.model import abstract_params, param_partition_specs, xla_attention
from minimind_jax.model.attention import Attention

module = importlib.import_module("minimind_jax.inference.generate")  # the room's attribute of that name is the function
CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=101, max_seq_len=300)
PROMPTS = [[1, 5, 9], [1, 17, 23, 42, 8, 99, 3], [1]]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), abstract_params(CONFIG))


def test_eos_ends_each_sequence_by_itself(params):
    free = generate(CONFIG, params, PROMPTS, Options(max_new_tokens=20), eos_id=-1)
    assert [len(t) for t in free] == [20, 20, 20]
    for eos in {free[0][0], free[0][7], free[1][3], free[2][19]}:
        ended = generate(CONFIG, params, PROMPTS, Options(max_new_tokens=20), eos_id=eos)
        assert ended == [t[: t.index(eos)] if eos in t else t for t in free]


def test_max_new_tokens_cuts(params):
    free = generate(CONFIG, params, PROMPTS, Options(max_new_tokens=20), eos_id=-1)
    for n in (1, 2, 13):
        assert generate(CONFIG, params, PROMPTS, Options(max_new_tokens=n), eos_id=-1) == [t[:n] for t in free]


def test_up_to_the_models_limit(params):
    prompt = [1] * 250  # prefill's and the cache's buckets are 256, and the text leaves them
    assert len(generate(CONFIG, params, [prompt], Options(max_new_tokens=50), eos_id=-1)[0]) == 50
    with pytest.raises(UserError, match=r"prompt 1 .*limit of 300"):
        generate(CONFIG, params, [[1], prompt], Options(max_new_tokens=51), eos_id=-1)


def test_long_prompts_go_through_the_backend_for_rows_of_one_segment(params, monkeypatch):
    options = Options(max_new_tokens=4)
    short, long = PROMPTS[1], [1, 5, 9] * 50
    expected = [generate(CONFIG, params, [prompt], options, eos_id=-1) for prompt in (short, long)]
    rows = []

    def spy(q, k, v, segment_ids):
        rows.append(q.shape[1])
        return xla_attention(q, k, v, segment_ids)

    def pick(*args, packed):
        assert not packed
        return Attention("spy", "", spy)

    monkeypatch.setattr(decode, "pick_attention", pick)
    assert [generate(CONFIG, params, [prompt], options, eos_id=-1) for prompt in (short, long)] == expected
    assert set(rows) == {256}


def test_seed_and_rows(params):
    def drawn(prompts, **kwargs):
        options = {"max_new_tokens": 16, "temperature": 2.0, "top_k": 50, "top_p": 0.95, **kwargs}
        return generate(CONFIG, params, prompts, Options(**options), eos_id=-1)

    base = drawn(PROMPTS, seed=3)
    assert drawn(PROMPTS, seed=3) == base
    assert drawn(PROMPTS, seed=4) != base
    assert drawn(PROMPTS[:1], seed=3) == base[:1]
    assert drawn([PROMPTS[0], [1, 2], PROMPTS[2], [1, 3], [1, 4]], seed=3)[0::2][:2] == base[0::2]
    same = drawn([PROMPTS[0]] * 4, seed=3)
    assert len({tuple(t) for t in same}) == 4
    greedy = drawn(PROMPTS, temperature=0.0)
    assert drawn(PROMPTS, temperature=0.0, seed=9, top_k=1) == greedy == drawn(PROMPTS, temperature=1.0, top_k=1)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_groups_change_nothing(params, temperature, monkeypatch):
    prompts = [*PROMPTS, [1] * 40, [1, 5], [1, 5, 9], [1, 5, 9]]
    options = Options(max_new_tokens=8, temperature=temperature)
    together = generate(CONFIG, params, prompts, options, eos_id=-1)
    sizes = []

    def spy(*args):
        sizes.append(len(args[2]))
        return one_group(*args)

    one_group = module._generate_group
    monkeypatch.setattr(module, "_generate_group", spy)
    monkeypatch.setattr(module, "_GROUP_SLOTS", 3 * module.MIN_SLOTS)
    assert generate(CONFIG, params, prompts, options, eos_id=-1) == together
    assert sizes == [3, 3, 1]
    assert (together[5] == together[6]) is (temperature == 0)


def test_groups_are_bounded():
    lengths = [100, 4000, 5, 300, 30000, 1000, 7] * 40
    groups = list(module._groups(lengths, 24, 1))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    slots = [len(group) * module.power_of_two(max(lengths[i] for i in group) + 24, 256) for group in groups]
    assert max(slots) == module._GROUP_SLOTS == 2**15
    # 30000 goes alone, 4000 by 8, 1000 by 32 with shorter ones to fill the group, likewise 300 by 64, the rest by 128.
    assert len(groups) == 40 + 5 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("x",) * 17}, "stop"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1, 101]]}, "prompt 0 holds the token 101"),
        ({"prompts": [[-1]]}, "prompt 0 holds the token -1"),
    ],
)
def test_nonsense_is_a_user_error(params, options, message):
    with pytest.raises(UserError, match=message):
        prompts = options.pop("prompts", PROMPTS)
        generate(CONFIG, params, prompts, Options(**{"max_new_tokens": 4, **options}), eos_id=2)


@pytest.mark.parametrize("options", [{"stop": ("a",)}, {"stop_token_ids": (3,)}, {"top_logprobs": 0}])
def test_what_only_the_engine_can_do_is_refused(params, options):
    with pytest.raises(ValueError, match="use the engine"):
        generate(CONFIG, params, PROMPTS, Options(**options), eos_id=2)


def test_no_prompts(params):
    assert generate(CONFIG, params, [], Options(max_new_tokens=4), eos_id=2) == []


def test_other_requests_of_the_same_size_compile_nothing(params):
    compiled = []

    def listen(event: str, seconds: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    generate(CONFIG, params, [[1, 2], [3] * 10, [4]], Options(max_new_tokens=200), eos_id=-1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for n_rows, length, n_new in ((3, 1, 1), (4, 16, 200), (3, 9, 77)):
            options = Options(max_new_tokens=n_new, temperature=length / 10, top_k=n_new, seed=length)
            generate(CONFIG, params, [[5] * length] * n_rows, options, eos_id=n_rows)
        assert compiled == []
        generate(CONFIG, params, [[1] * 17] * 3, Options(max_new_tokens=8), eos_id=2)  # the next size: prefill only
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_parameters_may_be_numpy_or_sharded(params):
    expected = generate(CONFIG, params, PROMPTS, Options(max_new_tokens=12), eos_id=2)
    assert generate(CONFIG, jax.tree.map(np.asarray, params), PROMPTS, Options(max_new_tokens=12), eos_id=2) == expected
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, min(2, jax.device_count())), ("data", "fsdp"), axis_types=auto)
    specs = param_partition_specs(CONFIG)
    shardings = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), specs)
    sharded = jax.device_put(params, shardings)
    assert generate(CONFIG, sharded, PROMPTS, Options(max_new_tokens=12), eos_id=2) == expected
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(sharded))


def test_half_precision(params):
    tokens = generate(CONFIG, params, PROMPTS, Options(max_new_tokens=12), eos_id=-1, dtype=jnp.bfloat16)
    assert [len(t) for t in tokens] == [12, 12, 12]


class Letters:
    """Just what `generate_text` needs of a tokenizer: a letter a token."""

    bos_id, eos_id = 1, 2

    def encode_batch(self, texts):
        return [[ord(c) - 97 + 3 for c in text] for text in texts]

    def decode(self, ids):
        return "".join(chr(i - 3 + 97) if i >= 3 else "" for i in ids)


@dataclasses.dataclass
class Model:
    config: ModelConfig
    params: dict
    tokenizer: Letters


def test_generate_text_continues_bos_and_text(params):
    model = Model(CONFIG, params, Letters())
    ids = generate(CONFIG, params, [[1, 3, 4, 5], [1]], Options(max_new_tokens=9), eos_id=2)
    assert generate_text(model, ["abc", ""], Options(max_new_tokens=9)) == [Letters().decode(t) for t in ids]
    drawn = generate_text(model, ["abc"], Options(max_new_tokens=9, temperature=3.0, top_k=9, top_p=0.9, seed=1))
    ids = generate(
        CONFIG, params, [[1, 3, 4, 5]], Options(max_new_tokens=9, temperature=3.0, top_k=9, top_p=0.9, seed=1), eos_id=2
    )
    assert drawn == [Letters().decode(t) for t in ids]


def test_prompts_split_over_a_mesh(params):
    """The same tokens as on one device, and devices exchange nothing."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    prompts = [[1, i, *range(3, 3 + i % 7)] for i in range(19)]
    options = Options(max_new_tokens=10, temperature=1.5, seed=2)
    expected = generate(CONFIG, params, prompts, options, eos_id=2)
    decode, texts = module._decode, []

    def spy(*args):
        assert len(args[2].texts.sharding.device_set) == 8
        texts.append(decode.lower(*args).compile().as_text())
        return decode(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_decode", spy)
        assert generate(CONFIG, params, prompts, options, eos_id=2, mesh=mesh) == expected
    assert not re.search(r"(?:all-\w+|collective-permute|reduce-scatter)(?:-start)?\(", texts[0])
