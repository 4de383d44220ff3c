"""Train what is not trained and measure what is not measured, setting after setting, until the time is up; start it again to go on.

PYTHONPATH=DATA python -m benchmarks.retention --minutes 7
"""

import argparse
import time
from pathlib import Path

from benchmarks.retention.halves import HALVES
from benchmarks.retention.settings import RIVALS, SETTINGS, load
from benchmarks.retention.study import ARMS, RESULTS, Study, read
from benchmarks.retention.train import train

REFERENCES = ("filter-1-row", "filter-8-rows", "filter-512-rows", "filter-prior")
"""How much reference text, and an isotropic prior on it."""
PASSES = (("base", "raw", "scale", "filter-mixture"), ("filter-documentation",), ("filter-self",), REFERENCES)
"""The first pass over all settings comes before the second."""
RIVALS_ARMS = ("base", "raw")
"""Rivals are judged as they were trained; after replay, a penalty or another variant, or on half of the layers, the filter is tried too."""


def _arms_of(rival: str) -> tuple[str, ...]:
    setting = SETTINGS[rival]
    tried = setting.replay or setting.penalty or setting.variant != "lora" or setting.targets in HALVES
    return (*RIVALS_ARMS, "scale", "filter-mixture") if tried else RIVALS_ARMS


def main() -> None:
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--work", type=Path, default=Path("runs/retention"))
    parser.add_argument("--minutes", type=float, default=1e9, help="nothing new is begun after this long")
    parser.add_argument("--passes", type=int, default=len(PASSES), help="only the first so many passes")
    parser.add_argument(
        "--arms",
        nargs="*",
        choices=("base", "raw", *ARMS),
        help="these arms of the settings named, in place of the passes",
    )
    parser.add_argument(
        "--frontiers", nargs="*", default=[], help="settings whose arms are also measured at fixed strengths"
    )
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes

    def late() -> bool:
        return time.monotonic() > end

    for arms in (options.arms,) if options.arms else PASSES[: options.passes]:
        for name in options.settings:
            known = read(RESULTS / f"{name}.json").get("arms", {})
            wanted = [arm for arm in arms if name not in RIVALS or arm in _arms_of(name)]
            if late() or set(wanted) <= set(known):
                continue
            train(SETTINGS[name], load(SETTINGS[name]), options.work / name)
            if not late():
                Study(SETTINGS[name], options.work).run(wanted, late)
    for name in options.frontiers:
        if not late():
            study = Study(SETTINGS[name], options.work)
            for arm in ("filter-mixture", "scale"):
                study.frontier(arm)


if __name__ == "__main__":
    main()
