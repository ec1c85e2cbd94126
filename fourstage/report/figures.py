"""The curves of a stage as SVG that is part of the page and uses its colours."""

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fourstage.report.formatting import finite, value
from fourstage.report.load import StageRun

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

_MOST_POINTS = 200
# matplotlib needs real colours. Each of these is replaced by the variable of the page's style sheet next to it.
_COLOURS = {
    "#010203": "var(--ink-soft)",
    "#010204": "var(--line)",
    "#010205": "var(--pretrain)",
    "#010206": "var(--sft)",
    "#010207": "var(--reward)",
    "#010208": "var(--ppo)",
    "#010209": "var(--grpo)",
    "#01020a": "var(--control)",
}
_CODES = {variable[6:-1]: code for code, variable in _COLOURS.items()}
_STYLE: "dict[RcKeyType, Any]" = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fourstage",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _CODES["ink-soft"],
    "axes.labelcolor": _CODES["ink-soft"],
    "axes.edgecolor": _CODES["line"],
    "xtick.color": _CODES["ink-soft"],
    "ytick.color": _CODES["ink-soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _CODES["line"],
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Curve:
    """One quantity of a stage's log, `key`, with its name in the legend."""

    stage: str
    key: str
    label: str

    @property
    def held_out(self) -> bool:
        return self.key.startswith("eval_")


@dataclass(frozen=True)
class Chart:
    """Curves on the same axes; `unit` is what the vertical axis measures."""

    title: str
    unit: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class DrawnChart:
    """A chart for the page: `svg` is trusted markup, `caption` gives the first and last value of each curve."""

    title: str
    caption: str
    svg: str


def _pair(stage: str, key: str, prefix: str = "") -> tuple[Curve, Curve]:
    return Curve(stage, key, f"{prefix}training"), Curve(stage, f"eval_{key}", f"{prefix}held out")


CHARTS = {
    "pretrain": (
        Chart("Loss", "nats a token", _pair("pretrain", "loss")),
        Chart("Held-out text", "bits per byte", (Curve("pretrain", "eval_bits_per_byte", "held out"),)),
    ),
    "sft": (Chart("Loss of the answers' tokens", "nats a token", _pair("sft", "loss")),),
    "reward": (Chart("Pairs in which the chosen answer scores higher", "share", _pair("reward", "accuracy")),),
    "ppo": (
        Chart("Score of the reward model", "score", _pair("ppo", "reward")),
        Chart("KL to the parent", "nats an answer", _pair("ppo", "objective/kl")),
    ),
    "grpo": (
        Chart(
            "Reward of the checker", "mean reward", (*_pair("grpo", "reward"), *_pair("control", "reward", "control, "))
        ),
        Chart(
            "Entropy of the policy",
            "nats a token",
            (Curve("grpo", "entropy", "training"), Curve("control", "entropy", "control, training")),
        ),
    ),
    "control": (),
}


def draw(chart: Chart, runs: dict[str, list[StageRun]]) -> DrawnChart | None:
    """The chart over the steps of training, one thin curve per seed; None if no run has logged any of its curves."""
    logged = [(curve, [series(run.history, curve.key) for run in runs.get(curve.stage, [])]) for curve in chart.curves]
    logged = [(curve, [seed for seed in seeds if seed]) for curve, seeds in logged]
    logged = [(curve, seeds) for curve, seeds in logged if seeds]
    if not logged:
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5, 2.9), layout="constrained")  # 360 units wide, the width of a phone
        axes = figure.subplots()
        for curve, seeds in logged:
            _add(axes, curve, seeds)
        _finish(axes, chart, len(logged))
        out = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    most = max(len(seeds) for _, seeds in logged)
    mean = f" (means of {most} seeds)" if most > 1 else ""
    caption = f"{chart.unit}: " + "; ".join(f"{curve.label} {_first_to_last(seeds)}" for curve, seeds in logged) + mean
    return DrawnChart(chart.title, caption, _embed(out.getvalue(), chart, caption))


def series(history: list[dict], key: str) -> list[tuple[float, float]]:
    """(step, value) of every log row with a finite `key`, thinned to a few hundred. The last one is always kept."""
    pairs = [(finite(row.get("step")), finite(row.get(key))) for row in history]
    points = [(step, number) for step, number in pairs if step is not None and number is not None]
    thinned = points[:: max(1, len(points) // _MOST_POINTS)]
    return thinned if not points or thinned[-1] == points[-1] else [*thinned, points[-1]]


def _add(axes: Axes, curve: Curve, seeds: list[list[tuple[float, float]]]) -> None:
    for i, seed in enumerate(seeds):
        axes.plot(
            *zip(*seed, strict=True),
            color=_CODES[curve.stage],
            label=curve.label if i == 0 else None,
            linewidth=(2.0 if curve.held_out else 1.3) / (1 if len(seeds) == 1 else 1.6),
            alpha=1.0 if curve.held_out else 0.55,
            linestyle="--" if curve.stage == "control" else "-",
            marker="o" if curve.held_out else None,
            markersize=4 if len(seeds) == 1 else 3,
        )


def _finish(axes: Axes, chart: Chart, curves: int) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(chart.unit)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(length=0)
    if curves > 1:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, borderaxespad=0.1, handlelength=1.6)


def _first_to_last(seeds: list[list[tuple[float, float]]]) -> str:
    first, last = (sum(seed[at][1] for seed in seeds) / len(seeds) for at in (0, -1))
    return f"{value(first)} to {value(last)}"


def _embed(svg: str, chart: Chart, caption: str) -> str:
    """matplotlib's file as part of a page: no header, unique ids, no style sheet, the page's colours and font."""
    name = re.sub(r"\W+", "-", f"{chart.curves[0].stage} {chart.title}".lower())
    root = f'<svg viewBox="\\1" role="img" aria-label="{chart.title}, {caption}">'
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*viewBox=\"([^\"]*)\"[^>]*>", root, svg, count=1)
    svg = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', f"{name}-", svg.replace("xlink:href", "href"))
    svg = re.sub(r"font: ([\d.]+px) [^;]*;|font-size: ([\d.]+px); font-family: [^;]*;", r"font-size: \1\2;", svg)
    for code, variable in _COLOURS.items():
        svg = svg.replace(code, variable)
    return svg
