"""Takes the pictures of the web pages in docs/: serves two models, asks in a browser, and keeps what it shows.

    python evaluate.py --task questions --data out/quickstart/data/questions.jsonl --model out/quickstart/dpo \
        --json out/quickstart/answers.json
    python scripts/screenshots.py --model out/quickstart/dpo --model out/quickstart/sft \
        --suggestions out/quickstart/answers.json --out docs

Writes page_desktop.png, page_dark.png, page_zh.png, page_phone.png and, of the training runs beside the first model,
page_runs.png. Needs Chromium (or CHROMIUM=PATH) and Playwright. The answers are the models' own, at temperature 0;
everything is asked once before, so that the times shown are those of compiled programs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).parents[1]
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@contextlib.contextmanager
def served(models: list[str], suggestions: Path) -> Iterator[str]:
    """The address of a server."""
    arguments = [argument for model in models for argument in ("--model", model)]
    runs = str(Path(models[0]).parent)
    command = [sys.executable, "serve.py", *arguments, "--suggestions", str(suggestions), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--runs", runs, "--temperature", "0"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"listens on (http://\S+)/:", line):
                yield found.group(1)
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait()


def open_page(browser: Browser, address: str, **options: Any) -> Page:
    page = browser.new_context(
        **{"viewport": DESKTOP, "locale": "en-US", "color_scheme": "light", **options}
    ).new_page()
    page.goto(address)
    page.locator(".suggestion").first.wait_for()
    return page


def ask(page: Page, question: str) -> None:
    n = page.locator(".answer .stats").count()
    page.locator("#input").fill(question)
    page.locator("#input").press("Enter")
    page.locator(".answer .stats").nth(n).wait_for()
    page.locator(".send:not(.stops)").wait_for()


def suggested(page: Page) -> list[str]:
    return page.locator(".suggestion").all_inner_texts()


def keep(page: Page, path: Path) -> None:
    page.mouse.move(0, 0)
    page.screenshot(path=path)
    page.context.close()
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def desktop(browser: Browser, address: str) -> Page:
    page = open_page(browser, address)
    for question in suggested(page)[:3]:
        ask(page, question)
    return page


def dark(browser: Browser, address: str) -> Page:
    """Two models side by side, and the probabilities of a token."""
    page = open_page(browser, address, color_scheme="dark")
    questions = suggested(page)
    page.locator("#toggle-settings").click()
    page.get_by_label("Show the probability of each token").check()
    page.locator("#close-settings").click()
    page.locator("[data-chip=compare]").click()
    for question in questions[1:3]:
        ask(page, question)
    page.locator(".turn:last-child .token").first.focus()
    return page


def chinese(browser: Browser, address: str) -> Page:
    """With the settings."""
    page = open_page(browser, address, locale="zh-CN")
    for question in suggested(page)[:3]:
        ask(page, question)
    page.locator("#toggle-settings").click()
    return page


def phone(browser: Browser, address: str) -> Page:
    page = open_page(browser, address, viewport=PHONE, is_mobile=True, has_touch=True)
    for question in suggested(page)[1:4]:
        ask(page, question)
    return page


def runs(browser: Browser, address: str) -> Page:
    """The runs beside the first model, the first and the second one selected."""
    page = browser.new_context(viewport={"width": 1280, "height": 1000}, locale="en-US").new_page()
    page.goto(f"{address}/runs#pretrain&sft")
    page.locator(".chart .value").first.wait_for()
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", required=True, help="twice; the second one answers beside the first"
    )
    parser.add_argument("--suggestions", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with served(args.model, args.suggestions.resolve()) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        for take in (desktop, dark, chinese, phone):
            take(browser, address).context.close()
        for take in (desktop, dark, chinese, phone, runs):
            name = {"chinese": "zh"}.get(take.__name__, take.__name__)
            keep(take(browser, address), args.out / f"page_{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
