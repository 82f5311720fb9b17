"""From the figures of ``bench`` to tables and plots: goals, and whether they are met."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_cases import GENLM_SECONDS, LEAK_EVALUATIONS, Case, Figures
from tests.benchmarks.bench_genlm import fit
from tests.benchmarks.bench_host import processor

Measured = Mapping[Case, list[Figures]]


def rate(figures: Figures) -> float:
    """Bytes per second, from submission to the last byte."""
    return float(figures["bytes"]) / float(figures["seconds"])


def evaluation_rate(figures: Figures) -> float:
    """Evaluations, or tokens, per second."""
    return float(figures["evaluations"]) / float(figures["seconds"])


def evaluations_per_byte(figures: Figures) -> float:
    """Prefill included."""
    return float(figures["evaluations"]) / float(figures["bytes"])


def decode_evaluations_per_byte(figures: Figures) -> float:
    """Without those of the prefill."""
    return float(figures["evaluations"] - figures["prefill_evaluations"]) / float(figures["bytes"])


def tokens_beyond_first(sessions: int) -> Callable[[Figures], float]:
    """Tokens computed per evaluation beyond the first of each context.

    The first evaluation of a context is charged with all tokens of the prompt, each once; what
    else was computed belongs to the others.
    """

    def figure(figures: Figures) -> float:
        tokens = figures["tokens_computed"] - figures["context_tokens"]
        return float(tokens) / float(figures["evaluations"] - sessions)

    return figure


def decode_tokens_per_evaluation(figures: Figures) -> float:
    """Tokens computed per evaluation after the prefill."""
    tokens = figures["tokens_computed"] - figures["prefill_tokens_computed"]
    return float(tokens) / float(figures["evaluations"] - figures["prefill_evaluations"])


def decode_seconds_per_byte(figures: Figures) -> float:
    """After the last prompt was known to the model."""
    return float(figures["decode_seconds"]) / float(figures["decode_bytes"])


def decode_seconds_per_evaluation(figures: Figures) -> float:
    """After the prefill, or after each first token where tokens are counted."""
    evaluations = figures["evaluations"] - figures.get("prefill_evaluations", 0)
    return float(figures["decode_seconds"]) / float(evaluations)


def prefill_seconds(figures: Figures) -> float:
    """Until the prompts are known to the model."""
    return float(figures["prefill_seconds"])


@dataclass(frozen=True)
class Row:
    """A figure with a goal.

    Attributes:
        figure: what it is.
        goal: in words.
        value: in words; empty where a side was not measured.
        met: whether the goal is met; None where there is none, or nothing was measured.
        how: what it was made of.
    """

    figure: str
    goal: str
    value: str
    met: bool | None
    how: str = ""


class Report:
    """All figures of a run.

    Args:
        which: the set of cases.
        model: the model's name.
        measured: the figures of each case, a repetition each.
    """

    def __init__(self, which: str, model: str, measured: Measured) -> None:
        self.which = which
        self.model = model
        self.measured = measured
        repetitions = [one for figures in measured.values() for one in figures]
        seconds = [one.get("measured_seconds") or one["seconds"] for one in repetitions]
        self.minutes = sum(seconds) / 60
        self._by_key = {case.key: (case, figures) for case, figures in measured.items()}

    def median(self, key: str, figure: Callable[[Figures], float]) -> float | None:
        """The median of a figure over a case's repetitions; None where it was not measured."""
        if not self._by_key.get(key, (None, []))[1]:
            return None
        return statistics.median(map(figure, self._by_key[key][1]))

    def rows(self) -> list[Row]:
        """The goals, in the main run; of genlm-bytes to the end, how well extrapolations hold."""
        if self.which == "scores":
            return [row for row in self._scores() if row.value]
        if self.which == "peers":
            return [self._against_fit(key) for key in self._by_key if self._by_key[key][1]]
        if self.which != "main":
            return []
        short, default, long = "greedy-32x60", "greedy-32x60-default", "greedy-32x2000"
        sample, rounds = "token-sample-32x60", "rounds-32x60"
        rows = [
            self._tokens(short),
            self._ratio("greedy, 32 sessions, 60 bytes", 8, "bytelm", "genlm", short),
            self._ratio("the same at the default beam", 8, "bytelm", "genlm", default),
            self._ratio("greedy, 32 sessions, 2,000 bytes", 50, "bytelm", "genlm", long),
            self._prefill("prefill-1x2000"),
            self._ratio("token-native sampling, 32 sessions", 0.9, "bytelm", "native", sample),
            self._ratio("evaluations/s in rounds of 32", 0.85, "bytelm", "native", rounds),
            self._evaluations(short, 0.26),
            self._evaluations(default, None),
            self._ratio("greedy, 32 sessions (stretch)", 0.7, "bytelm", "native", short),
            self._ratio("over HTTP, 32 sessions", 0.95, "http", "bytelm", short),
            self._decode(short, long),
            self._leaks("leaks-32x60"),
        ]
        return [row for row in rows if row.value]

    def _scores(self) -> list[Row]:
        one, many = "score-1x2000", "score-64x400"
        rows = [
            self._times(f"{what}: {label} tokenizations", goal, f"{case}-{label}")
            for what, case, goals in (
                ("2,000 bytes against the walk", f"bytelm/{one}", (8, 3)),
                ("64 texts of 400 bytes against walks side by side", f"bytelm/{many}", (1.5, 1.5)),
                ("1,000 continuations", "bytelm/continuations-1000x24", (None, None)),
                ("the choices of 200 questions", "bytelm/choices-200x200", (None, None)),
            )
            for label, goal in zip(("canonical", "all"), goals, strict=True)
        ]
        exact = "bytelm/prefill-1x2000-exact"
        rows.append(self._times("exact prefill of 2,000 bytes against the walk", 8, exact))
        for label in ("canonical", "all"):
            figure = f"2,000 bytes against genlm-bytes: {label} tokenizations"
            rows.append(self._times(figure, None, f"bytelm/{one}-{label}", f"genlm/{one}"))
        mine = self.median(f"bytelm/{one}-canonical", lambda figures: float(figures["seconds"]))
        other = self.median(f"native/{one}", lambda figures: float(figures["seconds"]))
        if mine is not None and other is not None:
            figure, how = "2,000 bytes, canonical, as long as vLLM's prompt_logprobs", "seconds"
            how = f"{mine:.2f} s against {other:.2f}"
            rows.append(Row(figure, "≤ 8 ×", f"{mine / other:.3g} ×", mine / other <= 8, how))
        return rows

    def _times(self, figure: str, goal: float | None, key: str, other: str | None = None) -> Row:
        """How many times as fast a case is as another, by default as its walk."""
        other = other or f"{key}-walk"
        mine, theirs = self.median(key, rate), self.median(other, rate)
        if mine is None or theirs is None:
            return Row(figure, "", "", None)
        how = f"{mine:,.1f} bytes/s against {theirs:,.1f}"
        how += " (extrapolated)" if self._is_extrapolated(other) else ""
        met = None if goal is None else mine / theirs >= goal
        return Row(figure, f"≥ {goal:g} ×" if goal else "", f"{mine / theirs:.3g} ×", met, how)

    def _ratio(self, figure: str, goal: float, ours: str, theirs: str, name: str) -> Row:
        of = evaluation_rate if name.startswith("rounds") else rate
        unit = "/s" if of is evaluation_rate else " bytes/s"
        mine, other = (self.median(f"{side}/{name}", of) for side in (ours, theirs))
        if mine is None or other is None:
            return Row(figure, "", "", None)
        names = {"genlm": "genlm-bytes", "native": "native decoding", "bytelm": "in process"}
        how = f"{mine:,.1f}{unit} against {other:,.1f}"
        if self._is_extrapolated(f"{theirs}/{name}"):
            how += " (extrapolated)"
        value = mine / other
        return Row(figure, f"≥ {goal:g} × {names[theirs]}", f"{value:.3g} ×", value >= goal, how)

    def _against_fit(self, key: str) -> Row:
        case, (figures,) = self._by_key[key]
        a, b = fit(_first_seconds(figures))
        n = figures["curve"][-1][0]
        guess = a * n + b * n * n
        how = f"a·n + b·n² from its first {GENLM_SECONDS:g} s gives {guess:,.0f} s"
        return Row(case.name, "", f"{figures['seconds']:,.0f} s", None, how)

    def _is_extrapolated(self, key: str) -> bool:
        return any("extrapolated" in figures for figures in self._by_key[key][1])

    def _tokens(self, name: str) -> Row:
        figure, goal = "tokens computed per evaluation beyond the first of a context", 1.05
        key = f"bytelm/{name}"
        if key not in self._by_key:
            return Row(figure, "", "", None)
        value = self.median(key, tokens_beyond_first(self._by_key[key][0].sessions))
        decoding = self.median(key, decode_tokens_per_evaluation)
        assert value is not None
        how = f"{decoding:.3f} after the prefill; prompts of 60 bytes, greedy"
        return Row(figure, f"≤ {goal:g}", f"{value:.3f}", value <= goal, how)

    def _evaluations(self, name: str, goal: float | None) -> Row:
        figure = "evaluations per byte, greedy" + (", at the default beam" if not goal else "")
        value = self.median(f"bytelm/{name}", evaluations_per_byte)
        decoding = self.median(f"bytelm/{name}", decode_evaluations_per_byte)
        if value is None:
            return Row(figure, "", "", None)
        how = f"prefill included; {decoding:.3f} without"
        met = None if goal is None else value <= goal
        return Row(figure, "" if goal is None else f"≤ {goal:g}", f"{value:.3f}", met, how)

    def _prefill(self, name: str) -> Row:
        figure, goal = "prefill of one 2,000-byte prompt", 100
        mine = self.median(f"bytelm/{name}", prefill_seconds)
        other = self.median(f"genlm/{name}", prefill_seconds)
        if mine is None or other is None:
            return Row(figure, "", "", None)
        extrapolated = " (extrapolated)" if self._is_extrapolated(f"genlm/{name}") else ""
        value = other / mine
        how = f"{mine:.2f} s against {other:,.0f} s{extrapolated}"
        return Row(figure, f"≥ {goal} × faster", f"{value:,.0f} ×", value >= goal, how)

    def _decode(self, short: str, long: str) -> Row:
        figure, goal = "time per byte while decoding, 2,000 bytes against 60, 32 sessions", 1.4
        near = self.median(f"bytelm/{short}", decode_seconds_per_byte)
        far = self.median(f"bytelm/{long}", decode_seconds_per_byte)
        if near is None or far is None:
            return Row(figure, "", "", None)
        how = f"{1000 * far:.2f} ms against {1000 * near:.2f} ms"
        # Texts differ in evaluations per byte, and vLLM's greedy ones in when they begin to loop.
        for whose, of, against in (
            ("per evaluation", f"bytelm/{long}", f"bytelm/{short}"),
            ("vLLM alone, per token", f"native/{long}", "native/rounds-32x60"),
        ):
            slow, fast = (self.median(key, decode_seconds_per_evaluation) for key in (of, against))
            if slow is not None and fast is not None:
                how += f"; {whose} {slow / fast:.2f} ×"
        return Row(figure, f"≤ {goal:g} ×", f"{far / near:.2f} ×", far / near <= goal, how)

    def _leaks(self, name: str) -> Row:
        figure = f"{LEAK_EVALUATIONS:,} evaluations leave nothing behind"
        if f"bytelm/{name}" not in self._by_key:
            return Row(figure, "", "", None)
        made = self._by_key[f"bytelm/{name}"][1][0]
        left = ", ".join(f"{what} {count}" for what, count in made["left"].items())
        how = f"{made['evaluations']:,} evaluations, {made['given_up']} calls given up"
        clean = not any(made["left"].values())
        return Row(figure, "nothing", "nothing" if clean else f"left: {left}", clean, how)

    def table(self) -> str:
        """The report as Markdown."""
        lines = [
            f"# {TITLES[self.which]}",
            "",
            f"{self.model}, float32, {processor()}, {len(os.sched_getaffinity(0))} cores; "
            f"Python {platform.python_version()}. {self.minutes:.0f} minutes of measuring.",
            "",
        ]
        rows = self.rows()
        if rows:
            lines += ["| figure | goal | measured | met | of |", "| --- | --: | --: | --- | --- |"]
            for row in rows:
                met = {True: "yes", False: "**no**", None: ""}[row.met]
                lines.append(f"| {row.figure} | {row.goal} | {row.value} | {met} | {row.how} |")
            lines.append("")
        lines += [
            "| case | K, threshold | seconds | bytes/s | evaluations/s | evaluations per byte "
            "| tokens computed per byte | tokens cached per byte |",
            "| --- | --: | --: | --: | --: | --: | --: | --: |",
        ]
        lines += [self._line(case, figures) for case, figures in self.measured.items() if figures]
        name, notes = FILES[self.which], SCORE_NOTES if self.which == "scores" else NOTES
        lines += ["", notes, "", f"![Bytes per second]({name}.png)", ""]
        return "\n".join(lines)

    def _line(self, case: Case, figures: list[Figures]) -> str:
        def spread(figure: Callable[[Figures], float], digits: int = 1) -> str:
            try:
                values = [figure(one) for one in figures]
            except (KeyError, ZeroDivisionError):
                return ""
            middle = f"{statistics.median(values):,.{digits}f}"
            if len(values) == 1 or digits > 1:
                return middle
            return f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"

        def per_byte(name: str) -> Callable[[Figures], float]:
            return lambda one: float(one[name]) / float(one["bytes"])

        beam = (
            ""
            if case.side == "native" or self.which == "scores" or case.call in ("rounds", "leaks")
            else (f"{case.K}, {case.threshold:g}")
        )
        cells = [
            case.key + (" (extrapolated)" if self._is_extrapolated(case.key) else ""),
            beam,
            spread(lambda one: float(one["seconds"])),
            spread(rate) if any(one["bytes"] for one in figures) else "",
            spread(evaluation_rate),
            spread(per_byte("evaluations"), 3),
            spread(per_byte("tokens_computed"), 3),
            spread(per_byte("tokens_cached"), 3),
        ]
        return "| " + " | ".join(cells) + " |"

    def write(self, folder: Path) -> None:
        """Writes table, figures and plots."""
        folder.mkdir(parents=True, exist_ok=True)
        name = FILES[self.which]
        (folder / f"{name}.md").write_text(self.table())
        about: dict[str, Any] = {
            "model": self.model,
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "minutes": self.minutes,
            "goals": [asdict(row) for row in self.rows()],
            "cases": [
                {"key": case.key, "case": asdict(case), "repetitions": figures}
                for case, figures in self.measured.items()
            ],
        }
        (folder / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
        plotted = plot_sizes if self.which == "all" else plot_sides
        plotted(self.measured, folder / f"{name}.png")
        print(f"==> wrote {name}.md, .json and .png in {folder}", file=sys.stderr)


def plot_sides(measured: Measured, path: Path) -> None:
    """Draws bytes per second by side, and what genlm-bytes' extrapolations rest on."""
    pyplot = _pyplot()
    made = {case: figures for case, figures in measured.items() if figures}
    rated = {case: one for case, one in made.items() if one[0]["bytes"] and case.call != "prefill"}
    curves = {case: one[0] for case, one in made.items() if "curve" in one[0]}
    drawn = [bool(rated), bool(curves)]
    figure, panels = pyplot.subplots(
        1, sum(drawn), figsize=(6.5 * sum(drawn), 5), layout="constrained", squeeze=False
    )
    if rated:
        _draw_rates(panels[0, 0], rated)
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    if curves:
        _draw_curves(panels[0, -1], curves)
    for axes in panels.flat:
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_rates(axes: Any, rated: Measured) -> None:
    names = list(dict.fromkeys(case.name for case in rated))
    for number, side in enumerate(COLOURS):
        here = [case for case in rated if case.side == side]
        if not here:
            continue
        y = [names.index(case.name) + 0.19 * (number - 1.5) for case in here]
        values = [statistics.median(map(rate, rated[case])) for case in here]
        bars = axes.barh(y, values, 0.18, color=COLOURS[side], label=SIDES[side])
        axes.bar_label(bars, [f"{value:,.3g}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("bytes per second")


def _draw_curves(axes: Any, curves: Mapping[Case, Figures]) -> None:
    for (case, one), colour in zip(curves.items(), _more_colours(len(curves)), strict=True):
        n, seconds = zip(*one["curve"], strict=True)
        axes.plot(n, seconds, color=colour, linewidth=2.5, label=case.name)
        if "extrapolated" in one:
            a, b = one["extrapolated"]["a"], one["extrapolated"]["b"]
        else:
            a, b = fit(_first_seconds(one))
        end = case.prompt + (0 if case.call == "prefill" else case.steps)
        x = [end * i / 50 for i in range(1, 51)]
        axes.plot(x, [a * i + b * i * i for i in x], "--", color=colour, linewidth=1)
    axes.set_xlabel("bytes walked in each session")
    axes.set_ylabel("seconds")
    axes.set_title(
        f"genlm-bytes: measured, and a·n + b·n² from the first {GENLM_SECONDS:g} s (dashed)",
        fontsize=10,
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.1)
    axes.legend(fontsize=8)


def _first_seconds(figures: Figures) -> list[tuple[float, float]]:
    """What a run that is stopped would have shown of one that went on to the end."""
    return [(n, seconds) for n, seconds in figures["curve"] if seconds <= GENLM_SECONDS]


def plot_sizes(measured: Measured, path: Path) -> None:
    """Draws bytes per second against sessions, a panel for each call."""
    pyplot = _pyplot()
    calls = list(dict.fromkeys(case.call for case in measured))
    figure, panels = pyplot.subplots(
        1, len(calls), figsize=(4 * len(calls), 4), layout="constrained", squeeze=False
    )
    for call, panel in zip(calls, panels.flat, strict=True):
        lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
        for case, figures in measured.items():
            if case.call == call and figures:
                value = statistics.median(map(rate, figures))
                lines.setdefault((case.side, case.prompt), []).append((case.sessions, value))
        for (side, prompt), points in lines.items():
            style = "o-" if prompt <= 60 else "s--"
            label = f"{SIDES[side]}, {prompt:,} bytes"
            panel.plot(*zip(*points, strict=True), style, color=COLOURS[side], label=label)
        panel.set_title(call)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        counts = sorted({case.sessions for case in measured if case.call == call})
        panel.set_xticks(counts, [str(count) for count in counts])
        for formatter in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            formatter("{x:g}")
        panel.tick_params(axis="y", which="minor", labelsize=7)
        panel.set_xlabel("sessions")
        panel.grid(alpha=0.25)
    panels.flat[0].set_ylabel("bytes per second")
    panels.flat[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _more_colours(count: int) -> list[str]:
    colours = ["#b8336a", "#d98a1f", "#1b6ca8", "#2a9d6f", "#6b4fa0"]
    return [colours[i % len(colours)] for i in range(count)]


SIDES = {
    "bytelm": "bytelm",
    "http": "bytelm over HTTP",
    "native": "vLLM's own decoding",
    "genlm": "genlm-bytes",
}
COLOURS = {"bytelm": "#1b6ca8", "http": "#7fb3d8", "native": "#555555", "genlm": "#d98a1f"}
FILES = {"main": "bench", "peers": "bench_peers", "all": "bench_all", "scores": "bench_scores"}
TITLES = {
    "main": "bytelm against genlm-bytes and against the limit",
    "peers": "genlm-bytes to the end",
    "all": "bytelm in all sizes",
    "scores": "Known texts in waves, beside their walk and others",
}
NOTES = """\
Cases are named side/call-sessions×bytes of each prompt; 256 bytes are made after each, which EOS
never ends: no side may choose it, so that all sessions have the same work. Rates run from
submission to the last byte, prefill included. Medians, with the least and the most of the
repetitions; before each of them all caches were cleared, after one discarded warm-up on other
prompts. Evaluations of `native` are tokens."""
SCORE_NOTES = """\
Cases are named side/call-texts×bytes of each-tokenizations, `walk` where the same work was done one
evaluation after another, on the same engine. All with the server's default beam, genlm-bytes with
K=5 and 0.05; `native` is vLLM's own prompt_logprobs of the canonical tokens, `continuations` of one
context, `choices` four to each context. Medians, with the least and the most of the repetitions;
before each of them all caches were cleared, after one discarded warm-up on other texts."""
