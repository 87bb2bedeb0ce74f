"""The chat page in a browser: asking, stopping, other versions of answers and questions, what a reload keeps."""

from __future__ import annotations

import pytest
from chat_page import THINKING, WritingEngine, answers, ask, ask_and_wait, questions, wait_idle, wait_stored
from serving_helpers import wait_for
from web_helpers import site

from minimind_jax.serving.page import Page

SUGGESTIONS = Page(suggestions={"en": ["What is 2 + 2?", "Tell me a story."], "zh": ["二加二等于几？"]})


@pytest.fixture
def engine():
    return WritingEngine("Four, **of course**, as you can see.", pause=0.002)


@pytest.fixture
def address(engine):
    with site(engine, page=SUGGESTIONS) as address:
        yield address


def test_first_paint_and_a_suggested_question(page, address, engine):
    page.goto(address)
    page.get_by_role("button", name="What is 2 + 2?").click()
    page.locator(".answer strong", has_text="of course").wait_for()
    wait_idle(page)
    assert questions(page) == ["What is 2 + 2?"] and answers(page) == ["Four, of course, as you can see."]
    assert engine.prompts[0].startswith("<|im_start|>user\nWhat is 2 + 2?<|im_end|>")
    stats = page.locator(".stats").inner_text()
    assert "tokens · " in stats and "tokens/s" in stats and "first token after" in stats
    assert f"seed {engine.options[0].seed}" in stats
    assert page.locator("#conversations .row-title").inner_text() == "What is 2 + 2?"
    meter = page.locator(".meter")
    assert meter.get_attribute("aria-valuemax") == "4096" and int(meter.get_attribute("aria-valuenow")) > 10


def test_an_answer_grows_while_it_is_written(page, address, engine):
    engine.texts, engine.before_gate = ["one two three four five six seven"], 3
    engine.gate.clear()
    page.goto(address)
    ask(page, "count")
    page.locator(".part.writing", has_text="one").wait_for()
    assert "seven" not in page.locator(".answer").inner_text()
    engine.gate.set()
    page.locator(".answer", has_text="seven").wait_for()
    wait_idle(page)


def test_stop_keeps_what_was_written_and_frees_the_place(page, address, engine):
    engine.texts = ["one two three four five six"]
    engine.gate.clear()
    page.goto(address)
    by_button = page.get_by_role("button", name="Stop").click
    for number, stop in enumerate((by_button, lambda: page.keyboard.press("Escape"))):
        ask(page, "count")
        page.locator(".part.writing", has_text="one").nth(-1).wait_for()
        assert engine.n_running == 1
        stop()
        wait_idle(page)
        wait_for(lambda: engine.n_running == 0, 5)
        assert engine.n_cancelled == number + 1
    assert page.get_by_text("Stopped.").count() == 2
    assert all(text.startswith("one") and "six" not in text for text in answers(page))
    wait_stored(page, [4])


def test_regenerate_keeps_the_earlier_answer(page, address, engine):
    engine.texts = ["first", "second", "third", "fourth"]
    page.goto(address)
    ask_and_wait(page, "q")
    for _ in range(2):
        page.get_by_role("button", name="Regenerate").click()
        wait_idle(page)
    assert answers(page) == ["third"] and page.locator(".answer .versions").inner_text().strip() == "3/3"
    page.get_by_role("button", name="Previous version").click()
    assert answers(page) == ["second"]
    # Focus stays with the arrow, so that the keyboard can go on.
    page.keyboard.press("Enter")
    assert answers(page) == ["first"] and page.get_by_role("button", name="Previous version").is_disabled()
    # What is shown is what is sent.
    ask_and_wait(page, "and then?")
    assert "first" in engine.prompts[-1] and "third" not in engine.prompts[-1]
    seeds = [options.seed for options in engine.options]
    assert len(set(seeds)) == len(seeds)


def test_edit_branches(page, address, engine):
    engine.texts = ["a1", "a2", "b1"]
    page.goto(address)
    ask_and_wait(page, "first question")
    ask_and_wait(page, "second question")
    page.locator(".turn").first.hover()
    page.get_by_role("button", name="Edit").first.click()
    editor = page.get_by_role("textbox", name="Edit message")
    assert editor.input_value() == "first question"
    editor.fill("another question")
    editor.press("Enter")
    page.locator(".answer", has_text="b1").wait_for()
    wait_idle(page)
    assert questions(page) == ["another question"] and "first question" not in engine.prompts[-1]
    page.get_by_role("button", name="Previous version").click()
    assert questions(page) == ["first question", "second question"] and answers(page) == ["a1", "a2"]
    page.get_by_role("button", name="Next version").click()
    assert questions(page) == ["another question"] and answers(page) == ["b1"]
    # Esc leaves an edit as it was; the arrow up in an empty box opens the last one.
    page.locator("#input").press("ArrowUp")
    page.get_by_role("textbox", name="Edit message").press("Escape")
    assert questions(page) == ["another question"] and page.locator(".editor").count() == 0


def test_reload_keeps_everything(page, address, engine):
    engine.texts = ["a1", "a2", "one two three four five six"]
    page.goto(address)
    ask_and_wait(page, "q1")
    page.get_by_role("button", name="Regenerate").click()
    wait_idle(page)
    page.locator("[data-chip=thinking]").click()
    page.locator("#input").fill("a draft")
    wait_stored(page, [3])
    page.reload()
    page.locator(".answer").wait_for()
    assert questions(page) == ["q1"] and answers(page) == ["a2"]
    assert page.locator(".answer .versions").inner_text().strip() == "2/2"
    assert page.locator("#input").input_value() == "a draft"
    assert page.locator("[data-chip=thinking]").get_attribute("aria-pressed") == "true"
    # While an answer is written: what there is of it stays, as stopped.
    engine.gate.clear()
    page.keyboard.press("Enter")
    page.locator("#input").press("Enter")
    page.locator(".part.writing", has_text="one").wait_for()
    page.wait_for_timeout(1000)
    page.reload()
    page.get_by_text("Stopped.").wait_for()
    assert answers(page)[1].startswith("one") and questions(page) == ["q1", "a draft"]
    wait_for(lambda: engine.n_running == 0, 5)


def test_conversations_are_searched_renamed_deleted_and_brought_back(page, address, engine):
    page.goto(address)
    for text in ("about apples", "about pears"):
        page.get_by_role("button", name="New chat").click()
        ask_and_wait(page, text)
    titles = page.locator("#conversations .row-title")
    assert titles.all_inner_texts() == ["about pears", "about apples"]
    page.keyboard.press("Control+k")
    page.keyboard.type("APPLE")
    assert titles.all_inner_texts() == ["about apples"]
    page.keyboard.press("Enter")
    page.locator(".bubble", has_text="about apples").wait_for()
    page.locator("#search").fill("")
    page.get_by_role("button", name="More actions for about apples").click()
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="New name").fill("fruit")
    page.keyboard.press("Enter")
    page.locator("#conversations .row-title", has_text="fruit").wait_for()
    page.get_by_role("button", name="More actions for fruit").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_text("Conversation deleted.").wait_for()
    assert titles.all_inner_texts() == ["about pears"] and questions(page) == []
    page.get_by_role("button", name="Undo").click()
    page.locator(".bubble", has_text="about apples").wait_for()
    assert titles.all_inner_texts() == ["fruit", "about pears"]
    # The browser's own way back.
    titles.nth(1).click()
    page.locator(".bubble", has_text="about pears").wait_for()
    page.go_back()
    page.locator(".bubble", has_text="about apples").wait_for()


def test_thoughts_fold_out_with_their_seconds(page, address, engine):
    engine.texts, engine.pause = [THINKING + "Four."], 0.01
    page.goto(address)
    page.get_by_role("button", name="Think").click()
    ask_and_wait(page, "2 + 2?")
    assert engine.prompts[0].endswith("<|im_start|>assistant\n")  # no empty block of thoughts
    summary = page.locator(".thoughts summary")
    assert "Thought for 0." in summary.inner_text() and summary.inner_text().endswith("s")
    assert not page.get_by_text("Let me see").is_visible()
    summary.click()
    page.get_by_text("Let me see").wait_for()
    assert answers(page)[-1] == "Four."
    page.get_by_role("button", name="Think").click()
    ask_and_wait(page, "again")
    assert engine.prompts[1].endswith("<think>\n\n</think>\n\n")


def test_sampling_and_system_prompt_reach_the_engine(page, address, engine):
    page.goto(address)
    page.locator("#toggle-settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    values = {"Temperature": "0.3", "Top-p": "0.5", "Top-k": "7", "Min-p": "0.1", "Repetition penalty": "1.2",
              "Frequency penalty": "0.5", "Presence penalty": "-0.5", "Longest answer": "9", "Seed": "42"}  # fmt: skip
    for name, value in values.items():
        page.get_by_role("textbox", name=name, exact=True).fill(value)
    page.get_by_role("textbox", name="Stop texts").fill("END\nSTOP")
    ask_and_wait(page, "q")
    options = engine.options[0]
    assert (options.temperature, options.top_p, options.top_k, options.min_p) == (0.3, 0.5, 7, 0.1)
    assert (options.repetition_penalty, options.frequency_penalty, options.presence_penalty) == (1.2, 0.5, -0.5)
    assert (options.max_new_tokens, options.seed, options.stop) == (9, 42, ("END", "STOP"))
    assert engine.prompts[0].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    # What makes no sense is said at once, and not sent.
    field = page.get_by_role("textbox", name="Top-p", exact=True)
    field.fill("1.5")
    page.get_by_text("Enter a number above 0, up to 1.").wait_for()
    assert field.get_attribute("aria-invalid") == "true"
    page.get_by_role("button", name="Reset").click()
    assert page.get_by_role("textbox", name="Top-p", exact=True).input_value() == ""
    ask_and_wait(page, "q2")
    options = engine.options[1]
    assert (options.temperature, options.top_p, options.top_k, options.stop) == (0.7, 0.9, 0, ())
    assert options.max_new_tokens == 16 and options.seed != 42


def test_keys(page, address, engine):
    page.goto(address)
    box = page.locator("#input")
    box.press_sequentially("one")
    box.press("Shift+Enter")
    box.press_sequentially("two")
    assert box.input_value() == "one\ntwo" and engine.prompts == []
    # Enter that chooses a word in an input method: by the standard's flag, and by Safari's key code.
    for flags in ("isComposing: true", "keyCode: 229"):
        event = f"new KeyboardEvent('keydown', {{ key: 'Enter', bubbles: true, cancelable: true, {flags} }})"
        assert box.evaluate(f"box => box.dispatchEvent({event})") is True
    assert engine.prompts == []
    box.press("Enter")
    page.locator(".answer").wait_for()
    wait_idle(page)
    assert questions(page) == ["one\ntwo"] and box.input_value() == ""
    page.keyboard.press("Control+Shift+O")
    page.locator(".welcome").wait_for()
    page.keyboard.press("Control+/")
    help_text = page.get_by_role("dialog").inner_text()
    assert "Shift + Enter" in help_text and "Ctrl + K" in help_text
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert page.evaluate("document.activeElement.id") == "input"


def test_screen_readers_hear_an_answer_once(page, address, engine):
    engine.texts, engine.pause = ["one two three four"], 0.02
    page.goto(address)
    page.evaluate(
        """() => { window.heard = []; new MutationObserver(() => heard.push(announcer.textContent))
        .observe(announcer, { childList: true, characterData: true, subtree: true }) }"""
    )
    ask_and_wait(page, "q")
    assert page.evaluate("heard") == ["The model is writing.", "Answer complete. one two three four"]
    assert page.evaluate("document.querySelectorAll('#main [aria-live], #main [role=log]').length") == 0


def test_copy(new_page, address, engine):
    engine.texts = ["Say:\n\n```python\nprint(1)\n```"]
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    page.goto(address)
    ask_and_wait(page, "q")
    page.get_by_role("button", name="Copy code").click()
    assert page.evaluate("navigator.clipboard.readText()").strip() == "print(1)"
    page.locator(".footer").get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == engine.texts[0]
