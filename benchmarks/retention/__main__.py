"""Train what is not trained and measure what is not measured, setting after setting, until the time is up; start it again to go on.

PYTHONPATH=DATA python -m benchmarks.retention --minutes 7
"""

import argparse
import time
from pathlib import Path

from benchmarks.retention.settings import SETTINGS, load
from benchmarks.retention.study import Study
from benchmarks.retention.train import train


def main() -> None:
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--work", type=Path, default=Path("runs/retention"))
    parser.add_argument("--minutes", type=float, default=1e9, help="nothing new is begun after this long")
    parser.add_argument("--answers", nargs="*", default=["quickstart"], help="settings whose answers are generated too")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes

    def late() -> bool:
        return time.monotonic() > end

    for name in options.settings:
        if late():
            return
        train(SETTINGS[name], load(SETTINGS[name]), options.work / name)
        if not late():
            Study(SETTINGS[name], options.work).run(late, answers=name in options.answers)


if __name__ == "__main__":
    main()
