"""Loads a Hugging Face tokenizer directory: text to token ids and back, conversations to text."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import tokenizers

from minimind_jax.errors import UserError
from minimind_jax.tokenizer.chat import Neutralizer, compile_template

SHIPPED = Path(__file__).parent / "minimind"

# What a directory may hold beside tokenizer.json that engines read.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_TEMPLATES = "additional_chat_templates"  # a directory of NAME.jinja beside chat_template.jinja

# GPT-2's byte-level BPE writes printable bytes as themselves, the others as the characters from U+0100 on.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
_BYTE_OF_SYMBOL = {chr(b): b for b in _PRINTABLE} | {chr(256 + i): b for i, b in enumerate(_OTHERS)}


def load_tokenizer(path: str = "") -> Tokenizer:
    """The tokenizer in directory `path`; "" = the shipped one of 6,400 entries.

    Raises:
      UserError: the directory or a file or key in it is missing or unusable.
    """
    return Tokenizer(Path(path) if path else SHIPPED)


class Tokenizer:
    """A byte-level BPE (or any other `tokenizer.json`) with its chat template.

    Control tokens are the added tokens that are `special` or look like `<...>`. Of the shipped tokenizer
    `<|endoftext|>`, `<|im_start|>`, `<|im_end|>` and `<|reserved_n|>` are special; `<think>`, `<tool_call>`,
    `<tool_response>` and their closing forms are not, as in Qwen3, so that `decode` shows them and servers can
    take thoughts and calls out of the text.

    Attributes:
      path: the directory.
      added_tokens: those that stand apart from the vocabulary, control tokens among them: id by text. They are found
        in a text before anything else.
      added_ids: their ids.
      vocab_size: the highest id + 1, added tokens included: rows that an embedding needs.
      is_byte_level: whether entries are written in GPT-2's alphabet of bytes.
      pad_id, bos_id, eos_id: pad and bos fall back to eos where the directory names none (Qwen3 has no bos).
      control_tokens: ids of the control tokens by their text, also of pad, bos and eos.
      config: tokenizer_config.json over special_tokens_map.json, as they stand there.
      template_source: text of the chat templates by name, "default" being the usual one.
      neutralizer: breaks up what looks like a control token.
      unk_id: None where nothing is unknown, as with byte-level BPE.
      fingerprint: sha256 (hex) of tokenizer.json, the chat template and the three ids.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise UserError(f"no tokenizer directory at {path}: name one that holds tokenizer.json")
        self.path = path
        content = _read_text(path / "tokenizer.json")
        if content is None:
            raise UserError(
                f"{path} has no tokenizer.json: save it with Hugging Face's fast tokenizer, or train one with "
                "python -m minimind_jax.tokenizer train"
            )
        spec = _parse_object(path / "tokenizer.json", content)
        added = _added_tokens(path / "tokenizer.json", spec)
        control = [token for token in added if _is_control(token)]
        self._rendered = _backend(path, spec)
        # To leave control tokens out would move the ids of added tokens that control nothing.
        marked = [token | {"special": _is_control(token)} for token in added]
        self._plain = _backend(path, spec | {"added_tokens": marked})
        self._plain.encode_special_tokens = True  # as ordinary text
        self._check_plain(spec, control)

        self.added_tokens = {token["content"]: token["id"] for token in added}
        self.added_ids = set(self.added_tokens.values())
        decoder = self._rendered.decoder
        self.is_byte_level: bool = decoder is not None and decoder.decode(["Ġa"]) == " a"

        self.config = self._read_config()
        self._special = _special_tokens(self.config)
        self.template_source = _template_source(path, self.config)
        self.neutralizer = Neutralizer({t["content"] for t in control} | set(self._special.values()))
        self.vocab_size: int = max(self._rendered.get_vocab(with_added_tokens=True).values()) + 1
        eos_id = self._special_id("eos_token")
        if eos_id is None:
            raise UserError(
                f"{path / 'tokenizer_config.json'} names no eos_token (nor does special_tokens_map.json): "
                "add the token that ends an answer"
            )
        self.eos_id: int = eos_id
        pad_id, bos_id = self._special_id("pad_token"), self._special_id("bos_token")
        self.pad_id: int = eos_id if pad_id is None else pad_id
        self.bos_id: int = eos_id if bos_id is None else bos_id
        own = {i: self.decode([i], skip_special_tokens=False) for i in (self.pad_id, self.bos_id, self.eos_id)}
        self.control_tokens: dict[str, int] = {t["content"]: t["id"] for t in control} | {t: i for i, t in own.items()}
        self.unk_id: int | None = self._rendered.token_to_id(self._special.get("unk_token", ""))
        digest = hashlib.sha256(content.encode())
        digest.update(json.dumps([self.template_source, self.pad_id, self.bos_id, self.eos_id]).encode())
        self.fingerprint: str = digest.hexdigest()

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The id of every entry, added tokens included, written as in tokenizer.json."""
        return self._rendered.get_vocab(with_added_tokens=True)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The named ones, text by name ("eos_token")."""
        return self._special

    @cached_property
    def rules(self) -> str:
        """Identifies all that maps text to ids: entries, merges, normalisation, and which tokens are added ones."""
        return hashlib.sha256(self._rendered.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of plain content; nothing is added. Text that looks like a control token stays ordinary text.

        Raises:
          UserError: `text` holds a lone surrogate, which no UTF-8 text can.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once, in parallel threads."""
        return _encode(self._plain, texts)

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a rendered conversation: control tokens become their ids. Raises UserError as `encode`."""
        return _encode(self._rendered, [text])[0]

    def encode_rendered_batch(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode_rendered` of many texts, in parallel threads, and of each token where in its text it stands.

        Returns:
          For each text its ids, and (start, end) in characters of each; tokens that share a character both have it.
        """
        return [(e.ids, e.offsets) for e in _encodings(self._rendered.encode_batch, texts)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Bytes that form no UTF-8 become U+FFFD; ids above the vocabulary give nothing."""
        return self._rendered.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token, often a part of a character only; None if it is none of a byte-level tokenizer's."""
        token = self._rendered.id_to_token(token_id) if token_id >= 0 else None
        if token is None or not self.is_byte_level:
            return None
        if token_id in self.added_ids or not _BYTE_OF_SYMBOL.keys() >= set(token):
            return token.encode()
        return bytes(_BYTE_OF_SYMBOL[symbol] for symbol in token)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **kwargs: Any,
    ) -> str:
        """Renders a conversation exactly as transformers does, control-token look-alikes in it broken up first.

        Those become `< |im_end|>` and so on, in every string of messages, tools and kwargs. One exception: the
        assistant's `content` keeps literal `<think>`, `</think>`, `<tool_call>`, `</tool_call>`.

        The shipped template: every assistant turn begins with a think block. It holds the thoughts
        (`reasoning_content`, or `<think>...</think>` that begins the content) of turns after the last user message; in
        earlier turns it is empty. The generation prompt ends in an empty block, unless `enable_thinking` (or
        `open_thinking`) is true: then the model itself writes `<think>`.

        Args:
          messages: `role`, `content` (string or None), for the assistant also `reasoning_content` and `tool_calls`
            (objects with `name` and `arguments`, an object or a JSON string, bare or under `function`).
          tools: JSON signatures.
          add_generation_prompt: ends the text where the assistant's answer begins.
          **kwargs: further variables of the template.

        Raises:
          UserError: no template in the directory, or the template refuses the conversation.
        """
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping):
                raise UserError(f"message {number} of the conversation is not an object with role and content")
        clean = self.neutralizer
        tools = None if tools is None else clean.value(tools)
        return self.render(clean.messages(messages), tools, add_generation_prompt, **clean.value(kwargs))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """`apply_chat_template` without breaking anything up: `neutralizer` has done it. Raises UserError likewise."""
        if not messages:
            raise UserError("the conversation has no messages")
        try:
            return self._template(bool(tools)).render(
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **(self._special | variables),
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError) as e:
            raise UserError(f"the chat template of {self.path} refuses the conversation: {e}") from e

    def save(self, directory: Path | str) -> None:
        """Copies the tokenizer's files to `directory`, which is made if need be."""
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        if target.resolve() == self.path.resolve():
            return
        templates = [f"{_TEMPLATES}/{file.name}" for file in _template_files(self.path)]
        if templates:
            (target / _TEMPLATES).mkdir(exist_ok=True)
        for name in (*_FILES, *templates):
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, target / name)

    def _read_config(self) -> dict[str, Any]:
        """tokenizer_config.json over special_tokens_map.json (what older directories keep apart)."""
        files = [self.path / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
        found = [(file, text) for file in files if (text := _read_text(file)) is not None]
        if not found:
            raise UserError(f"{self.path} has no tokenizer_config.json: it names the pad, bos and eos tokens")
        config: dict[str, Any] = {}
        for file, text in found:
            config |= {key: value for key, value in _parse_object(file, text).items() if value is not None}
        return config

    def _special_id(self, key: str) -> int | None:
        token = self._special.get(key)
        if token is None:
            return None
        token_id = self._rendered.token_to_id(token)
        if token_id is None:
            raise UserError(f"{self.path / 'tokenizer_config.json'}: {key} {token!r} is not in tokenizer.json")
        return token_id

    def _check_plain(self, spec: Mapping[str, Any], control: Sequence[Mapping[str, Any]]) -> None:
        unknown = (spec.get("model") or {}).get("unk_token")
        for token in control:
            if token["content"] != unknown and token["id"] in self.encode(token["content"]):
                raise UserError(
                    f"{self.path / 'tokenizer.json'} makes the control token {token['content']!r} out of plain text, "
                    "so that content could open or close a turn: use another tokenizer"
                )

    @cached_property
    def _templates(self) -> dict[str, jinja2.Template]:
        templates = {}
        for name, source in self.template_source.items():
            try:
                templates[name] = compile_template(source)
            except jinja2.TemplateSyntaxError as e:
                raise UserError(f"the chat template of {self.path} is no Jinja template: line {e.lineno}: {e}") from e
        return templates

    def _template(self, with_tools: bool) -> jinja2.Template:
        wanted = ("tool_use", "default") if with_tools else ("default",)
        for name in wanted:
            if name in self._templates:
                return self._templates[name]
        raise UserError(
            f"{self.path} has no chat template: add chat_template.jinja, or chat_template to tokenizer_config.json"
        )

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Path]]:
        # Compiled templates do not pickle, and the library forgets encode_special_tokens.
        return Tokenizer, (self.path,)


def _encode(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [e.ids for e in _encodings(backend.encode_batch_fast, texts)]


def _encodings(encode: Callable[..., list[tokenizers.Encoding]], texts: Sequence[str]) -> list[tokenizers.Encoding]:
    try:
        return encode(list(texts), add_special_tokens=False)
    except (TypeError, UnicodeEncodeError) as e:
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"only text can be tokenized, not {type(text).__name__}") from e
            for position, character in enumerate(text):
                if "\ud800" <= character <= "\udfff":
                    raise UserError(
                        f"the text holds the lone surrogate U+{ord(character):04X} at character {position}: "
                        "it is no Unicode text"
                    ) from e
        raise


def _added_tokens(file: Path, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = spec.get("added_tokens") or []
    for token in added if isinstance(added, list) else [added]:
        if not (isinstance(token, dict) and isinstance(token.get("content"), str) and "special" in token):
            raise UserError(f"{file} is no usable tokenizer: added_tokens is no list of tokens")
    return added


def _is_control(token: Mapping[str, Any]) -> bool:
    content = token["content"]
    return bool(content) and (token["special"] or (content.startswith("<") and content.endswith(">")))


def _backend(path: Path, spec: Mapping[str, Any]) -> tokenizers.Tokenizer:
    # What a directory adds, cuts or pads by itself would come on top of what we add.
    bare = dict(spec) | {"post_processor": None, "truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(bare))
    except Exception as e:  # the library raises bare Exception
        raise UserError(f"{path / 'tokenizer.json'} is no usable tokenizer: {e}") from e


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The string-valued `..._token` entries, bos_token and so on; some directories wrap them in objects."""
    special = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            special[key] = content
    return special


def _template_source(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Template text by name, "default" being the usual one; files win over the config, as in transformers."""
    files = {file.name.removesuffix(".jinja"): file for file in _template_files(path)}
    found = {name: _read_text(file) for name, file in ({"default": path / "chat_template.jinja"} | files).items()}
    if written := {name: text for name, text in found.items() if text is not None}:
        return written
    template = config.get("chat_template")
    if isinstance(template, str):
        return {"default": template}
    if not isinstance(template, list):
        return {}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in template}
    except (TypeError, KeyError):
        raise UserError(
            f"{path / 'tokenizer_config.json'}: chat_template is neither a text nor a list of name and template: "
            "write it to chat_template.jinja instead"
        ) from None


def _template_files(path: Path) -> list[Path]:
    return sorted((path / _TEMPLATES).glob("*.jinja"))


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path} cannot be read as UTF-8 text: {e}") from e


def _parse_object(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is no JSON: {e}") from e
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value
