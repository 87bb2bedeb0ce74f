"""What the chat page does when something goes wrong: no server, a full queue, a key, a full context, storage."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from dataclasses import replace

import pytest
import uvicorn
from chat_page import WritingEngine, answers, ask, ask_and_wait, questions, stored, wait_idle, wait_stored
from serving_helpers import SETTINGS, application, wait_for
from web_helpers import site

from minimind_jax.serving import bind


@pytest.fixture
def engine():
    return WritingEngine("one two three four five six")


@contextlib.contextmanager
def server_at(engine, port=0):
    """The server on a given port; leaves at once, without waiting for what is under way."""
    listener = bind("127.0.0.1", port)
    server = uvicorn.Server(
        uvicorn.Config(application(engine), lifespan="off", log_level="critical", timeout_graceful_shutdown=0)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def test_a_server_that_goes_and_comes_back(page, engine, problems):
    problems.expect("Failed to load resource")
    engine.gate.clear()
    with server_at(engine) as port:
        page.goto(f"http://127.0.0.1:{port}")
        ask(page, "count")
        page.locator(".part.writing", has_text="one").wait_for()
    # A server's last words do not always arrive.
    page.locator(".notice.failed", has_text=re.compile("is shutting down|connection broke off")).wait_for()
    page.locator(".banner", has_text="The server cannot be reached.").wait_for()
    assert answers(page)[0].startswith("one")
    page.locator("#input").fill("a draft")
    page.get_by_role("button", name="Retry").click()
    page.locator(".notice.failed", has_text="could not be reached").wait_for()
    # In vain, and the focus stays while the seconds are counted.
    page.get_by_role("button", name="Try now").click()
    page.wait_for_timeout(1500)
    assert page.evaluate("document.activeElement.textContent") == "Try now"
    engine.gate.set()
    with server_at(engine, port):
        page.locator(".banner").wait_for(state="detached")
        assert page.locator("#input").input_value() == "a draft"
        page.get_by_role("button", name="Retry").click()
        page.locator(".answer", has_text="six").wait_for()
        wait_idle(page)
        assert page.locator(".notice.failed").count() == 0
        # What the first try had written stays beside it.
        page.get_by_role("button", name="Previous version").click()
        assert answers(page)[0].startswith("one") and "six" not in answers(page)[0]


def test_an_answer_that_breaks_off(page, engine):
    begun = {"choices": [{"index": 0, "delta": {"content": "one tw"}, "logprobs": None, "finish_reason": None}]}
    body = f"data: {json.dumps(begun)}\n\ndata: {{"
    with site(engine) as address:
        page.goto(address)
        page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
        ask_and_wait(page, "count")
        page.get_by_text("The connection broke off before the answer was complete.").wait_for()
        assert answers(page) == ["one tw"]
        page.locator(".banner").wait_for()  # which goes away, as the server is there
        page.locator(".banner").wait_for(state="detached")


def test_it_comes_back_by_itself(page, engine, problems):
    problems.expect("Failed to load resource")
    with server_at(engine) as port:
        page.goto(f"http://127.0.0.1:{port}")
        page.locator(".welcome").wait_for()
    ask(page, "count")
    page.locator(".banner", has_text="The server cannot be reached.").wait_for()
    with server_at(engine, port):
        page.locator(".banner").wait_for(state="detached")


def test_a_full_queue_is_waited_for(page, engine, problems):
    problems.expect("429")
    with site(engine) as address:
        page.goto(address)
        engine.n_full = 1
        ask(page, "count")
        page.get_by_text("The server is busy: trying again in 1 s").wait_for()
        page.locator(".answer", has_text="six").wait_for()
        wait_idle(page)
        assert page.get_by_text("The server is busy").count() == 0
        # The wait can be given up.
        engine.n_full = 1000
        ask(page, "again")
        page.get_by_text("The server is busy").wait_for()
        page.keyboard.press("Escape")
        wait_idle(page)
        assert page.get_by_text("The server is busy").count() == 0 and len(engine.prompts) == 1


def test_the_key_is_asked_for_once_in_a_tab(page, new_page, engine, problems):
    problems.expect("401")
    with site(engine, replace(SETTINGS, api_key="sesame")) as address:
        page.goto(address)
        key = page.get_by_label("API key")
        key.fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("The server did not accept this API key.").wait_for()
        key.fill("sesame")
        page.keyboard.press("Enter")
        page.locator(".welcome").wait_for()
        ask_and_wait(page, "count")
        page.reload()
        page.locator(".answer", has_text="six").wait_for()
        assert page.get_by_role("dialog").count() == 0
        assert page.evaluate("JSON.stringify(localStorage)").count("sesame") == 0
        # Another key on the server in the meantime: asked again, and nothing is lost.
        page.evaluate("sessionStorage.setItem('minimind.key', 'old')")
        ask(page, "more")
        key.fill("sesame")
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for(state="detached")
        page.get_by_role("button", name="Retry").click()
        page.locator(".answer", has_text="six").nth(1).wait_for()
        wait_idle(page)
        assert questions(page) == ["count", "more"]


def test_a_full_context(page, engine, problems):
    problems.expect("400")
    engine.max_context = 120
    engine.texts = ["short"]
    with site(engine) as address:
        page.goto(address)
        for text in ("one " * 12, "two " * 12, "three " * 6):
            ask_and_wait(page, text.strip())
        ask_and_wait(page, "four " * 14)
        page.get_by_text("no longer fits into the model's context").wait_for()
        assert "120 tokens" in page.locator(".notice .detail").inner_text()
        page.get_by_role("button", name="Leave out the oldest turns").click()
        page.get_by_text("oldest turn").wait_for()
        wait_idle(page)
        assert answers(page)[-1] == "short" and "one one" not in engine.prompts[-1]
        assert questions(page)[0].startswith("one")  # it is still there, only not sent


def test_an_answer_at_its_limit_says_so(page, engine):
    engine.finish_reasons = ["length"]
    with site(engine) as address:
        page.goto(address)
        ask_and_wait(page, "count")
        assert page.get_by_text("Cut off after").count() == 1


def test_storage_that_is_full_damaged_or_missing(page, new_page, engine):
    with site(engine) as address:
        page.goto(address)
        ask_and_wait(page, "kept")
        wait_stored(page, [2])
        page.evaluate(
            """() => { window.put = IDBObjectStore.prototype.put;
            IDBObjectStore.prototype.put = () => { throw new DOMException("full", "QuotaExceededError") } }"""
        )
        ask_and_wait(page, "not kept")
        page.locator(".banner", has_text="The browser's storage is full").wait_for()
        page.evaluate("() => { IDBObjectStore.prototype.put = window.put }")
        ask_and_wait(page, "kept again")
        page.locator(".banner").wait_for(state="detached")
        wait_stored(page, [6])
        # One entry is nonsense: the others work, and what is left of it can be saved.
        page.evaluate(
            """() => new Promise((resolve) => { const r = indexedDB.open("minimind", 1); r.onsuccess = () => {
            const t = r.result.transaction(["heads", "bodies"], "readwrite");
            t.objectStore("heads").put({ id: "cbad", title: "bad one", modified: 1 });
            t.objectStore("bodies").put({ id: "cbad", messages: [{ id: "m", role: "nobody" }] });
            t.oncomplete = () => { r.result.close(); resolve(); } } })"""
        )
        page.evaluate("localStorage.setItem('minimind.settings', '{broken')")
        page.reload()
        page.locator("#conversations .row-title", has_text="bad one").click()
        page.get_by_text("This conversation is damaged").wait_for()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save what is left").click()
        assert '"nobody"' in download.value.path().read_text()
        assert questions(page)[0] == "kept"
        # Neither storage: the page still works, and says what it cannot do.
        bare = new_page()
        bare.add_init_script(
            """const no = () => { throw new DOMException("no", "SecurityError") };
            Object.defineProperty(window, "localStorage", { get: no });
            indexedDB.open = no;"""
        )
        bare.goto(address)
        ask_and_wait(bare, "count")
        bare.locator(".banner", has_text="The browser did not save the conversation").wait_for()
        assert answers(bare) == ["one two three four five six"]


def test_two_tabs_lose_nothing(page, engine):
    engine.texts = ["a1", "a2", "a3"]
    with site(engine) as address:
        page.goto(address)
        ask_and_wait(page, "q1")
        wait_stored(page, [2])
        other = page.context.new_page()
        other.goto(page.url)
        other.locator(".answer", has_text="a1").wait_for()
        other.get_by_role("button", name="Regenerate").click()
        wait_idle(other)
        wait_stored(other, [3])
        ask_and_wait(page, "q2")
        wait_stored(page, [5])
        (conversation,) = stored(page)
        texts = sorted(message["content"] for message in conversation["messages"])
        assert texts == ["a1", "a2", "a3", "q1", "q2"]
