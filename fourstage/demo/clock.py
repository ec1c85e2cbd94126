"""What a person sees of a chain while it runs: a line that moves, and about how long it will take."""

import argparse
import re
import shutil
import sys
import time
from pathlib import Path

from fourstage.stages import DEMO_MINUTES, STAGES

CHAIN = [name for name, stage in STAGES.items() if stage.share]
_PACE = 0.002  # seconds of the task of `minutes_here` on the machine of DEMO_MINUTES
_TRAINING_BAR = re.compile(r"(\d+)/(\d+) \[[^\]\r\n]*tokens/s\]")  # not the bars of reading data and of evaluations


class Clock:
    """One line on the terminal: the stage, its step, what was last measured, the time and about how much is left."""

    def __init__(self, args: argparse.Namespace, started: float, seed: int, stage: str, live: bool):
        self.started, self.stage, self.begun = started, stage, time.monotonic()
        self.live = live and sys.stdout.isatty()  # of several at once, one is
        asked = [s for s in CHAIN if s in args.stages]
        self.place = f"[{asked.index(stage) + 1}/{len(asked)}] {stage}" + (f", seed {seed}" if args.seeds > 1 else "")
        one = sum(STAGES[s].share for s in asked)
        self.before = one * (seed - args.seed) + sum(STAGES[s].share for s in asked[: asked.index(stage)])
        self.total = one * args.seeds
        self.measured, self.shown = "", 0.0
        if not sys.stdout.isatty():
            print(self.place, flush=True)

    def show(self, chunk: str) -> None:
        steps = _TRAINING_BAR.findall(chunk)
        self.measured = (re.findall(r"step \d+/\d+: ([^\r\n]*)", chunk) or [self.measured])[-1]
        if steps and self.live and time.monotonic() - self.shown > 0.5:
            self.shown = time.monotonic()
            step, last = steps[-1]
            share = (self.before + STAGES[self.stage].share * int(step) / max(int(last), 1)) / self.total
            elapsed = time.monotonic() - self.started
            left = f", about {duration(elapsed / share - elapsed)} left" if share > 0.05 else ""
            line = f"{self.place} step {step}/{last}  {self.measured}  {duration(elapsed)}{left}"
            print("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1], end="", flush=True)

    def done(self, folder: Path) -> None:
        taken = duration(time.monotonic() - self.begun)
        say(f"{self.place} done in {taken}: {folder}  {self.measured}")


def say(line: str) -> None:
    """A line that stays, above the one that moves."""
    print(("\r\x1b[K" if sys.stdout.isatty() else "") + line, flush=True)


def duration(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def minutes_here(left: list[str]) -> int:
    """About how long these stages will take, by how long this machine takes for a small task."""
    import numpy as np

    matrix = np.ones((512, 512), dtype=np.float32)
    times = []
    for _ in range(40):
        started = time.monotonic()
        np.tanh(matrix @ matrix)
        times.append(time.monotonic() - started)
    pace = min(times) / _PACE
    return max(1, round(DEMO_MINUTES * pace * sum(STAGES[stage].share for stage in left) / 100))
