"""Errors as OpenAI's API reports them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minimind_jax.errors import UserError

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 504: "timeout_error"}


class ApiError(Exception):
    """An answer with an error status.

    Args:
      message: one sentence: what is wrong and how to mend it.
      code: a word for programs, such as context_length_exceeded.
      param: the field of the request that is to blame.
    """

    def __init__(
        self, status: int, message: str, *, code: str = "", param: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param or None, "code": self.code or None}
        }


def bad_request(message: str, param: str = "", code: str = "") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def from_user_error(error: UserError) -> ApiError:
    """`inference` names the value it refuses first: `top_p=3 must be ...`."""
    field = re.match(r"(\w+)=", str(error))
    return bad_request(str(error), param=field.group(1) if field else "")
