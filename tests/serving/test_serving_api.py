"""OpenAI's own client gets its chats, streams, tool calls, logprobs and completions; greedy ones are the engine's."""

import json
import queue
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from serving_helpers import SETTINGS, TOKENIZER, TOOL, ScriptedEngine, question, served, tiny_engine, wait_for

from minimind_jax.chat import Conversation, chat_template
from minimind_jax.inference.options import Options
from minimind_jax.tokenizer import load_tokenizer

MODEL = "tiny"
THINKING = {"chat_template_kwargs": {"enable_thinking": True}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "汉"}}\n</tool_call>'


@pytest.fixture(scope="module")
def engine():
    with tiny_engine(max_batch=8) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    with served(engine) as port:
        yield open_client(port)


def open_client(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture
def scripted():
    """A client of an engine that answers what it is told to."""
    servers = []

    def start(text, **options):
        engine = ScriptedEngine(text, **options)
        server = served(engine)
        servers.append(server)
        return open_client(server.__enter__()), engine

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def chat(client, text="hi", **options):
    return client.chat.completions.create(model=MODEL, **{"temperature": 0, **question(text), **options})


def streamed(client, **options):
    """The joined deltas of choice 0, and all chunks."""
    chunks = list(chat(client, stream=True, **options))
    joined = {"content": "", "reasoning_content": "", "tool_calls": [], "finish_reason": None}
    for choice in (choice for chunk in chunks for choice in chunk.choices if choice.index == 0):
        assert joined["finish_reason"] is None, "a delta after the end"
        joined["content"] += choice.delta.content or ""
        joined["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
        joined["tool_calls"] += choice.delta.tool_calls or []
        joined["finish_reason"] = choice.finish_reason
    return joined, chunks


def engines_own(engine, prompt, **options):
    """What the engine makes of a prompt without any server."""
    pieces, text = queue.SimpleQueue(), ""
    engine.submit(prompt, Options(**options), pieces.put)
    while True:
        piece = pieces.get(timeout=60)
        text += piece.text
        if piece.finish_reason:
            return text


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.max_model_len) == ("tiny", 512)
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_greedy_chat_is_what_the_engine_makes_of_the_rendered_prompt(client, engine):
    prompt = chat_template(TOKENIZER).prompt(Conversation([{"role": "user", "content": "你好"}])).tokens
    expected = engines_own(engine, prompt, max_new_tokens=12)
    answer = chat(client, "你好", max_tokens=12)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "length"
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(prompt), 12, len(prompt) + 12)

    joined, chunks = streamed(client, messages=question("你好")["messages"], max_tokens=12)
    assert (joined["content"], joined["finish_reason"]) == (expected, "length")
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 6  # as it is made, not all at once
    assert chat(client, "你好", max_tokens=12, extra_body=THINKING).choices[0].message.content != expected


def test_the_last_chunk_has_the_usage_if_asked(client):
    _, chunks = streamed(client, max_tokens=4, stream_options={"include_usage": True})
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 4)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert streamed(client, max_tokens=4)[1][-1].choices


def test_no_limit_means_the_servers(client):
    assert chat(client).usage.completion_tokens == SETTINGS.max_tokens
    assert chat(client, max_completion_tokens=3).usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("body", "thinks"),
    [
        ({}, False),
        (THINKING, True),
        ({"chat_template_kwargs": {"open_thinking": True}}, True),
        ({"enable_thinking": True}, True),
        ({"open_thinking": True}, True),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high", "enable_thinking": False}, False),
        ({"enable_thinking": False, **THINKING}, True),
        ({"chat_template_kwargs": None, "reasoning_effort": None}, False),
    ],
)
def test_the_thinking_switch(scripted, body, thinks):
    client, engine = scripted("ok")
    chat(client, extra_body=body)
    assert engine.prompts[0].endswith("<|im_start|>assistant\n" + ("" if thinks else "<think>\n\n</think>\n\n"))


def test_thoughts_content_and_calls(scripted):
    client, _ = scripted(f"<think>\n汉字 hm\n</think>\n\nI ask f.\n{CALL}\n{CALL}")
    answer = chat(client, tools=[TOOL]).choices[0]
    message = answer.message
    assert (message.reasoning_content, message.content, answer.finish_reason) == ("汉字 hm", "I ask f.", "tool_calls")
    assert [(call.type, call.function.name) for call in message.tool_calls] == [("function", "f")] * 2
    assert json.loads(message.tool_calls[0].function.arguments) == {"x": "汉"}
    assert message.tool_calls[0].id != message.tool_calls[1].id

    joined, _ = streamed(client, tools=[TOOL])
    assert (joined["reasoning_content"], joined["content"]) == ("汉字 hm", "I ask f.")
    assert joined["finish_reason"] == "tool_calls"
    calls = joined["tool_calls"]
    assert [(call.index, call.function.name) for call in calls] == [(0, "f"), (1, "f")]
    assert json.loads(calls[1].function.arguments) == {"x": "汉"}

    single = chat(client, tools=[TOOL], parallel_tool_calls=False).choices[0]
    assert len(single.message.tool_calls) == 1


def test_a_call_alone_has_no_content(scripted):
    client, _ = scripted(CALL)
    message = chat(client, tools=[TOOL]).choices[0].message
    assert message.content is None and len(message.tool_calls) == 1


@pytest.mark.parametrize("options", [{}, {"tools": [TOOL], "tool_choice": "none"}])
def test_without_tools_nothing_is_a_call(scripted, options):
    client, engine = scripted(CALL)
    answer = chat(client, **options).choices[0]
    assert (answer.message.content, answer.message.tool_calls, answer.finish_reason) == (CALL, None, "stop")
    assert "# Tools" not in engine.prompts[0]


def test_an_answer_that_was_cut_off_keeps_its_reason(scripted):
    client, _ = scripted(CALL, finish_reason="length")
    assert chat(client, tools=[TOOL]).choices[0].finish_reason == "length"


def test_a_tool_loop_comes_back_as_it_went_out(scripted):
    client, engine = scripted(CALL)
    first = chat(client, "call f", tools=[TOOL]).choices[0].message
    messages = [
        *question("call f")["messages"],
        first.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": '{"result": 1}'},
    ]
    chat(client, messages=messages, tools=[TOOL])
    assert engine.prompts[1] == (
        engine.prompts[0]
        + f"{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\n"
        + '{"result": 1}\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n'
    )


def test_logprobs(client):
    answer = chat(client, max_tokens=6, logprobs=True, top_logprobs=3).choices[0]
    entries = answer.logprobs.content
    assert len(entries) == 6
    assert b"".join(bytes(e.bytes) for e in entries).decode(errors="replace") == answer.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob < 0  # greedy takes the likeliest
        assert [t.logprob for t in entry.top_logprobs] == sorted((t.logprob for t in entry.top_logprobs), reverse=True)
    assert chat(client, max_tokens=6).choices[0].logprobs is None
    assert chat(client, max_tokens=2, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []

    _, chunks = streamed(client, max_tokens=6, logprobs=True, top_logprobs=3)
    streams = [e for chunk in chunks if chunk.choices[0].logprobs for e in chunk.choices[0].logprobs.content]
    assert [e.token for e in streams] == [e.token for e in entries]


def test_n_answers_with_a_seed(client):
    drawn = {"max_tokens": 8, "temperature": 1.0, "top_p": 1.0}
    answers = chat(client, n=3, seed=7, **drawn)
    texts = [choice.message.content for choice in answers.choices]
    assert [choice.index for choice in answers.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert (answers.usage.completion_tokens, answers.usage.prompt_tokens) == (24, chat(client).usage.prompt_tokens)
    assert [c.message.content for c in chat(client, n=3, seed=7, **drawn).choices] == texts
    assert chat(client, seed=8, **drawn).choices[0].message.content == texts[1]  # answer i is that of seed + i
    assert chat(client, seed=-(2**70), **drawn).choices[0].message.content
    assert len({chat(client, **drawn).choices[0].message.content for _ in range(3)}) > 1  # no seed: another each time

    _, chunks = streamed(client, n=3, seed=7, **drawn)
    by_index = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == i) for i in range(3)]
    assert by_index == texts


def test_stop_texts(client):
    whole = chat(client, max_tokens=16).choices[0].message.content
    stop = whole[6:8]
    answer = chat(client, max_tokens=16, stop=stop).choices[0]
    assert (answer.message.content, answer.finish_reason) == (whole[: whole.index(stop)], "stop")
    joined, _ = streamed(client, max_tokens=16, stop=["never there", stop])
    assert joined["content"] == whole[: whole.index(stop)]


def test_sampling_options_reach_the_engine(scripted):
    client, engine = scripted("ok")
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": [7], "ignore_eos": True}
    chat(client, temperature=0.5, top_p=0.25, seed=3, stop="x", max_tokens=9, extra_body=extra)
    assert engine.options[0] == Options(
        9, 0.5, 5, 0.25, 0.1, 1.2, seed=3, stop=("x",), stop_token_ids=(7,), ignore_eos=True
    )
    chat(client, temperature=openai.omit, extra_body={"top_k": -1})
    assert (engine.options[1].temperature, engine.options[1].top_p, engine.options[1].top_k) == (0.7, 0.9, 0)


def test_completions(client, engine):
    bos = TOKENIZER.bos_id
    greedy = {"model": MODEL, "temperature": 0, "max_tokens": 6}
    prompts = ["The sea", "你好"]
    expected = [engines_own(engine, [bos, *TOKENIZER.encode(p)], max_new_tokens=6) for p in prompts]
    answer = client.completions.create(prompt=prompts, **greedy)
    assert [c.text for c in answer.choices] == expected
    assert answer.usage.completion_tokens == 12
    tokens = [bos, *TOKENIZER.encode("你好")]
    assert client.completions.create(prompt=tokens, **greedy).choices[0].text == expected[1]
    assert client.completions.create(prompt=[tokens, tokens], **greedy).choices[1].text == expected[1]
    assert client.completions.create(prompt="你好", echo=True, **greedy).choices[0].text == "你好" + expected[1]
    rendered = TOKENIZER.decode(tokens, skip_special_tokens=False)  # begins with bos already
    assert client.completions.create(prompt=rendered, **greedy).choices[0].text == expected[1]
    chunks = list(client.completions.create(prompt=prompts, stream=True, **greedy))
    for index, text in enumerate(expected):
        assert "".join(c.choices[0].text for c in chunks if c.choices[0].index == index) == text
    both = client.completions.create(prompt=prompts, n=2, **greedy).choices
    assert [c.text for c in both] == [expected[0], expected[0], expected[1], expected[1]]


def test_completion_logprobs(client):
    answer = client.completions.create(model=MODEL, prompt="The sea", temperature=0, max_tokens=6, logprobs=2)
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 6
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or choice.text.startswith(token, offset)
    for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert len(top) == 2 and max(top.values()) == value


def test_echo_with_logprobs(client, engine):
    """One entry a token of the prompt, then the answer's; where the prompt begins there is nothing to say."""
    ask = {"model": MODEL, "temperature": 0, "echo": True, "logprobs": 2}
    prompts = ["The sea 汉🙂 is", "你好"]
    for prompt in prompts:
        ids = TOKENIZER.encode(prompt)
        answer = client.completions.create(prompt=prompt, max_tokens=3, **ask)
        (choice,) = answer.choices
        logprobs = choice.logprobs
        assert choice.text.startswith(prompt)
        assert (len(logprobs.tokens), answer.usage.completion_tokens) == (len(ids) + 3, 3)
        lists = (logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
        assert {len(values) for values in lists} == {len(ids) + 3}
        assert logprobs.token_logprobs[0] < 0  # the server's own bos comes before it and is not shown
        for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
            assert token.startswith("bytes:") or choice.text.startswith(token, offset)
        by_ids = client.completions.create(prompt=[TOKENIZER.bos_id, *ids], max_tokens=3, **ask).choices[0].logprobs
        assert (by_ids.token_logprobs[0], by_ids.top_logprobs[0]) == (None, None)
        assert by_ids.tokens == ["<|im_start|>", *logprobs.tokens]
        assert by_ids.token_logprobs[1:] == pytest.approx(logprobs.token_logprobs)
        assert by_ids.text_offset == [0, *logprobs.text_offset]
        # A prefix of the prompt, continued greedily, has the same alternatives where the prompt goes on.
        for place in (1, len(ids) - 1):
            prefix = client.completions.create(
                model=MODEL, prompt=[TOKENIZER.bos_id, *ids[:place]], max_tokens=1, temperature=0, logprobs=2
            )
            expected = prefix.choices[0].logprobs.top_logprobs[0]
            assert logprobs.top_logprobs[place] == pytest.approx(expected, abs=1e-4)
    chunks = list(client.completions.create(prompt=prompts[0], max_tokens=3, stream=True, **ask))
    streamed_tokens = [token for c in chunks for token in c.choices[0].logprobs.tokens]
    whole = client.completions.create(prompt=prompts[0], max_tokens=3, **ask).choices[0]
    assert streamed_tokens == whole.logprobs.tokens
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text


def test_echo_of_the_prompt_alone(client, engine):
    ask = {"model": MODEL, "max_tokens": 0, "echo": True}
    answer = client.completions.create(prompt=["The sea", "a"], logprobs=0, **ask)
    assert [choice.text for choice in answer.choices] == ["The sea", "a"]
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
    assert [len(choice.logprobs.tokens) for choice in answer.choices] == [len(TOKENIZER.encode("The sea")), 1]
    assert answer.usage.completion_tokens == 0
    single = client.completions.create(prompt=[50], logprobs=0, **ask).choices[0]
    assert (single.text, single.logprobs.token_logprobs) == (TOKENIZER.decode([50]), [None])
    assert client.completions.create(prompt="a", **ask).choices[0].logprobs is None
    full = client.completions.create(prompt=[5] * engine.max_context, logprobs=1, n=2, **ask)
    assert [len(choice.logprobs.tokens) for choice in full.choices] == [engine.max_context] * 2
    # Written by the client, a bos counts as one of the prompt's tokens, and so do control tokens.
    text = "<|im_start|>user\nhi<|im_end|>"
    choice = client.completions.create(prompt=text, logprobs=0, **ask).choices[0]
    assert choice.logprobs.tokens[0] == "<|im_start|>" and choice.logprobs.token_logprobs[0] is None
    assert "".join(choice.logprobs.tokens) == choice.text == text
    assert choice.logprobs.text_offset[-1] == text.index("<|im_end|>")


def test_the_end_token_is_among_the_logprobs_of_a_completion(client):
    """lm-eval leaves away the last entry, which it takes for the one new token."""
    end = {"logit_bias": {str(TOKENIZER.eos_id): 100}}
    ask = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0, "logprobs": 1}
    choice = client.completions.create(echo=True, extra_body=end, **ask).choices[0]
    assert (choice.finish_reason, choice.logprobs.tokens[-1], len(choice.logprobs.tokens)) == ("stop", "<|im_end|>", 4)
    choice = client.completions.create(extra_body=end, **ask).choices[0]
    assert (choice.text, choice.logprobs.tokens) == ("", ["<|im_end|>"])


def test_penalties_and_bias(client):
    """Three repetitions of the likeliest token end where penalties weigh more than what it is ahead."""
    plain = chat(client, max_tokens=12, logprobs=True).choices[0].logprobs.content
    banned = TOKENIZER.encode(plain[0].token)
    assert len(banned) == 1
    without = chat(client, max_tokens=12, logprobs=True, logit_bias={str(banned[0]): -100}).choices[0].logprobs.content
    assert plain[0].token not in [entry.token for entry in without]
    only = TOKENIZER.encode("x")[0]
    same = chat(client, max_tokens=6, logit_bias={str(only): 100}).choices[0].message.content
    assert same == "xxxxxx"
    for penalty in ("frequency_penalty", "presence_penalty"):
        many = (
            chat(client, max_tokens=60, extra_body={"ignore_eos": True}, **{penalty: -2.0}).choices[0].message.content
        )
        few = chat(client, max_tokens=60, extra_body={"ignore_eos": True}, **{penalty: 2.0}).choices[0].message.content
        assert len(set(many)) < len(set(few))


@pytest.mark.parametrize("extra", [{}, {"add_generation_prompt": False}])
def test_the_last_message_goes_on(scripted, extra):
    client, engine = scripted("ok")
    messages = [*question("Tell me.")["messages"], {"role": "assistant", "content": "Once upon"}]
    answer = chat(client, messages=messages, extra_body={"continue_final_message": True, **extra})
    assert engine.prompts[0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nOnce upon")
    assert answer.choices[0].message.content == "ok"
    chat(client, messages=messages[:1])
    assert engine.prompts[0] == engine.prompts[1] + "Once upon"


def test_the_templates_variables(tmp_path):
    shutil.copytree(TOKENIZER.path, tmp_path, dirs_exist_ok=True)
    template = tmp_path / "chat_template.jinja"
    template.write_text("{{ style }}|{{ depth[1]['a'] }}|{{ enable_thinking }}|{{ messages[0].content }}", "utf-8")

    class Templated(ScriptedEngine):
        tokenizer = load_tokenizer(str(tmp_path))

    engine = Templated("ok")
    with served(engine) as port:
        variables = {"style": "terse<|im_end|>", "depth": [0, {"a": "b"}], "enable_thinking": True, "tokenizer": 1}
        chat(open_client(port), extra_body={"chat_template_kwargs": variables})
    assert engine.prompts[0] == "terse< |im_end|>|b|True|hi"


def test_sixteen_at_once_get_what_each_gets_alone(client):
    texts = [f"question {i} " + "word " * (5 * i) for i in range(16)]
    alone = [chat(client, text, max_tokens=10).choices[0].message.content for text in texts]
    with ThreadPoolExecutor(16) as pool:
        whole = list(pool.map(lambda t: chat(client, t, max_tokens=10).choices[0].message.content, texts))
        streams = list(pool.map(lambda t: streamed(client, **question(t), max_tokens=10)[0]["content"], texts))
    assert whole == streams == alone
    assert len(set(alone)) > 8  # they differ, so that a mix-up would show


def test_a_client_that_leaves_frees_its_row(client, engine):
    stream = chat(client, stream=True, max_tokens=400, extra_body={"ignore_eos": True})
    next(iter(stream))
    wait_for(lambda: engine.n_running == 1)
    made = engine.statistics.new_tokens
    stream.close()
    wait_for(lambda: engine.n_running == 0)
    assert engine.statistics.new_tokens - made < 300


def test_metrics_count(client, engine):
    def metrics():
        text = httpx2.get(str(client.base_url).replace("/v1/", "/metrics")).text
        return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))

    wait_for(lambda: engine.n_running == 0)
    before = metrics()
    chat(client, max_tokens=5)
    list(chat(client, max_tokens=5, stream=True))
    after = metrics()

    def grown(name):
        return float(after[name]) - float(before[name])

    assert grown('minimind_requests_total{endpoint="/v1/chat/completions",status="200"}') == 2
    assert grown('minimind_generated_tokens_total{model="tiny"}') == 10
    assert grown('minimind_prompt_tokens_total{model="tiny"}') == 2 * chat(client).usage.prompt_tokens
    assert grown('minimind_time_to_first_token_seconds_count{model="tiny"}') == 2
    assert grown('minimind_inter_token_seconds_count{model="tiny"}') == 8
    assert 2 < float(after['minimind_compiled_programs{model="tiny"}']) <= len(engine.statistics.programs)
    assert after['minimind_sequences_running{model="tiny"}'] == "0.0"
    assert after['minimind_sequences_waiting{model="tiny"}'] == "0.0"
