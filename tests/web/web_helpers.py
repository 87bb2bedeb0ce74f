"""The application for a browser, and what goes wrong in its pages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from serving_helpers import SETTINGS, served

_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  reportViolation(`${event.violatedDirective} forbids ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""


@contextlib.contextmanager
def site(models: Any, settings: Any = SETTINGS, **options: Any) -> Iterator[str]:
    """The address of a running server, such as http://127.0.0.1:40123; arguments are those of `served`."""
    with served(models, settings, **options) as port:
        yield f"http://127.0.0.1:{port}"


class Problems:
    """Errors in the console, uncaught exceptions, and violations of the Content-Security-Policy."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._expected: list[str] = []

    def watch(self, context: Any) -> None:
        context.expose_binding("reportViolation", lambda _, text: self._found.append(f"CSP: {text}"))
        context.add_init_script(_REPORT_VIOLATIONS)
        context.on("console", self._on_console)
        context.on("weberror", lambda error: self._found.append(f"exception: {error.error}"))

    def expect(self, text: str) -> None:
        """Problems that hold `text` are the test's own, and one at least must come."""
        self._expected.append(text)

    @property
    def unexpected(self) -> list[str]:
        return [problem for problem in self._found if not any(text in problem for text in self._expected)]

    @property
    def missing(self) -> list[str]:
        return [text for text in self._expected if not any(text in problem for problem in self._found)]

    def _on_console(self, message: Any) -> None:
        if message.type == "error":
            self._found.append(f"console: {message.text} ({message.location.get('url')})")
