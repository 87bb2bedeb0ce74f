"""Bodies of requests, checked: what may be asked, and what it means for the engine.

Fields that nobody knows are ignored, as OpenAI's servers add some every month. Those that are known to change the
answer and are not supported are refused, unless they hold the value that changes nothing.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minimind_jax.chat import RESERVED, ConversationError, check_text
from minimind_jax.errors import UserError
from minimind_jax.inference.options import Options
from minimind_jax.serving.errors import ApiError, bad_request, from_user_error

MAX_SEQUENCES = 128  # that one request may ask for

# Unsupported field -> values with which it changes nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "structured_outputs": (),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}

# What pydantic puts behind the name of a field that may be of several types.
_TYPES = (
    "str",
    "int",
    "list[str]",
    "list[int]",
    "list[list[int]]",
    "NamedTool",
    "literal['auto','none','required']",
)

_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class OptionObject(BaseModel):
    """An object among the fields: as there, null is not given."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class StreamOptions(OptionObject):
    include_usage: bool = False


class JsonSchema(OptionObject):
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(OptionObject):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def wanted_schema(self) -> dict[str, Any] | None:
        """The schema that the answer follows; None = it is free."""
        if self.type == "json_object":
            return {"type": "object"}
        if self.type == "text":
            return None
        if self.json_schema is None:
            field = "response_format.json_schema"
            raise bad_request(f"`{field}` is missing: give an object with the `schema`", field)
        return self.json_schema.schema_


class GenerationRequest(BaseModel):
    """What both endpoints take. `None`: not given."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] = 1
    max_tokens: _Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[str, float] = {}
    seed: int | None = None
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None

    @property
    def new_tokens_limit(self) -> int | None:
        return self.max_tokens

    @property
    def wanted_schema(self) -> dict[str, Any] | None:
        """The JSON schema that the answer follows; None = it is free."""
        return self.response_format.wanted_schema if self.response_format else None

    def options(
        self,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_logprobs: int,
        *,
        grammar: str = "",
        score_prompt: bool = False,
    ) -> list[Options]:
        """What each of the n answers to one prompt is generated with; they differ in their seeds.

        Args:
          temperature, top_p: of requests that name none.
          top_logprobs, grammar, score_prompt: as in `Options`.

        Raises:
          ApiError: 400, a value that makes no sense.
        """
        seed = secrets.randbits(32) if self.seed is None else self.seed
        try:
            return [
                Options(
                    max_new_tokens=max_new_tokens,
                    temperature=temperature if self.temperature is None else self.temperature,
                    top_k=0 if self.top_k == -1 else self.top_k,  # vLLM's way to say all
                    top_p=top_p if self.top_p is None else self.top_p,
                    min_p=self.min_p,
                    repetition_penalty=self.repetition_penalty,
                    frequency_penalty=self.frequency_penalty,
                    presence_penalty=self.presence_penalty,
                    logit_bias=tuple((_token_id(key), bias) for key, bias in self.logit_bias.items()),
                    seed=(seed + i) % 2**32,
                    stop=tuple(self.stop) if isinstance(self.stop, list) else (self.stop,) if self.stop else (),
                    stop_token_ids=tuple(self.stop_token_ids),
                    ignore_eos=self.ignore_eos,
                    top_logprobs=top_logprobs,
                    score_prompt=score_prompt,
                    grammar=grammar,
                )
                for i in range(self.n)
            ]
        except UserError as e:
            raise from_user_error(e) from None


class ChatTemplateKwargs(OptionObject):
    """Variables of the chat template; those that are no switches are `model_extra`."""

    model_config = ConfigDict(extra="allow")

    enable_thinking: bool | None = None
    open_thinking: bool | None = None

    @model_validator(mode="after")
    def _check_names(self) -> ChatTemplateKwargs:
        for name in sorted(RESERVED):
            if name in (self.model_extra or {}):
                raise bad_request(
                    f"`chat_template_kwargs.{name}` would replace what the request has elsewhere: leave it away",
                    f"chat_template_kwargs.{name}",
                )
        return self


class NamedFunction(OptionObject):
    name: str


class NamedTool(OptionObject):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(GenerationRequest):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    tool_choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: int | None = None
    max_completion_tokens: _Count | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: ChatTemplateKwargs = ChatTemplateKwargs()
    enable_thinking: bool | None = None
    open_thinking: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    @property
    def new_tokens_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def thinking(self) -> bool | None:
        """None: not given. The template's variables win over the same names beside them, which win over the effort."""
        variables = self.chat_template_kwargs
        for switches in (
            (variables.enable_thinking, variables.open_thinking, (variables.model_extra or {}).get("thinking")),
            (self.enable_thinking, self.open_thinking),
        ):
            given = [switch for switch in switches if isinstance(switch, bool)]
            if given:
                return any(given)
        return None if self.reasoning_effort is None else self.reasoning_effort not in ("none", "minimal")


class CompletionRequest(GenerationRequest):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    echo: bool = False
    logprobs: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Texts or token ids, one entry a prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


def _token_id(key: str) -> int:
    try:
        if not (key.isascii() and key.isdigit()):
            raise ValueError
        return int(key)
    except ValueError:  # also for more digits than Python reads
        raise bad_request(f"`logit_bias` has the key {key[:40]!r}, which is no token id", "logit_bias") from None


_Request = TypeVar("_Request", bound=BaseModel)


def parse_body(body: bytes, kind: type[_Request]) -> _Request:
    """A request's body. Raises ApiError (400), which names the field that is missing, wrong or not supported."""
    fields = {key: value for key, value in _json_object(body).items() if value is not None}
    for key, neutral in _UNSUPPORTED.items():
        if key in fields and fields[key] not in neutral:
            raise bad_request(f"`{key}` is not supported by this server: leave it away", key, "unsupported_parameter")
    try:
        return kind.model_validate(fields)
    except ValidationError as e:
        raise _worst_error(e) from None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as e:
        raise bad_request(f"the body is not UTF-8 text (byte {e.start})") from None
    except json.JSONDecodeError as e:
        raise bad_request(f"the body is not JSON: {e.msg}, line {e.lineno} column {e.colno}") from None
    except (ValueError, RecursionError) as e:
        reason = "it is nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise bad_request(f"the body is not usable JSON: {reason}") from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object")
    try:
        for key, field in value.items():
            check_text(key, "a field's name")
            check_text(field, key)
    except ConversationError as e:
        raise bad_request(str(e), e.field) from None
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _worst_error(error: ValidationError) -> ApiError:
    """The error that lies deepest: of a field's possible types it is the one that fits best."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    worst = max(errors, key=lambda e: len(e["loc"]))
    names = [part for part in worst["loc"] if part not in _TYPES]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names).lstrip(".")
    message = worst["msg"][:1].lower() + worst["msg"][1:]
    return bad_request(f"`{field}`: {message}", field)
