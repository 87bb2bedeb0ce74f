"""Chats with a model: over HTTP with OpenAI's API, and in the terminal."""

from minimind_jax.inference.options import Options
from minimind_jax.serving.app import create_app
from minimind_jax.serving.dialogue import Dialogue
from minimind_jax.serving.loading import add_model_arguments, open_engine, open_models
from minimind_jax.serving.models import ServedModel
from minimind_jax.serving.page import Page
from minimind_jax.serving.runs import RunsDirectory
from minimind_jax.serving.server import bind, exit_on_sigterm, serve
from minimind_jax.serving.settings import Settings
from minimind_jax.serving.suggestions import read_suggestions
from minimind_jax.serving.terminal import Terminal, open_terminal

__all__ = [
    "Dialogue",
    "Options",
    "Page",
    "RunsDirectory",
    "ServedModel",
    "Settings",
    "Terminal",
    "add_model_arguments",
    "bind",
    "create_app",
    "exit_on_sigterm",
    "open_engine",
    "open_models",
    "open_terminal",
    "read_suggestions",
    "serve",
]
