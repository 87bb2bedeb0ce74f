"""Serves models over HTTP: a web page to chat, and OpenAI's API. docs/serving.md

python serve.py --model WORKDIR_OR_HF_DIR [--model ANOTHER] [--runs DIRECTORY] [--host 127.0.0.1] [--port 8998]
"""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path

from minimind_jax.errors import UserError, user_errors
from minimind_jax.serving import (
    Page,
    RunsDirectory,
    Settings,
    add_model_arguments,
    bind,
    exit_on_sigterm,
    open_models,
    read_suggestions,
    serve,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_model_arguments(parser, several=True)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 = reachable from outside (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8998, help="0 = any free one (default: %(default)s)")
    parser.add_argument(
        "--name",
        "--served-model-name",
        nargs="+",
        action="extend",
        default=[],
        help="the model's names in requests, the first one also in answers to those that name none; of several models "
        "one each (default: the directories')",
    )
    parser.add_argument("--any-model", action="store_true", help="other names mean the first model")
    parser.add_argument("--runs", type=Path, metavar="DIRECTORY", help="the page /runs shows its training runs")
    parser.add_argument(
        "--suggestions",
        type=Path,
        metavar="FILE",
        help="written by `evaluate.py --task questions --json FILE`: the page suggests what the model answers well",
    )
    parser.add_argument("--api-key", help="that requests must carry; better in the environment, MINIMIND_API_KEY")
    parser.add_argument("--cors-origin", action="append", default=[], help="web page that may ask, such as http://x:80")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        help="name that a proxy on this machine passes on (docs/serving.md)",
    )
    parser.add_argument("--max-batch", type=int, default=32, help="sequences decoded together (default: %(default)s)")
    parser.add_argument("--max-queue", type=int, default=256, help="sequences that may wait (default: %(default)s)")
    parser.add_argument("--max-body", type=int, default=4 * 2**20, help="bytes of a request (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds of a request (default: %(default)s)")
    parser.add_argument(
        "--max-tokens", type=int, default=1024, help="of answers whose request names no limit (default: %(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=0.7, help="of requests without (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=0.9, help="of requests without (default: %(default)s)")
    args = parser.parse_args()
    with user_errors():
        exit_on_sigterm()
        log = functools.partial(print, flush=True)
        if not args.model and args.runs is None:
            raise UserError("nothing to serve: name a model by --model, or a directory of training runs by --runs")
        if args.api_key == "":
            raise UserError("--api-key is empty: give a key, or leave it away to let anybody ask")
        settings = Settings(
            any_name=args.any_model,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            max_body=args.max_body,
            timeout=args.timeout,
            api_key=args.api_key or os.environ.get("MINIMIND_API_KEY", ""),
            cors_origins=tuple(args.cors_origin),
            allowed_hosts=tuple(args.allow_host),
        )
        page = Page(
            suggestions=read_suggestions(args.suggestions) if args.suggestions else {},
            runs=RunsDirectory(args.runs) if args.runs else None,
        )
        listener = bind(args.host, args.port)
        with open_models(args, args.name, log, max_batch=args.max_batch, max_queue=args.max_queue) as models:
            serve(models, settings, page, listener, log)


if __name__ == "__main__":
    main()
