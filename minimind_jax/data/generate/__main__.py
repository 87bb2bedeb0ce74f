"""`python -m minimind_jax.data.generate`: writes the synthetic corpus (see the package's docstring)."""

from __future__ import annotations

import argparse
from pathlib import Path

from minimind_jax.data.generate.write import Sizes, generate
from minimind_jax.errors import user_errors


def main(argv: list[str] | None = None) -> None:
    default = Sizes()
    parser = argparse.ArgumentParser(
        prog="python -m minimind_jax.data.generate",
        description="Writes a synthetic Chinese/English corpus in MiniMind's jsonl formats, from a seed: "
        "pretrain, sft and dpo files with held-out *_val files, and questions with verifiable answers.",
        epilog="About 160 bytes a document: --documents 6500000 gives 1 GB, in constant memory. A count of 0 leaves "
        "that kind out.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write into")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument(
        "--documents", type=int, default=default.documents, metavar="N", help="pretraining texts, default %(default)s"
    )
    parser.add_argument(
        "--conversations",
        type=int,
        default=default.conversations,
        metavar="N",
        help="chats for SFT, default %(default)s",
    )
    parser.add_argument(
        "--pairs", type=int, default=default.pairs, metavar="N", help="preference pairs for DPO, default %(default)s"
    )
    parser.add_argument(
        "--questions",
        type=int,
        default=default.questions,
        metavar="N",
        help="held-out questions per family and language, default %(default)s",
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing files of these names")
    args = parser.parse_args(argv)
    with user_errors():
        sizes = Sizes(args.documents, args.conversations, args.pairs, args.questions)
        generate(args.out, args.seed, sizes, args.force)


if __name__ == "__main__":
    main()
