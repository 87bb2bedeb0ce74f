"""The chat page's looks: languages, themes, phone width, accessibility; and its modules that draw nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from chat_page import THINKING, WritingEngine, answers, ask, ask_and_wait, call_text
from serving_helpers import wait_for
from web_helpers import site

from minimind_jax.serving.page import Page

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
SUGGESTIONS = Page(suggestions={"en": ["What is 2 + 2?"], "zh": ["二加二等于几？"]})
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def engines():
    return {"one": WritingEngine("one two three " * 5, pause=0.002), "two": WritingEngine("y")}


@pytest.fixture(scope="module")
def address(engines):
    with site(engines, page=SUGGESTIONS) as address:
        yield address


def violations(page):
    """What axe-core finds, as sentences."""
    page.evaluate(AXE.read_text("utf-8"))
    found = page.evaluate("axe.run().then((result) => result.violations)")
    return [f"{v['id']} ({v['impact']}): {node['html'][:150]}" for v in found for node in v["nodes"]]


def is_too_wide(page):
    return page.evaluate("document.scrollingElement.scrollWidth > innerWidth || main.scrollWidth > main.clientWidth")


def test_both_languages(new_page, address, engines):
    engines["one"].texts = ["one two three " * 5]
    page = new_page(locale="zh-CN")
    page.goto(address)
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    page.get_by_role("button", name="二加二等于几？").click()
    page.locator(".answer").wait_for()
    page.get_by_role("button", name="重新生成").wait_for()
    assert "词元/秒" in page.locator(".stats").inner_text()
    page.get_by_role("button", name="Switch to English").click()
    page.get_by_role("button", name="Regenerate").wait_for()
    page.reload()
    page.get_by_role("button", name="New chat").wait_for()
    assert page.locator("html").get_attribute("lang") == "en"


def test_both_languages_have_all_texts(page, address):
    page.goto(address)
    languages = page.evaluate("import('/web/js/i18n.js').then(({ TEXTS }) => TEXTS)")
    en, zh = languages["en"], languages["zh"]
    assert en.keys() == zh.keys()
    slots = {
        name: {key: sorted(re.findall(r"{\w+}", text)) for key, text in texts.items()}
        for name, texts in languages.items()
    }
    assert slots["en"] == slots["zh"]
    assert all(text.strip() for texts in (en, zh) for text in texts.values())
    # Nothing of the one language in the other, but the switch.
    assert [key for key, text in en.items() if not text.replace("…", "").isascii()] == ["switchLanguage"]


def test_light_and_dark(new_page, address):
    page = new_page(color_scheme="dark")
    page.goto(address)
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(23, 24, 23)"
    page.emulate_media(color_scheme="light")
    page.locator("html[data-theme=light]").wait_for()
    assert page.evaluate(background) == "rgb(251, 250, 248)"
    button = page.locator("#theme")
    button.click()
    button.click()
    assert button.get_attribute("aria-label") == "Theme: dark" and page.evaluate(background) == "rgb(23, 24, 23)"
    page.reload()
    assert page.evaluate(background) == "rgb(23, 24, 23)"


def fill_with_everything(page, engines):
    """One answer of each kind."""
    for engine in engines.values():
        engine.texts = [
            THINKING + call_text("calculate", expression="6 * 7"),
            "# Title\n\n- a [link](http://example.org)\n\n"
            "```python\nprint('a long line of code that goes on and on and on and on')\n```\n\n"
            "| a | b |\n|---|---|\n| 1 | 2 |",
            "tokens " * 8,
        ]
    page.locator("[data-chip=tools]").click()
    page.locator("[data-chip=thinking]").click()
    page.locator("[data-chip=compare]").click()
    ask_and_wait(page, "a_question_without_any_blank_" * 6)
    page.locator(".thoughts summary").first.click()
    for chip in ("tools", "thinking", "compare"):
        page.locator(f"[data-chip={chip}]").click()
    page.locator("#toggle-settings").click()
    page.get_by_label("Show the probability of each token").check()
    page.locator("#close-settings").click()
    ask_and_wait(page, "tokens?")
    assert page.locator(".token").count() >= 8


def test_accessibility(new_page, address, engines):
    page = new_page(bypass_csp=True, reduced_motion="reduce")
    page.goto(address)
    page.locator(".welcome").wait_for()
    assert violations(page) == []
    fill_with_everything(page, engines)
    page.locator("[data-menu]").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.locator("#help").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.set_viewport_size(PHONE)
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    page.locator("html[data-theme=dark]").wait_for()
    page.set_viewport_size({"width": 1280, "height": 800})
    page.locator("#toggle-settings").click()
    assert violations(page) == []


def test_phone_width(new_page, address, engines):
    page = new_page(viewport=PHONE, has_touch=True, is_mobile=True)
    page.goto(address)
    page.locator(".welcome").wait_for()
    assert not is_too_wide(page) and not page.locator("#sidebar").is_visible()
    fill_with_everything(page, engines)
    assert not is_too_wide(page)
    # The list is a drawer: it opens, takes a tap, and closes.
    page.locator("#toggle-sidebar").click()
    assert page.locator("#sidebar").is_visible() and not is_too_wide(page)
    page.get_by_role("button", name="New chat").click()
    page.locator("#sidebar").wait_for(state="hidden")
    page.locator("#toggle-sidebar").click()
    page.keyboard.press("Escape")
    page.locator("#sidebar").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.id") == "toggle-sidebar"


def test_a_dialog_for_a_tool_is_accessible(new_page, address, engines):
    for engine in engines.values():
        engine.texts = [call_text("calculate", expression="6 * 7"), "Done."]
    page = new_page(bypass_csp=True, reduced_motion="reduce")
    page.goto(address)
    page.locator("[data-chip=tools]").click()
    page.locator("#toggle-settings").click()
    page.get_by_label("Ask before a tool runs").check()
    ask(page, "q")
    page.get_by_role("button", name="Run").wait_for()
    assert violations(page) == []
    page.get_by_role("button", name="Run").click()
    page.locator(".answer", has_text="Done.").wait_for()


def test_the_view_follows_an_answer_unless_the_reader_scrolls_away(page, address, engines):
    engine = engines["one"]
    engine.texts = ["first\n\n" + "line\n\n" * 60]
    engine.before_gate = 150
    engine.gate.clear()
    page.goto(address)
    ask(page, "a long one")
    at_end = "main.scrollHeight - main.scrollTop - main.clientHeight < 5 && main.scrollTop > 100"
    wait_for(lambda: page.evaluate(at_end), 10)
    page.locator("#main").hover()
    page.mouse.wheel(0, -5000)
    page.locator("#to-end").wait_for()
    engine.gate.set()
    page.locator(".send:not(.stops)").wait_for()
    assert page.evaluate("main.scrollTop") < 50
    page.locator("#to-end").click()
    assert page.evaluate(at_end) and not page.locator("#to-end").is_visible()
    assert answers(page)[0].startswith("first")


EVENTS = """async (pieces) => {
  const { events } = await import("/web/js/api.js");
  const stream = new ReadableStream({ start(c) { for (const p of pieces) c.enqueue(new Uint8Array(p)); c.close(); } });
  const found = [];
  for await (const data of events(stream)) found.push(data);
  return found;
}"""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_read_however_they_are_cut(page, address, size):
    text = 'data: {"a": "中🙂"}\r\n\r\n: comment\nid: 1\ndata:two\ndata:  lines\n\n'
    text += "event: x\n\ndata: [DONE]\n\ndata: no end"
    data = list(text.encode())
    page.goto(address)
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert page.evaluate(EVENTS, pieces) == ['{"a": "中🙂"}', "two\n lines", "[DONE]"]


TREE = """async () => {
  const t = await import("/web/js/tree.js");
  const c = t.newConversation("sys");
  const q = t.append(c, null, { role: "user", content: "q" });
  const a = t.append(c, q.id, { role: "assistant", content: "a", group: "g" });
  const calls = { tool_calls: [{ id: "1", name: "f", arguments: "{}" }] };
  const b = t.append(c, q.id, { role: "assistant", content: "b", group: "g", ...calls });
  const r = t.append(c, b.id, { role: "tool", content: "r", name: "f", tool_call_id: "1" });
  const b2 = t.append(c, r.id, { role: "assistant", content: "b2" });
  const d = t.append(c, q.id, { role: "assistant", content: "d" });
  const ids = (messages) => messages.map(({ content }) => content);
  const shown = () => t.turns(c).map(({ user, answers, chosen }) => [user.content, answers.map(ids), chosen]);
  const out = { first: shown(), versions: t.versions(c, d).map(ids) };
  t.choose(c, b);
  out.second = shown();
  const q2 = t.append(c, b2.id, { role: "user", content: "q2" });
  out.path = ids(t.path(c));
  out.sent = t.requestMessages(c.system, t.pathTo(c, q2));
  t.choose(c, a);
  out.third = shown();
  const { checkConversation } = await import("/web/js/check.js");
  for (const m of c.messages) if (m.role === "assistant") Object.assign(m, { status: "done", model: "", seed: 0 });
  const copy = JSON.stringify(checkConversation(c));
  out.copied = JSON.stringify(checkConversation(JSON.parse(copy))) === copy;
  return out;
}"""


def test_conversations_are_trees(page, address):
    page.goto(address)
    out = page.evaluate(TREE)
    assert out["first"] == [["q", [["d"]], 0]]
    assert out["versions"] == [["a", "b"], ["d"]]
    assert out["second"] == [["q", [["a"], ["b", "r", "b2"]], 1]]
    assert out["path"] == ["q", "b", "r", "b2", "q2"]
    assert out["third"] == [["q", [["a"], ["b", "r", "b2"]], 0]]
    assert [message["role"] for message in out["sent"]] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert json.loads(out["sent"][2]["tool_calls"][0]["function"]["arguments"]) == {}
    assert out["copied"]
