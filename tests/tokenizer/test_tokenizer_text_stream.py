"""Text that comes token by token is the decoded text, in whole characters, up to the first stop text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.tokenizer.text_stream import TextStream

TOKENIZER = load_tokenizer()
TEXTS = st.text(st.sampled_from("你好世界。abc \n👨‍👩‍👧🙂𠮷é<|>"), max_size=30)
IDS = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40)


def pieces(ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(TOKENIZER, stop)
    return [*(stream.push(token) for token in ids), stream.finish()]


@settings(max_examples=300, deadline=None)
@given(st.one_of(IDS, TEXTS.map(TOKENIZER.encode)))
def test_pieces_are_the_decoded_text(ids: list[int]):
    assert "".join(pieces(ids)) == TOKENIZER.decode(ids)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_no_piece_shows_half_a_character(text: str):
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces(TOKENIZER.encode(text)))


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(st.text(st.sampled_from("你好ab \n🙂"), min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_texts_end_it_and_are_never_shown(text: str, stop: list[str]):
    shown = "".join(pieces(TOKENIZER.encode(text), tuple(stop)))
    # Whichever is complete first ends the text, even if another one begins earlier.
    ends = [(text.find(s) + len(s), s) for s in stop if s in text]
    if not ends:
        assert shown == text
    else:
        assert text.startswith(shown) and not any(s in shown for s in stop)
        assert len(shown) >= min(text.find(s) for _, s in ends)


def test_text_is_shown_as_soon_as_it_is_certain():
    stream = TextStream(TOKENIZER, ("abcd",))
    shown = [stream.push(token) for token in TOKENIZER.encode("x ab")]
    assert "".join(shown) == "x "  # "ab" may begin the stop text
    assert "".join(stream.push(token) for token in TOKENIZER.encode("!")) == "ab!"
    assert not stream.stopped
    assert "".join(stream.push(token) for token in TOKENIZER.encode("abcdef")) == "" and stream.stopped
    assert stream.push(TOKENIZER.encode("y")[0]) == "" and stream.finish() == ""


def test_bytes_that_form_no_character_are_shown_at_the_end():
    ids = TOKENIZER.encode("𠮷")
    assert len(ids) > 1
    assert "".join(pieces(ids[:-1])) == "\N{REPLACEMENT CHARACTER}" == pieces(ids[:-1])[-1]
