"""`python -m benchmarks.capability`: measure every cell that is missing, write the matrix and its page."""

import argparse
import sys
from pathlib import Path

from benchmarks.capability.page import counts, page
from benchmarks.capability.verify import verify


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="also what is recorded already")
    parser.add_argument("--only", nargs="*", default=(), metavar="NAME", help="these variants")
    parser.add_argument("--setting", nargs="*", default=(), help="such as llama/nf4 or llama/zero3")
    parsed = parser.parse_args()
    found = verify(names=parsed.only, settings=parsed.setting, again=parsed.again)
    docs = Path("docs")
    if docs.is_dir():
        (docs / "variants.md").write_text(page(found), encoding="utf-8")
    works, refused, rest = counts(found)
    print(f"{works} cells work, {refused} are refused, {rest} were not run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
