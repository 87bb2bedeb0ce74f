"""The browser itself: the page comes up, and what goes wrong in a page is noticed."""

import pytest
from serving_helpers import ScriptedEngine
from web_helpers import Problems, site


@pytest.fixture(scope="module")
def address():
    with site(ScriptedEngine("hello")) as address:
        yield address


def test_the_page_comes_up(page, address):
    page.goto(address)
    assert "minimind-jax" in page.title()
    assert page.locator("main").is_visible()


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("() => console.error('oh')", "console: oh"),
        ("() => { setTimeout(() => { throw new Error('thrown') }, 0) }", "exception: thrown"),
        ("() => { document.body.innerHTML = '<img src=x onerror=alert(1)>' }", "CSP: script-src-attr"),
        ("() => { const s = document.createElement('script'); s.src = 'http://x.test/a.js'; document.body.append(s) }",
         "CSP: script-src-elem forbids http://x.test/a.js"),
        ("() => fetch('http://x.test/').catch(() => 0)", "CSP: connect-src forbids http://x.test/"),
        ("() => { document.body.setAttribute('style', 'color: red') }", "CSP: style-src-attr forbids inline"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_a_page_is_noticed(browser, address, script, problem):
    problems = Problems()
    context = browser.new_context()
    problems.watch(context)
    page = context.new_page()
    page.goto(address)
    assert not problems.unexpected
    page.evaluate(script)
    for _ in range(100):
        if any(problem in text for text in problems.unexpected):
            break
        page.wait_for_timeout(20)
    assert any(problem in text for text in problems.unexpected), problems.unexpected
    context.close()
