"""The chat page's other abilities: tools, comparing two models, probabilities of tokens, files, hostile text."""

from __future__ import annotations

import json
import re

import pytest
from chat_page import (
    THINKING,
    WritingEngine,
    answers,
    ask,
    ask_and_wait,
    call_text,
    questions,
    stored,
    wait_idle,
    wait_stored,
)
from serving_helpers import wait_for
from web_helpers import site

from minimind_jax.chat import read_conversation
from minimind_jax.serving import demo_tools

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg/onload=window.hacked=1>",
    "[click](javascript:window.hacked=1)",
    "[click](JaVa\tScRiPt:window.hacked=1)",
    "[x](data:text/html,<script>window.hacked=1</script>)",
    "![x](javascript:window.hacked=1)",
    "<a href='javascript:window.hacked=1'>x</a>",
    "<iframe src='javascript:window.hacked=1'></iframe>",
    "<b><i></b><table><td><div",
    '"><style>body{display:none}</style>',
    "```\n</code></pre><script>window.hacked = 1</script>\n```",
]
ALLOWED_ELEMENTS = {
    "P", "STRONG", "EM", "A", "CODE", "PRE", "UL", "OL", "LI", "BLOCKQUOTE", "TABLE", "THEAD", "TBODY", "TR", "TH",
    "TD", "BR", "HR", "DEL", "H1", "H2", "H3", "H4", "H5", "H6", "DIV", "BUTTON", "SPAN",
}  # fmt: skip


@pytest.fixture
def engine():
    return WritingEngine("Four.")


@pytest.fixture
def address(engine):
    with site(engine) as address:
        yield address


def use_tools(page, confirm):
    page.locator("[data-chip=tools]").click()
    if confirm:
        page.locator("#toggle-settings").click()
        page.get_by_label("Ask before a tool runs").check()
        page.locator("#close-settings").click()


def test_a_tool_runs_and_its_result_goes_back(page, address, engine):
    engine.texts = [call_text("calculate", expression="6 * 7"), "It is 42."]
    page.goto(address)
    use_tools(page, confirm=False)
    ask_and_wait(page, "6 * 7?")
    card = page.get_by_role("group", name="Call of calculate")
    assert '"expression": "6 * 7"' in card.inner_text() and "Result\n42" in card.inner_text()
    assert answers(page)[-1] == "It is 42." and len(engine.prompts) == 2
    assert '{"result": "42"}' in engine.prompts[1] and '"name": "convert_unit"' in engine.prompts[0]


def test_a_tool_with_edited_arguments_and_one_that_may_not_run(page, address, engine):
    engine.texts = [call_text("calculate", expression="6 * 7"), "Done.", call_text("current_time"), "Never mind."]
    page.goto(address)
    use_tools(page, confirm=True)
    ask(page, "6 * 7?")
    arguments = page.get_by_role("textbox", name="Arguments (JSON)")
    arguments.fill('{"expression": ')
    page.get_by_role("button", name="Run").click()
    page.get_by_text("The arguments must be a JSON object").wait_for()
    assert len(engine.prompts) == 1
    arguments.fill('{"expression": "6 * 8"}')
    page.get_by_role("button", name="Run").click()
    page.get_by_text("Done.", exact=True).wait_for()
    wait_idle(page)
    card = page.get_by_role("group", name="Call of calculate")
    assert "arguments edited" in card.inner_text() and "Result\n48" in card.inner_text()
    assert (
        "6 * 8" in engine.prompts[1] and "6 * 7}" not in engine.prompts[1] and '{"result": "48"}' in engine.prompts[1]
    )
    ask(page, "what time is it?")
    page.get_by_role("button", name="Skip").click()
    page.get_by_text("Never mind.", exact=True).wait_for()
    wait_idle(page)
    assert "did not let this call run" in engine.prompts[-1]
    # Esc while it asks: stopped, nothing runs.
    engine.texts = [call_text("calculate", expression="1 + 1")]
    ask(page, "1 + 1?")
    page.get_by_role("button", name="Run").wait_for()
    page.keyboard.press("Escape")
    wait_idle(page)
    assert page.get_by_role("button", name="Run").count() == 0 and page.get_by_text("Stopped.").count() == 1


def test_tools_that_do_not_end(page, address, engine):
    engine.texts = [
        call_text("calculate", expression="1"),
        call_text("nothing_like_it"),
        call_text("calculate", expression="1"),
    ]
    page.goto(address)
    use_tools(page, confirm=False)
    ask_and_wait(page, "loop")
    page.get_by_text("The model kept calling tools.").wait_for()
    assert len(engine.prompts) == 6 and "there is no function nothing_like_it" in engine.prompts[2]


def test_two_models_side_by_side(page):
    engines = {"first": WritingEngine("from first"), "second": WritingEngine("from second")}
    with site(engines) as address:
        page.goto(address)
        page.get_by_role("button", name="Compare").click()
        ask_and_wait(page, "q1")
        assert page.locator(".compared .answer .model-name").all_inner_texts() == ["first", "second"]
        assert answers(page) == ["from first", "from second"]
        (seed,) = {engine.options[0].seed for engine in engines.values()}
        assert page.get_by_text(f"seed {seed}").count() == 2
        page.locator(".answer", has_text="from second").get_by_role("button", name="Continue with this answer").click()
        ask_and_wait(page, "q2")
        for engine in engines.values():
            assert "from second" in engine.prompts[-1] and "from first" not in engine.prompts[-1]
        # Both again, with another seed; the earlier pair is kept as one version.
        page.locator(".turn").last.get_by_role("button", name="Regenerate").first.click()
        wait_idle(page)
        assert page.locator(".turn").last.locator(".versions").first.inner_text().strip() == "2/2"
        # One stop stops both.
        for engine in engines.values():
            engine.texts = ["one two three four five six"]
            engine.gate.clear()
        ask(page, "q3")
        page.locator(".turn:last-child .part.writing").nth(1).wait_for()
        page.keyboard.press("Escape")
        wait_idle(page)
        wait_for(lambda: all(engine.n_running == 0 for engine in engines.values()), 5)
        wait_stored(page, [3 * 1 + 3 * 2 + 2])
        page.reload()
        page.locator(".compared").nth(2).wait_for()
        # The other model alone.
        page.get_by_role("button", name="Compare").click()
        page.get_by_label("Model", exact=True).select_option("second")
        for engine in engines.values():
            engine.gate.set()
        engines["second"].texts = ["alone"]
        n = len(engines["first"].prompts)
        ask_and_wait(page, "q4")
        assert answers(page)[-1] == "alone" and len(engines["first"].prompts) == n


def test_probabilities_of_tokens(page, address, engine):
    engine.texts = ["Two 二 🙂 three"]  # the emoji is spread over several tokens
    page.goto(address)
    page.locator("#toggle-settings").click()
    page.get_by_label("Show the probability of each token").check()
    page.locator("#close-settings").click()
    ask_and_wait(page, "q")
    tokens = page.get_by_role("option")
    assert "".join(tokens.all_text_contents()) == "Two 二 🙂 three" and engine.options[0].top_logprobs == 5
    tokens.nth(1).hover()
    tip = page.get_by_role("tooltip")
    tip.wait_for()
    assert "%" in tip.inner_text() and tip.locator("tr").count() == 5
    # By keyboard: one stop, arrows inside, and a name that says it all.
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.number") == "1" and tip.is_visible()
    assert re.search(r"\d %\. .+ \d", page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert page.locator(".tokens [tabindex='0']").count() == 1
    page.get_by_role("button", name="Show token probabilities").click()
    assert answers(page) == ["Two 二 🙂 three"] and tokens.count() == 0
    wait_stored(page, [2])
    page.reload()
    tokens.first.wait_for()
    assert "".join(tokens.all_text_contents()) == "Two 二 🙂 three"


def test_export_and_import(page, new_page, address, engine, tmp_path):
    engine.texts = [THINKING + call_text("calculate", expression="2 + 2"), "Four.", "Five.", "cut"]
    page.goto(address)
    use_tools(page, confirm=False)
    page.locator("[data-chip=thinking]").click()
    ask_and_wait(page, "2 + 2?")
    page.locator("[data-chip=thinking]").click()
    ask_and_wait(page, "are you sure?")
    engine.finish_reasons = ["length"]
    ask_and_wait(page, "quite?")
    wait_stored(page, [8])

    def exported(name):
        page.get_by_role("button", name="More actions for 2 + 2?").click()
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        return download.value

    sft = exported("Export as training line (SFT)")
    assert sft.suggested_filename == "2-2.jsonl"
    (line,) = sft.path().read_text("utf-8").splitlines()
    record = read_conversation(json.loads(line))
    assert not record.unknown
    messages = record.conversation.messages
    assert [message["role"] for message in messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert messages[1]["reasoning_content"].strip() == "Two and two. Let me see."
    assert messages[1]["tool_calls"][0]["function"] == {"name": "calculate", "arguments": {"expression": "2 + 2"}}
    assert json.loads(messages[2]["content"]) == {"result": "4"} and messages[3]["content"] == "Four."
    assert record.conversation.tools == demo_tools.TOOLS
    assert record.conversation.context == {7}  # cut off, so no example of an answer

    whole = exported("Export as JSON")
    path = tmp_path / "chat.json"
    path.write_bytes(whole.path().read_bytes())
    other = new_page()
    other.goto(address)
    other.locator("#import-file").set_input_files(path)
    other.locator(".answer", has_text="Five.").wait_for()
    assert questions(other) == questions(page) and answers(other) == answers(page)
    assert stored(other) == stored(page)
    # Again: a copy beside it, nothing is replaced.
    other.locator("#import-file").set_input_files(path)
    wait_stored(other, [8, 8])
    with other.expect_download() as download:
        other.get_by_role("button", name="Export", exact=True).click()
    assert len(json.loads(download.value.path().read_text("utf-8"))["conversations"]) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file: file["conversations"][0]["messages"][1].update(role="root"), "messages[1].role: is not one of"),
        (
            lambda file: file["conversations"][0]["messages"][1].update(parent="m9"),
            "messages[1].parent: is no message before",
        ),
        (lambda file: file["conversations"][0].update(first="m1"), "first: is not one of its messages"),
        (lambda file: file["conversations"][0]["messages"][0].update(content=5), "messages[0].content: is not a text"),
        (lambda file: file.update(version=2), "version is not 1"),
    ],
)
def test_files_that_are_refused(page, address, tmp_path, change, problem):
    file = conversation_file(["q"], ["a"])
    change(file)
    page.goto(address)
    import_file(page, tmp_path / "bad.json", file)
    page.locator(".toast", has_text="bad.json was not imported").wait_for()
    assert problem in page.locator(".toast").inner_text()
    assert stored(page) == []


def conversation_file(asked, answered, **fields):
    """An exported file with one conversation of the given questions and answers."""
    texts = [text for pair in zip(asked, answered, strict=True) for text in pair]
    messages = [
        {
            "id": f"m{i}", "parent": f"m{i - 1}" if i else None, "next": f"m{i + 1}" if i + 1 < len(texts) else None,
            "role": "assistant" if i % 2 else "user", "content": text, "status": "done",
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip
    conversation = {"id": "c1", "title": "", "first": "m0", "messages": messages, **fields}
    return {"format": "minimind-jax.conversations", "version": 1, "conversations": [conversation]}


def assert_harmless(page):
    assert page.evaluate("window.hacked") is None
    names = set(page.evaluate("[...document.querySelectorAll('.answer .prose *, .bubble *')].map((e) => e.tagName)"))
    names -= {"svg", "path"}  # of the copy buttons
    assert names <= ALLOWED_ELEMENTS, names - ALLOWED_ELEMENTS
    links = page.evaluate("[...document.querySelectorAll('.answer a')].map((a) => a.protocol)")
    assert set(links) <= {"http:", "https:", "mailto:"}
    handlers = (
        "[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames()).filter((n) => n.startsWith('on'))"
    )
    assert page.evaluate(handlers) == []


def test_hostile_answers_questions_and_calls(page, address, engine):
    hostile = "\n\n".join(HOSTILE)
    engine.texts = [
        hostile,
        call_text("<img src=x onerror='window.hacked=1'>", a="<script>window.hacked=1</script>"),
        hostile,
    ]
    page.goto(address)
    ask_and_wait(page, hostile)
    use_tools(page, confirm=False)
    ask_and_wait(page, "<img src=x onerror='window.hacked = 1'>")
    page.locator(".tool-card").wait_for()
    assert_harmless(page)
    assert "<script>window.hacked = 1</script>" in page.locator(".answer").first.inner_text()


def test_hostile_files_and_names(page, tmp_path):
    name = "<img src=x onerror='window.hacked=1'>"
    hostile = "\n\n".join(HOSTILE)
    file = conversation_file([hostile] * 2, [hostile] * 2, title=name, system=name)
    answer = file["conversations"][0]["messages"][1]
    answer |= {
        "model": name, "reasoning_content": hostile, "tool_calls": [{"id": name, "name": name, "arguments": name}],
        "error": {"code": "other", "message": name}, "tokens": [[name, -1, None, [[name, -1]]]],
    }  # fmt: skip
    with site({name: WritingEngine("a"), "b": WritingEngine("b")}) as address:
        page.goto(address)
        import_file(page, tmp_path / "hostile.json", file)
        page.locator(".answer").nth(1).wait_for()
        page.locator(".thoughts summary").first.click()
        page.locator(".answer").first.get_by_role("button", name="Show token probabilities").click()
        page.locator(".token").first.hover()
        page.get_by_role("tooltip").wait_for()
        assert_harmless(page)
        assert page.get_by_label("Model", exact=True).input_value() == name
        page.get_by_role("button", name="Export", exact=True).click()
        assert_harmless(page)


def import_file(page, path, file):
    path.write_text(json.dumps(file))
    page.locator("#import-file").set_input_files(path)


def test_a_thousand_messages_stay_usable(page, address, engine, tmp_path):
    engine.max_context = 100_000
    n = 500
    answered = [f"Answer {i} with **bold** text.\n\n- one\n- two" for i in range(n)]
    page.goto(address)
    import_file(page, tmp_path / "long.json", conversation_file([f"Question {i}" for i in range(n)], answered))
    page.locator(".turn").nth(n - 1).wait_for()
    page.evaluate("() => { window.turns = [...document.querySelectorAll('.turn')] }")
    ask_and_wait(page, "one more")
    assert answers(page)[-1] == "Four." and "Question 499" in engine.prompts[0]
    # The other thousand are not drawn anew.
    assert page.evaluate("turns.every((turn, i) => turn === document.querySelectorAll('.turn')[i])")
    assert page.locator(".turn").count() == n + 1


def test_a_megabyte_of_backticks_is_shown(page, address, tmp_path):
    page.goto(address)
    import_file(page, tmp_path / "long.json", conversation_file(["q"], ["a " + "`" * 1_000_000]))
    page.locator(".answer .part > .prose", has_text="a `").wait_for()
    assert len(answers(page)[0]) == 1_000_002
