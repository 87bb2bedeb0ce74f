"""Chats with a model in the terminal: docs/serving.md.

python chat.py --model WORKDIR_OR_HF_DIR [--think] [--tools] [--system TEXT]
python chat.py --model WORKDIR_OR_HF_DIR --prompt "What is 2 + 2?"       one answer
python chat.py --model WORKDIR_OR_HF_DIR < questions.txt                 one line, one turn
"""

from __future__ import annotations

import argparse
import secrets

from minimind_jax.errors import user_errors
from minimind_jax.serving import Dialogue, Options, add_model_arguments, open_engine, open_terminal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_model_arguments(parser)
    parser.add_argument("--prompt", help="one question, instead of a chat")
    parser.add_argument("--system", default="", help="system prompt")
    parser.add_argument("--think", action="store_true", help="let the model think before it answers")
    parser.add_argument("--tools", action="store_true", help="let it call a calculator, the clock and a unit converter")
    parser.add_argument("--max-tokens", type=int, default=1024, help="of an answer (default: %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=0.7, help="0 = always the likeliest (default: %(default)s)"
    )
    parser.add_argument("--top-p", type=float, default=0.9, help="share of the likeliest (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=0, help="number of the likeliest; 0 = all (default)")
    parser.add_argument("--min-p", type=float, default=0.0, help="share of the likeliest one's; 0 = all (default)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1 = fewer repetitions")
    parser.add_argument("--frequency-penalty", type=float, default=0.0, help="-2 to 2: for each time a token was used")
    parser.add_argument("--presence-penalty", type=float, default=0.0, help="-2 to 2: if a token was used at all")
    parser.add_argument("--seed", type=int, help="the same answers again (default: random)")
    args = parser.parse_args()
    with user_errors():
        options = Options(
            max_new_tokens=args.max_tokens,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            frequency_penalty=args.frequency_penalty,
            presence_penalty=args.presence_penalty,
            seed=secrets.randbits(32) if args.seed is None else args.seed,
        )
        terminal = open_terminal()
        with open_engine(args, terminal.log) as engine:
            dialogue = Dialogue(engine, options, args.system, args.think, args.tools)
            if args.prompt is None:
                terminal.run(dialogue)
            else:
                terminal.ask(dialogue, args.prompt)


if __name__ == "__main__":
    main()
