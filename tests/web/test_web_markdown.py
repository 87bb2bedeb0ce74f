"""Markdown in the page: what it looks like, that nothing in it acts, and that no text takes for ever."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from serving_helpers import ScriptedEngine
from web_helpers import Problems, site

RENDER = """async (text) => {
  const { renderMarkdown } = await import("/web/js/markdown.js");
  const box = document.createElement("div");
  box.append(renderMarkdown(text));
  return box.innerHTML;
}"""
MEASURE = """async ([unit, times, before, after]) => {
  const { renderMarkdown } = await import("/web/js/markdown.js");
  const text = before + unit.repeat(times) + after;
  const began = performance.now();
  const fragment = renderMarkdown(text);
  const seconds = (performance.now() - began) / 1000;
  let depth = 0;
  const walker = document.createTreeWalker(fragment);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    let above = 0;
    for (let parent = node.parentNode; parent; parent = parent.parentNode) above += 1;
    depth = Math.max(depth, above);
    if (depth > 200) break;
  }
  return { seconds, depth, size: text.length };
}"""
TAGS = {
    "p", "h3", "h4", "h5", "h6", "em", "strong", "del", "code", "pre", "ul", "ol", "li", "blockquote",
    "table", "thead", "tbody", "tr", "th", "td", "a", "hr", "br", "div",
}  # fmt: skip
ATTRIBUTES = {
    "a": {"href", "title", "rel", "target"},
    "ol": {"start"},
    "div": {"class", "tabindex"},
    "pre": {"tabindex"},
    "th": {"class"},
    "td": {"class"},
}


class Outline(HTMLParser):
    """Elements and text, without what the page adds for looks and for readers."""

    def __init__(self, html: str):
        super().__init__()
        self.events: list[tuple] = []
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self._label = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        self._label = attrs.get("class") == "md-lang"
        if tag != "div":
            self.events.append((tag, {k: v for k, v in attrs.items() if k in ("href", "title", "start")}))

    def handle_endtag(self, tag):
        self._label = False
        if tag not in ("div", "br", "hr"):
            self.events.append((f"/{tag}",))

    def handle_data(self, data):
        self.text += data
        data = re.sub(r"\s+", " ", data).strip()
        if data and not self._label:
            self.events.append((data,))


@pytest.fixture(scope="module")
def address():
    with site(ScriptedEngine("hello")) as address:
        yield address


@pytest.fixture(scope="module")
def render(browser, address):
    problems = Problems()
    context = browser.new_context()
    problems.watch(context)
    page = context.new_page()
    page.goto(address)

    def render(text: str) -> str:
        return page.evaluate(RENDER, text)

    render.page = page
    yield render
    context.close()
    assert not problems.unexpected, problems.unexpected


def link(address: str, text: str) -> str:
    return f'<a href="{address}" rel="noopener noreferrer nofollow" target="_blank">{text}</a>'


def reference(text: str) -> list[tuple]:
    markdown = MarkdownIt("commonmark", {"breaks": True, "html": False}).enable(["table", "strikethrough"])
    html = markdown.render(text)
    html = re.sub(r"(</?h)([1-6])", lambda match: f"{match[1]}{min(int(match[2]) + 2, 6)}", html)
    return Outline(re.sub(r"(</?)s>", r"\1del>", html)).events


@pytest.mark.parametrize(
    "text",
    [
        "# One\n\n###### Six ######\n\n## Two #\ntext below",
        "one\ntwo\n\nthree  \nfour\\\nfive",
        "*em* **strong** ***both*** _em_ __strong__ snake_case_name 2*3*4 ~~gone~~",
        "**a *b* c** *a **b** c* **a*b** *a**b*",
        "`code` ``with ` inside`` ` ` `unclosed",
        "`a*b*` *a`*`b*",
        "\\*not\\* \\# \\[x\\] \\\\ \\a",
        "```python\ndef f():\n    return '<b>'\n```\nafter",
        "~~~\n```\n~~~",
        "```\nunclosed\n\n  as while streaming",
        "- a\n- b\n  - c\n    - d\n- e",
        "1. a\n2. b\n   1. c\n3. d",
        "7) seven\n8) eight",
        "- a\n\n- b\n\n  second paragraph\n- c",
        "- a\nlazy\n- b",
        "* a\n* b\n+ c",
        "- \n- a\n-",
        "- ```\n  code\n  ```\n- b",
        "1. Step\n\n   ```sh\n   ls\n   ```\n\n2. Next",
        "> quote\n> *more*\n>\n> - list\n> - of two\n\nafter",
        "> > nested\n>\n> back",
        "| a | b |\n|---|:-:|\n| 1 | *2* |\n| x \\| y | z |",
        "a | b\n--|--\n1 | 2\n\nafter",
        "***\n\n- - -\n\n___",
        "[text](https://example.com) [t](<https://example.com/a>) [t](https://example.com 'Title')",
        "[*em* `code`](https://example.com/a_(b)) [unsafe] [a](b c)",
        "<https://example.com/x> <notalink>",
        "[a [b](https://example.com/1) c](d)",
        "Not [a link and *open",
        "    indented code\n\n    more\n\ntext",
        "<script>alert(1)</script> & <b>x</b>",
        "2024. was a year\n\nIn\n2024. it rained",
        "a\n# b\n- c\n> d\n```\ne\n```",
        "**“quoted”** and *(parenthesis)*.",
    ],
)
def test_it_is_read_as_commonmark_reads_it(render, text):
    assert Outline(render(text)).events == reference(text)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**中文**，后文", "<strong>中文</strong>，后文"),
        ("他说**“你好。”**然后走了", "他说<strong>“你好。”</strong>然后走了"),
        ("**注意：**这里", "<strong>注意：</strong>这里"),
        ("这是*（重点）*吗", "这是<em>（重点）</em>吗"),
        ("**한국어(Korean)**은", "<strong>한국어(Korean)</strong>은"),
        ("**𠮷「野」**屋", "<strong>𠮷「野」</strong>屋"),
        ("请看https://example.com/a，谢谢", "请看" + link("https://example.com/a", "https://example.com/a") + "，谢谢"),
        ("(see https://a.test/a_(b).)", "(see " + link("https://a.test/a_(b)", "https://a.test/a_(b)") + ".)"),
        ("**https://example.com**", "<strong>" + link("https://example.com", "https://example.com") + "</strong>"),
        ("[https://example.com](https://example.com/)", link("https://example.com/", "https://example.com")),
        ("![a cat](https://example.com/cat.png)", link("https://example.com/cat.png", "a cat")),
        ("one<br>two<BR />three", "one<br>two<br>three"),
    ],
)  # fmt: skip
def test_chinese_and_what_models_write_beside_commonmark(render, text, html):
    assert render(text) == f'<p dir="auto">{html}</p>'


def test_lists_nest_below_numbers_by_two_spaces(render):
    events = Outline(render("1. one\n  - a\n  - b\n2. two")).events
    assert [event[0] for event in events] == (
        ["ol", "li", "one", "ul", "li", "a", "/li", "li", "b", "/li", "/ul", "/li", "li", "two", "/li", "/ol"]
    )


def test_a_fence_carries_its_language(render):
    assert render("```c++ title\nx\n```") == (
        '<div class="md-code"><div class="md-lang">c++ title</div><pre tabindex="0"><code>x\n</code></pre></div>'
    )


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><svg/onload=alert(1)>",
    '<svg><animate onbegin=alert(1) attributeName=x dur=1s>',
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "<div\n\nonmouseover=alert(1)//",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<<b>script>alert(1)<</b>/script>",
    "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=alert(1)&gt;\">",
    "{{constructor.constructor('alert(1)')()}} ${alert(1)} <%= alert(1) %>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](java\nscript:alert(1))",
    "[x](<java\tscript:alert(1)>)",
    "[x](\x01javascript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](javascript\\:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](vbscript:msgbox(1))",
    "[x](file:///etc/passwd) [x](//evil.test) [x](/v1/models) [x](#top) [x](blob:https://a/b)",
    "[x](https://a.test\" onclick=\"alert(1))",
    "[x](https://a.test 'y\" onclick=\"alert(1)')",
    "[x](<https://a.test\" onclick=alert(1) x=\">)",
    "![x](javascript:alert(1)) ![x](x\"onerror=\"alert(1))",
    "<javascript:alert(1)> <https://a.test/\"onclick=alert(1)>",
    "```\"><img src=x onerror=alert(1)>\n</code></pre><script>alert(1)</script>\n```",
    "``` \" onclick=alert(1)\nx",
    "| <img src=x onerror=alert(1)> |\n|---|\n| <script>alert(1)</script> |",
    "# <img src=x onerror=alert(1)>",
    "[<img src=x onerror=alert(1)>](https://a.test)",
    "nul\0byte <scr\0ipt>alert(1)</scr\0ipt>",
    "bidi \u202egnp.exe\u202c [x](https://a.test/\u202eevil) \u2066 isolate",
    "https://a.test/<script>alert(1)</script>",
]  # fmt: skip


def check_harmless(html: str) -> None:
    for tag, attrs in Outline(html).elements:
        assert tag in TAGS, html
        allowed = ATTRIBUTES.get(tag, set()) | {"dir"}
        assert attrs.keys() <= allowed, html
        assert attrs.get("class", "") in ("", "md-code", "md-lang", "md-table", "md-right", "md-center"), html
        if tag == "a":
            assert re.match(r"(https?://|mailto:)\S+$", attrs["href"], re.IGNORECASE), html
            assert (attrs["rel"], attrs["target"]) == ("noopener noreferrer nofollow", "_blank")


@pytest.mark.parametrize("text", ATTACKS)
def test_nothing_in_it_acts(render, text):
    """The fixture's page watches for violations of the policy, too."""
    html = render(text)
    check_harmless(html)
    render.page.evaluate(
        """async (text) => {
          const { renderMarkdown } = await import("/web/js/markdown.js");
          document.querySelector("main").replaceChildren(renderMarkdown(text));
          document.querySelectorAll("main *").forEach((e) => e.dispatchEvent(new Event("mouseover")));
        }""",
        text,
    )


@pytest.mark.parametrize("text", [a for a in ATTACKS if a.startswith(("[x](java", "[x](Ja", "[x](data", "<script>"))])
def test_what_is_no_link_stays_readable(render, text):
    assert re.sub(r"\s", "", Outline(render(text)).text) == re.sub(r"\s|(?<=javascript)\\", "", text)


MARKUP = st.sampled_from(
    ["*", "**", "_", "`", "```", "~~", "~~~\n", "[", "](", ")", "![", "(", "https://a.b/", "javascript:", "\n", "\n\n",
     "# ", "- ", "1. ", "  ", "    ", "> ", "|", "|-|\n", "---\n", "\\", "<", ">", "<b ", "on=", '"', "'", "\t", "\0",
     "\u202e", "中文", "，", "“", "word", "é", "&lt;", "😀", "\r\n", "=="]
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MARKUP | st.text(max_size=5), max_size=40).map("".join))
def test_no_letter_is_lost_and_nothing_else_comes(render, text):
    html = render(text)
    check_harmless(html)
    outline = Outline(html)
    shown = outline.text + "".join(
        value for _, attrs in outline.elements for name, value in attrs.items() if name in ("href", "title")
    )
    letters = sorted(c for c in re.sub(r"<br ?/?>", "", text, flags=re.IGNORECASE) if c.isalpha())
    kept = sorted(c for c in shown if c.isalpha())
    for letter in set(letters):  # an address that stands in the text is shown and linked: twice
        assert kept.count(letter) >= letters.count(letter), (letter, html)


MEGABYTE = [
    ("`", 1_000_000, "", ""),
    ("`", 1_000_000, "a", "a"),
    ("*", 1_000_000, "a", "b"),
    ("[", 1_000_000, "", ""),
    (">", 1_000_000, "", ""),
]
QUARTER_MEGABYTE = [
    ("` `` ``` ", 27_500, "", ""),
    ("*a ", 82_500, "", ""),
    ("**a *b ", 35_000, "", ""),
    ("a**b*c_d__", 25_000, "", ""),
    ("*a_b", 62_500, "", ""),
    ("a*", 125_000, "", ""),
    ("_*", 125_000, "x", "x"),
    ("*", 125_000, "", "a" + "*" * 125_000),
    ("~~", 125_000, "a", "a"),
    ("[]", 125_000, "", ""),
    ("![", 125_000, "", ""),
    ("[](", 82_500, "", ""),
    ("[a](https://b.c '", 15_000, "", ""),
    ("[a](https://b.c (", 15_000, "", ""),
    ("[", 75_000, "", "[a](https://b.c)" * 10_000),
    ("<http://", 30_000, "", ""),
    ("http://%", 30_000, "", ""),
    ("https://a.b)", 20_000, "", ""),
    ("<", 250_000, "", ""),
    ("\\", 250_000, "", ""),
    ("> ", 125_000, "", ""),
    ("- ", 125_000, "", "x"),
    ("1. ", 82_500, "", "x"),
    ("- a\n", 62_500, "", ""),
    ("-\n", 125_000, "", ""),
    ("#", 250_000, "", ""),
    ("# a #", 50_000, "", ""),
    (" ", 250_000, "a", "b"),
    (" \n", 125_000, "a", "b"),
    ("\t", 250_000, "- ", "b"),
    ("a\n", 125_000, "", ""),
    ("a  \n", 62_500, "", ""),
    ("|", 250_000, "", "\n" + "|-" * 1000),
    ("| a " * 10 + "|\n", 2_500, "|a" * 10 + "|\n" + "|-" * 10 + "|\n", ""),
    ("|a\n", 25_000, "|a" * 2_500 + "\n" + "|-" * 2_500 + "\n", ""),
    ("```\n", 62_500, "", ""),
    ("~~~\n> ", 40_000, "", ""),
    ("> - ", 62_500, "", "x"),
    ("中**文**，", 30_000, "", ""),
]


@pytest.mark.parametrize("case", MEGABYTE + QUARTER_MEGABYTE, ids=lambda case: repr(case[0])[:20])
def test_anything_is_read_in_bounded_time(render, case):
    """Quadratic work would be 10^11 steps or more: minutes. A deep tree would end the browser's layout."""
    result = render.page.evaluate(MEASURE, case)
    assert result["seconds"] < 10
    assert result["depth"] < 100


def test_ten_thousand_nested_lists(render):
    text = "".join(" " * (2 * min(level, 100)) + "- a\n" for level in range(10_000))
    result = render.page.evaluate(MEASURE, [text, 1, "", ""])
    assert result["seconds"] < 10
    assert result["depth"] < 100
