"""ollama's Modelfile for a GGUF file: the chat template in Go's form, and where an answer ends."""

from __future__ import annotations

from minimind_jax.errors import UserError
from minimind_jax.tokenizer import Tokenizer

# {{- takes away the white space before it, so that each line break stands where the template means it.
_TEMPLATE = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
%s{{ .Content }}<|im_end|>
{{ end }}"""
_BLOCK = '{{ if eq .Role "assistant" }}%s{{ end }}'
_ANSWER = "<|im_start|>assistant\n"
_PROBE = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]


def modelfile(tokenizer: Tokenizer, gguf_name: str) -> str:
    """The content of a Modelfile that stands beside the GGUF file `gguf_name`.

    ollama's template is our ChatML for system, user and assistant; tools and thoughts are not part of it.

    Raises:
      UserError: the tokenizer's chat template is no ChatML.
    """
    rendered = tokenizer.apply_chat_template(_PROBE, add_generation_prompt=True)
    # What stands before an answer of the past: our own template has an empty block of thoughts there.
    block = rendered.partition(_ANSWER)[2].partition("A<|im_end|>")[0]
    turns = "".join(
        f"<|im_start|>{m['role']}\n{block if m['role'] == 'assistant' else ''}{m['content']}<|im_end|>\n"
        for m in _PROBE
    )
    if not rendered.startswith(turns + _ANSWER):
        raise UserError(
            f"the chat template of {tokenizer.path} is not ChatML, which is all that --modelfile can write: "
            "leave it out and write the TEMPLATE by hand"
        )
    start = rendered.removeprefix(turns)  # with the empty block of thoughts that our own prompt ends in
    template = _TEMPLATE % (_BLOCK % block if block else "")
    return f'FROM ./{gguf_name}\n\nTEMPLATE """{template}{start}"""\n\nPARAMETER stop "<|im_end|>"\n'
