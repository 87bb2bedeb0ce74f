"""The terminal chat: turns, commands, tools, a context that is full, Ctrl-C; what goes where."""

import io

import pytest
from serving_helpers import TOKENIZER, ScriptedEngine, tiny_engine

from minimind_jax.errors import UserError
from minimind_jax.inference.options import Options
from minimind_jax.serving import Dialogue, Terminal

CALL = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "6 * 7"}}\n</tool_call>'


class Script(ScriptedEngine):
    """Answers one text after another, the last one for ever."""

    def __init__(self, *texts, max_context=4096, **options):
        super().__init__(texts[0], **options)
        self.max_context = max_context
        self._texts = list(texts)

    def submit(self, prompt, options, on_piece):
        self.text = self._texts.pop(0) if len(self._texts) > 1 else self._texts[0]
        return super().submit(prompt, options, on_piece)


def chat(engine, *lines, interactive=False, **options):
    """What `lines` give on (answers, notes), and the dialogue."""
    out, notes = io.StringIO(), io.StringIO()
    remaining = iter(lines)

    def read_line(prompt):
        line = next(remaining, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line

    dialogue = Dialogue(engine, Options(max_new_tokens=20), **options)
    Terminal(out, notes, interactive).run(dialogue, read_line)
    return out.getvalue(), notes.getvalue(), dialogue


def test_turns_make_a_conversation():
    engine = Script("one", "two")
    out, notes, _ = chat(engine, "first", "", "second", system="Be brief.")
    assert out == "one\ntwo\n"
    assert notes.count("1 token, first token after") == 2
    assert engine.prompts[1] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nfirst<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\none<|im_end|>\n<|im_start|>user\nsecond<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_commands():
    engine = Script("ok")
    lines = [
        "first",
        "/think on",
        "/system Be kind.",
        "second",
        "/reset",
        "/system",
        "third",
        "/what",
        "/quit",
        "fourth",
    ]
    _, notes, _ = chat(engine, *lines)
    assert engine.prompts[1].startswith("<|im_start|>system\nBe kind.")
    assert engine.prompts[1].endswith("<|im_start|>assistant\n")
    assert engine.prompts[2] == "<|im_start|>user\nthird<|im_end|>\n<|im_start|>assistant\n"
    assert len(engine.prompts) == 3
    assert "unknown: /what" in notes and "thinking is on" in notes


def test_thoughts_are_marked_without_colours_and_dimmed_with_them():
    text = "<think>\nhm\n</think>\n\nyes"
    assert chat(Script(text), "q", thinking=True)[0] == "<think>\nhm\n</think>\nyes\n"
    out, notes, _ = chat(Script(text, size=100), "q", thinking=True, interactive=True)
    assert "\x1b[2mhm\x1b[0m\nyes\n" in out and "<think>" not in out
    assert notes == ""  # a person sees it all in one place


def test_the_model_cannot_steer_the_terminal():
    assert chat(Script("a\x1b[2Jb\r\x9bc\td\ne"), "q", interactive=True)[0].count("\ufffd") == 3
    assert chat(Script("a\x1b[2Jb\r\x9bc\td\ne"), "q")[0] == "a\ufffd[2Jb\ufffd\ufffdc\td\ne\n"


def test_tools_are_called_until_there_is_an_answer():
    engine = Script(CALL, "It is 42.")
    out, _, dialogue = chat(engine, "6 times 7?", with_tools=True)
    assert out == 'calculate({"expression": "6 * 7"})\n-> {"result": "42"}\nIt is 42.\n'
    assert '"name": "calculate"' in engine.prompts[0]
    assert engine.prompts[1] == (
        f'{engine.prompts[0]}{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\n{{"result": "42"}}\n</tool_response>'
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert [m["role"] for m in dialogue.turns[0]] == ["user", "assistant", "tool", "assistant"]


def test_a_model_that_calls_for_ever_is_stopped():
    _, notes, dialogue = chat(Script(CALL), "q", with_tools=True)
    assert "has called functions 5 times" in notes
    assert len(dialogue.turns[0]) == 12


def test_a_full_context_drops_the_oldest_turns():
    engine = Script("word " * 30, max_context=512)
    lines = [f"question {i} " + "word " * 60 for i in range(6)]
    _, notes, _ = chat(engine, *lines, system="Remember this.")
    last = engine.prompts[-1]
    assert len(engine.prompts) == 6
    assert "Remember this." in last and "question 5" in last and "question 0" not in last
    assert "the oldest turn left out: the context has 512 tokens" in notes
    for prompt in engine.prompts:
        assert len(TOKENIZER.encode_rendered(prompt)) + 20 <= 512


def test_a_question_that_does_not_fit_is_forgotten():
    with tiny_engine() as engine:
        with pytest.raises(UserError, match=r"the prompt has \d+ tokens, the limit"):
            chat(engine, "word " * 600)
        out, _, dialogue = chat(engine, "word " * 600, "hi", interactive=True)
        assert "error: the prompt has" in out
        assert [turn[0]["content"] for turn in dialogue.turns] == ["hi"]


class Interrupting(Script):
    """The user presses Ctrl-C at the fourth piece."""

    def _write(self, request, on_piece):
        self.request = request
        super()._write(request, on_piece)


def test_ctrl_c_stops_the_answer_only(monkeypatch):
    engine = Interrupting("a long answer", "next")
    shown = []

    def show(self, part):
        shown.append(part)
        if len(shown) == 3:
            raise KeyboardInterrupt
        original(self, part)

    original = Terminal._show
    monkeypatch.setattr(Terminal, "_show", show)
    out, _, dialogue = chat(engine, "q", KeyboardInterrupt(), "r", interactive=True)
    assert "stopped" in out and "/quit ends" in out and "next" in out
    assert dialogue.turns[0][1]["content"] == "a long an"  # what there was stays
    assert len(dialogue.turns) == 2
    shown.clear()
    with pytest.raises(KeyboardInterrupt):
        chat(Interrupting("a long answer"), "q")  # in a pipe it is the end
    assert engine.request.cancelled


def test_notes_from_the_engine_wait_for_the_end_of_an_answer():
    out = io.StringIO()
    terminal = Terminal(out, out, interactive=False)
    terminal.log("compiling a")

    class Compiling(Script):
        def _write(self, request, on_piece):
            terminal.log("compiling b")
            super()._write(request, on_piece)

    dialogue = Dialogue(Compiling("some text", pause=0.05), Options())

    original = terminal._show
    terminal._show = lambda part: (original(part), terminal.log("compiling c"))
    terminal.ask(dialogue, "q")
    assert out.getvalue().split("\n")[:4] == ["compiling a", "compiling b", "some text", "compiling c"]
