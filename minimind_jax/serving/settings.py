"""What an operator decides about a server."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from minimind_jax.errors import UserError
from minimind_jax.inference.options import Options


@dataclass(frozen=True)
class Settings:
    """Raises UserError for a value that makes no sense."""

    any_name: bool = False  # names that no model has mean the first one
    max_tokens: int = 1024  # new tokens of a request that names no limit
    temperature: float = 0.7  # of a request that names none
    top_p: float = 0.9  # likewise
    max_body: int = 4 * 2**20  # bytes
    timeout: float = 600.0  # seconds from a request's first byte to the last of its answer
    api_key: str = ""  # "" = anybody may ask
    cors_origins: tuple[str, ...] = ()  # web pages that may ask, "*" = all
    allowed_hosts: tuple[str, ...] = ()  # names that requests may know the server by, without port; () = all

    def __post_init__(self) -> None:
        Options(max_new_tokens=1, temperature=self.temperature, top_p=self.top_p)
        for flag, value in (("max-tokens", self.max_tokens), ("max-body", self.max_body)):
            if value < 1:
                raise UserError(f"--{flag}={value} must be at least 1")
        for host in self.allowed_hosts:
            if not re.fullmatch(r"[\w.-]+|\[[0-9A-Fa-f:.]+\]", host):
                raise UserError(f"--allow-host={host} is no host name: give it without http:// and port")
        if not 0 < self.timeout < math.inf:
            raise UserError(f"--timeout={self.timeout:g} must be a number of seconds above 0")
        if not self.api_key.isascii() or self.api_key != self.api_key.strip():
            raise UserError("the API key must be ASCII without spaces around it, as it travels in an HTTP header")
