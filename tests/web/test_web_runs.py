"""The page of training runs in a real browser."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect
from serving_helpers import SETTINGS, ScriptedEngine
from web_helpers import site

from minimind_jax.serving import Page, RunsDirectory

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
MODEL = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=640, max_seq_len=64)
HOSTILE = "<img src=x onerror=alert(1)><script>alert(1)</script>"


def append(path: Path, *lines: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def metrics(steps: range, level: float) -> list[dict]:
    return [
        {"step": s, "loss": level / s + 1, "lr": 1e-3, "grad_norm": None if s == 30 else 1.0, "tokens_per_s": 5e3 + s,
         "mfu": 0.3, "data_wait": 0.0, "skipped": 0}
        | ({"val_loss": level / s + 1.5, "task/mini_core": s / 100, "best": True} if s % 50 == 0 else {})
        for s in steps
    ]  # fmt: skip


def write_run(path: Path, steps: range, total: int, level: float, name: str = "x") -> Path:
    path.mkdir(parents=True)
    config = {"format_version": 1, "stage": "pretrain", "model": MODEL, "total_steps": total, "batch_size": 8}
    (path / "config.json").write_text(json.dumps(config | {"data": {"max_seq_len": 64}, "sample_prompts": [HOSTILE]}))
    append(path / "metrics.jsonl", *metrics(steps, level))
    for step in (50, 100):
        append(path / "samples.jsonl", {"step": step, "prompt": "十二月的下一个月", "text": f"{name} {step} {HOSTILE}"})
    return path


@pytest.fixture
def runs(tmp_path):
    """Three runs: `dpo` has ended last, `old/base` before it, and `at work` goes on."""
    write_run(tmp_path / "old" / "base", range(10, 201, 10), 200, 4.0)
    for file in (tmp_path / "old" / "base").iterdir():
        os.utime(file, (1e9, 1e9))
    dpo = write_run(tmp_path / "dpo", range(10, 101, 10), 100, 2.0)
    (dpo / "report.json").write_text('{"before": {"val_loss": 9.25, "answers/length": 40}}')
    write_run(tmp_path / "at work", range(10, 101, 10), 1000, 3.0)
    return tmp_path


@pytest.fixture
def address(runs):
    with site(ScriptedEngine("hello"), page=Page(runs=RunsDirectory(runs))) as address:
        yield address


@pytest.fixture
def page(address, new_page):
    """Closed before the server ends, which it asks again and again."""
    return new_page()


def chart(page, key):
    return page.locator(f'.chart[data-key="{key}"]')


def run(page, name):
    return page.locator(f'#runs input[data-id="{name}"]')


def readout(page, key):
    return chart(page, key).locator(".readout")


def violations(page):
    page.evaluate(AXE.read_text("utf-8"))
    found = page.evaluate("axe.run().then((result) => result.violations)")
    return [f"{v['id']} ({v['impact']}): {node['html'][:150]}" for v in found for node in v["nodes"]]


def pixels(page, key) -> int:
    """How many pixels of the chart are painted."""
    return chart(page, key).locator("canvas").evaluate(
        """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
          return count;
        }"""
    )  # fmt: skip


def test_runs_and_their_curves(page, address):
    page.goto(f"{address}/runs")
    names = page.locator("#runs .name")
    expect(names).to_have_text(["at workrunning", "dpo", "old/base"])
    expect(run(page, "at work")).to_be_checked()
    expect(readout(page, "loss")).to_contain_text("at work: 1.0")
    expect(page.locator("#charts h2")).to_have_text(
        ["Loss", "Held-out loss", "Learning rate", "Gradient norm", "Tokens per second",
         "Model FLOPs utilisation", "Share of time waiting for data"]
    )  # fmt: skip
    assert pixels(page, "loss") > 1000
    run(page, "old/base").check()
    expect(readout(page, "val_loss")).to_contain_text("old/base: 1.52 at 200")
    expect(readout(page, "val_loss")).to_contain_text("best so far: step 200")
    page.locator("#more > summary").click()
    expect(readout(page, "task/mini_core")).to_contain_text("old/base: 2 at 200")
    page.reload()
    expect(run(page, "old/base")).to_be_checked()
    expect(readout(page, "val_loss")).to_contain_text("old/base: 1.52 at 200")
    assert page.locator("#chat-link").is_visible()


def test_it_goes_on_while_the_run_does(page, address, runs):
    page.goto(f"{address}/runs#at%20work")
    expect(readout(page, "tokens_per_s")).to_contain_text("at 100")
    append(runs / "at work" / "metrics.jsonl", *metrics(range(110, 151, 10), 3.0))
    append(runs / "at work" / "samples.jsonl", {"step": 150, "prompt": "p", "text": "the newest"})
    expect(readout(page, "tokens_per_s")).to_contain_text("at 150")
    expect(page.locator("#samples dd")).to_have_text(["the newest"])
    expect(page.locator("#runs li").first).to_contain_text("step 150 of 1,000")
    # A resumed run goes back: what came after its checkpoint is gone.
    lines = (runs / "at work" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (runs / "at work" / "new").write_text("".join(lines[:12]))
    os.replace(runs / "at work" / "new", runs / "at work" / "metrics.jsonl")
    expect(readout(page, "tokens_per_s")).to_contain_text("at 120")


def test_zoom_log_axis_and_smoothing(page, address):
    page.goto(f"{address}/runs#old%2Fbase")
    expect(readout(page, "loss")).to_contain_text("old/base")
    raw = lambda: readout(page, "loss").inner_text()  # noqa: E731
    smooth = raw()
    page.locator("#smoothing").fill("0")
    assert raw() == "old/base: 1.02 at 200" != smooth
    canvas = chart(page, "loss").locator("canvas")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    assert raw() not in (smooth, "old/base: 1.02 at 200")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60, steps=4)
    page.mouse.up()
    assert page.locator("#reset").is_enabled()
    page.locator("#reset").click()
    assert page.locator("#reset").is_disabled()
    page.locator("#axis").select_option("tokens")
    expect(readout(page, "loss")).to_have_text("old/base: 1.02 at 102.4k")
    before = canvas.evaluate("(canvas) => canvas.toDataURL()")
    page.get_by_label("Log scale").check()
    assert canvas.evaluate("(canvas) => canvas.toDataURL()") != before
    page.reload()
    assert page.locator("#axis").input_value() == "tokens" and page.get_by_label("Log scale").is_checked()


def test_charts_by_keyboard_and_as_tables(page, address):
    page.goto(f"{address}/runs#old%2Fbase")
    canvas = chart(page, "val_loss").locator("canvas")
    expect(canvas).to_have_attribute("aria-label", re.compile(r"Held-out loss. old/base: 1.52 at 200"))
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#announcer").inner_text().startswith("old/base: 1.527 at 150")
    page.keyboard.press("Home")
    page.keyboard.press("+")
    assert page.locator("#reset").is_enabled()
    page.keyboard.press("Escape")
    assert page.locator("#reset").is_disabled()
    chart(page, "val_loss").get_by_text("Table").click()
    rows = chart(page, "val_loss").locator("tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.last).to_have_text("old/base2001.52")


def test_samples_and_report(page, address):
    """What a model wrote is shown as it is."""
    page.goto(f"{address}/runs#dpo")
    expect(page.locator("#samples dd")).to_have_text([f"x 100 {HOSTILE}"])
    page.locator("#sample-step").fill("0")
    expect(page.locator("#samples dd")).to_have_text([f"x 50 {HOSTILE}"])
    expect(page.locator("#report tbody tr").first).to_have_text("val_loss9.251.52-7.73")
    expect(page.locator("#report tbody tr").last).to_have_text("answers/length40––")
    expect(page.locator("#report caption")).to_have_text("dpo · step 100")
    page.locator("#configs summary").click()
    assert HOSTILE in json.loads(page.locator("#configs pre").inner_text())["sample_prompts"]


def test_a_damaged_line_is_named(page, address, runs):
    with open(runs / "dpo" / "metrics.jsonl", "a") as file:
        file.write("{nonsense\n")
    page.goto(f"{address}/runs#dpo")
    expect(page.locator(".banner")).to_contain_text("dpo: metrics.jsonl:11 is damaged and left out")
    expect(readout(page, "val_loss")).to_contain_text("dpo: 1.52 at 100")


def test_no_runs_yet(page, tmp_path):
    (tmp_path / "empty").mkdir()
    with site([], page=Page(runs=RunsDirectory(tmp_path / "empty"))) as address:
        page.goto(address)
        assert page.url == f"{address}/runs"
        expect(page.locator("#no-runs")).to_be_visible()
        assert page.locator("#chat-link").is_hidden()
        page.close()


def test_the_key_is_asked_for_once(page, runs, problems):
    problems.expect("401")
    settings = dataclasses.replace(SETTINGS, api_key="k")
    with site(ScriptedEngine("x"), settings, page=Page(runs=RunsDirectory(runs))) as address:
        page.goto(f"{address}/runs")
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        page.locator(".field-error").wait_for()
        page.locator("#key").fill("k")
        page.keyboard.press("Enter")
        expect(readout(page, "loss")).to_contain_text("at work")
        page.reload()
        expect(readout(page, "loss")).to_contain_text("at work")
        page.close()


def test_the_server_goes_and_comes_back(page, address, problems):
    problems.expect("ERR_FAILED")
    page.goto(f"{address}/runs")
    expect(readout(page, "loss")).to_contain_text("at work")
    page.route("**/api/**", lambda route: route.abort())
    page.route("**/health", lambda route: route.abort())
    run(page, "dpo").check()
    expect(page.locator(".banner.error")).to_be_visible()
    page.unroute("**/api/**")
    page.unroute("**/health")
    page.locator(".banner button").click()
    expect(page.locator(".banner.error")).to_have_count(0)
    expect(readout(page, "loss")).to_contain_text("dpo")


@pytest.mark.parametrize(
    "options",
    [{}, {"color_scheme": "dark", "locale": "zh-CN"}, {"viewport": {"width": 360, "height": 740}}],
    ids=["desktop", "dark zh", "phone"],
)
def test_everybody_can_use_it(address, new_page, options):
    page = new_page(**options)
    page.goto(f"{address}/runs#at%20work&dpo")
    expect(readout(page, "loss")).to_contain_text("dpo")
    chart(page, "loss").locator("summary").click()
    page.locator("#more > summary").click()
    page.locator("#configs summary").first.click()
    assert violations(page) == []
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    heading = "训练记录" if options.get("locale") else "Training runs"
    expect(page.locator("h1")).to_have_text(heading)
    page.locator("#language").click()
    expect(page.locator("h1")).to_have_text("Training runs" if options.get("locale") else "训练记录")
    assert page.evaluate("getComputedStyle(document.body).colorScheme") in ("light", "dark")


@pytest.mark.slow
def test_a_real_run(new_page, tmp_path):
    """Twenty steps of the training command, as they come."""
    texts = [{"text": f"{i} The sea waits. The hill sings."} for i in range(200)]
    append(tmp_path / "corpus.jsonl", *texts)
    keys = {
        "workdir": tmp_path / "out" / "real", "data.path": tmp_path / "corpus.jsonl", "data.cache_dir": tmp_path,
        "data.max_seq_len": 32, "data.val_fraction": 0.1, "epochs": 0.0, "steps": 20, "batch_size": 8,
        "model.dim": 32, "model.n_layers": 2, "model.n_heads": 4, "model.n_kv_heads": 2, "mesh.data": 1,
        "log_every": 1, "eval_every": 10, "save_every": 20, "sample_prompts": "('The sea',)",
    }  # fmt: skip
    arguments = [f"--config.{key}={value}" for key, value in keys.items()]
    (tmp_path / "out").mkdir()
    with site([], page=Page(runs=RunsDirectory(tmp_path / "out"))) as address:
        page = new_page()
        page.goto(address)
        expect(page.locator("#no-runs")).to_be_visible()
        command = [sys.executable, "train.py", "--config=configs/pretrain.py", *arguments]
        subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)
        page.reload()
        expect(page.locator("#runs li")).to_contain_text("step 20 of 20")
        expect(readout(page, "val_loss")).to_contain_text("at 20")
        expect(page.locator("#samples dt")).to_have_text(["The sea"])
        expect(page.locator("#report tbody tr").first).to_contain_text("val_")
        assert pixels(page, "loss") > 500
        page.close()


def test_both_languages_have_all_texts(page, address):
    page.goto(f"{address}/runs")
    en, zh = page.evaluate("import('/web/js/runs_texts.js').then(({ en, zh }) => [en, zh])")
    assert en.keys() == zh.keys()
    slots = [{key: sorted(re.findall(r"{\w+}", text)) for key, text in texts.items()} for texts in (en, zh)]
    assert slots[0] == slots[1]
    page.goto(address)  # where nothing is added to them
    shared = page.evaluate("import('/web/js/texts_en.js').then(({ en }) => Object.keys(en))")
    assert not en.keys() & set(shared)


def test_a_hundred_thousand_points_are_drawn_as_their_extremes(page, address):
    """What is chosen of them has the same highest and lowest value in every column of pixels."""
    page.goto(f"{address}/runs")
    result = page.evaluate(
        """async () => {
          const { visible } = await import("/web/js/series.js");
          const n = 100000, columns = 400;
          const xs = Array.from({ length: n }, (_, i) => i);
          const ys = xs.map((i) => ((i * 7919) % 104729) / 104729 + (i % 5000 === 17 ? 50 : 0));
          const chosen = visible(xs, ys, 0, n, columns);
          const extremes = (indices) => {
            const found = Array.from({ length: columns }, () => [Infinity, -Infinity]);
            for (const i of indices) {
              const column = found[Math.floor((xs[i] / n) * columns)];
              column[0] = Math.min(column[0], ys[i]);
              column[1] = Math.max(column[1], ys[i]);
            }
            return JSON.stringify(found);
          };
          const ascending = chosen.every((index, i) => i === 0 || index > chosen[i - 1]);
          return { same: extremes(xs) === extremes(chosen), count: chosen.length, ascending };
        }"""
    )
    assert result["same"] and result["ascending"] and result["count"] <= 4 * 401


def test_smoothing_and_round_numbers(page, address):
    page.goto(f"{address}/runs")
    result = page.evaluate(
        """async () => {
          const { smoothed, ticks, logTicks, short } = await import("/web/js/series.js");
          return { smooth: smoothed([2, 2, null, 5], 0.5), ticks: ticks(0.13, 1.07, 5), log: logTicks(0.02, 30, 9),
                   short: [0, 1.23456, 12345, 4.5e6, 0.00012, 1e-5, -7.7300001].map(short) };
        }"""
    )
    # Mean of 2, 2, 5 with weights 1/8, 1/4, 1/2 of 7/8.
    assert result["smooth"] == [2, 2, None, pytest.approx((2 / 8 + 2 / 4 + 5 / 2) / (7 / 8))]
    assert result["ticks"] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert result["log"] == pytest.approx([0.1, 1, 10])
    assert result["short"] == ["0", "1.235", "12.35k", "4.5M", "1.2e-4", "1e-5", "-7.73"]
