"""The sweep as one SVG: a column for each environment, a panel for each property, size along the bottom.

Knows rows as `sweep.py` makes them, and nothing of how they came about.
"""

import math
from html import escape

COLUMN, PANEL, LEFT, TOP = 372, 92, 62, 46
GAP = 16
INK, SOFT, GRID, REFERENCE = "#1c2733", "#5b6875", "#e3e7ec", "#7a8794"
COLOURS = {"pass": "#1f7a4d", "fail": "#b3261e", "inconclusive": "#a06a00"}
MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?"}


def share(key):
    return lambda row: row[key]


def horizon(at):
    return lambda row: [it for it in row["fidelity"] if it][at]


def divergence(row):
    compared = row.get("compare")
    if compared is None:
        return None
    value, error = compared["kl_mean"], compared["kl_mean_error"] or 0.0
    return {"value": value, "low": max(value - 1.96 * error, 0.5 * value), "high": value + 1.96 * error}


# Name, what to draw, the gate whose limits are drawn, whether more is worse.
PANELS = [
    ("success, %", share("success"), ("G1", 0), False),
    ("Brier score", share("brier"), ("G2", 0), True),
    ("AUROC", share("auroc"), ("G4", 0), False),
    ("fidelity, first step, %", horizon(0), ("G5", 0), False),
    ("fidelity, last step, %", horizon(-1), ("G5", 1), False),
    ("KL divergence, nats", divergence, None, True),
]


class Panel:
    def __init__(self, x, y, values, limits, logarithmic):
        ends = [it for value in values for it in (value["low"], value["high"])] + limits
        self.logarithmic = logarithmic
        low, high = min(ends), max(ends)
        if logarithmic:
            low, high = math.log10(low), math.log10(high)
        margin = 0.08 * (high - low) or 0.01
        self.low, self.high, self.x, self.y = low - margin, high + margin, x, y

    def at(self, value):
        value = math.log10(value) if self.logarithmic else value
        return self.y + PANEL - GAP - (value - self.low) / (self.high - self.low) * (PANEL - GAP)

    def ticks(self):
        if self.logarithmic:
            return [10.0 ** it for it in range(math.ceil(self.low), math.floor(self.high) + 1)]
        step = next(it for it in (0.01, 0.02, 0.05, 0.1, 0.2) if (self.high - self.low) / it <= 4.2)
        return [it * step for it in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def text(x, y, words, anchor="middle", size=11, colour=INK, more=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{more}>'
            f"{escape(words)}</text>")


def line(x1, y1, x2, y2, colour, width=1.0, dashes=""):
    dashes = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"{dashes}/>')


def shown(value, name):
    if name.endswith("%"):
        return f"{100 * value:.0f}"
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")


def places(sizes, left, right):
    """Where each size lies, on a logarithmic axis that shrinks to the right."""
    low, high = math.log(min(sizes)), math.log(max(sizes))
    return [left + 14 + (high - math.log(it)) / (high - low) * (right - left - 28) for it in sizes]


def spread(xs, apart, right):
    """The places of labels: those of their points, moved so far that none covers another."""
    moved = list(xs)
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + apart)
    over = max(0.0, moved[-1] - right)
    moved[-1] -= over
    for index in range(len(moved) - 2, -1, -1):
        moved[index] = min(moved[index], moved[index + 1] - apart)
    return moved


def limits_of(rows, gate, worse_is_more, reference):
    """Where the limits of both profiles lie, by profile."""
    found = {}
    for profile, run in rows[-1]["gates"].items():
        of = [it for it in run["gates"] if it["id"] == gate[0]][gate[1]]
        found[profile] = reference + (of["limit"] if worse_is_more else -of["limit"])
    return found


def panel(kind, rows, xs, x, y, reference_name):
    name, pick, gate, worse_is_more = kind
    values = [pick(it) for it in rows]
    reference = next(pick(it) for it in rows if it["format"] == reference_name)
    limits = limits_of(rows, gate, worse_is_more, reference["value"]) if gate else {}
    area = Panel(x, y, [it for it in values if it], list(limits.values()), gate is None)
    right = x + COLUMN - LEFT - 14
    out = [text(x, y - 3, name, "start", 11, INK, ' font-weight="600"')]
    for tick in area.ticks():
        out += [line(x, area.at(tick), right, area.at(tick), GRID), text(x - 6, area.at(tick) + 4, shown(tick, name),
                                                                         "end", 10, SOFT)]
    if reference:
        out.append(line(x, area.at(reference["value"]), right, area.at(reference["value"]), REFERENCE, 1, "5 3"))
    for profile, limit in limits.items():
        out += [line(x, area.at(limit), right, area.at(limit), COLOURS["fail"], 0.8, "1.5 2.5"),
                text(right + 2, area.at(limit) + 3, profile.removesuffix("-bit"), "start", 8, COLOURS["fail"])]
    for row, value, at in zip(rows, values, xs):
        if value is None:
            continue
        out.append(line(at, area.at(value["low"]), at, area.at(value["high"]), "#2f6fb0", 1.4))
        out.append(f'<circle cx="{at:.1f}" cy="{area.at(value["value"]):.1f}" r="3.2" fill="#2f6fb0"><title>'
                   f'{escape(row["format"])}: {value["value"]:.4g}</title></circle>')
    return out


def column(rows, world, x, reference):
    right = x + COLUMN - LEFT - 14
    xs = places([it["file_bytes"] for it in rows], x, right)
    out = [text(x, 20, world, "start", 14, INK, ' font-weight="600"')]
    for index, kind in enumerate(PANELS):
        out += panel(kind, rows, xs, x, TOP + index * (PANEL + 8), reference)
    bottom = TOP + len(PANELS) * (PANEL + 8) - 20
    labels = spread(xs, 26, right + 6)
    for row, at, label in zip(rows, xs, labels):
        out.append(line(at, bottom, label, bottom + 12, REFERENCE, 0.8))
        words = f"{row['format']}  {row['file_bytes'] / 1e6:.2f} MB"
        out.append(text(0, 0, words, "end", 10, INK, f' transform="translate({label + 3:.1f} {bottom + 16:.1f}) '
                        f'rotate(-60)"'))
        for place, run in enumerate(row.get("gates", {}).values()):
            out.append(text(label - 38, bottom + 112 + 17 * place, MARKS[run["verdict"]], "middle", 13,
                            COLOURS[run["verdict"]], ' font-weight="700"'))
    for place, profile in enumerate(rows[-1]["gates"]):
        out.append(text(x - 56, bottom + 112 + 17 * place, f"{profile} gates", "start", 10, SOFT))
    return out


def drawn(rows, worlds, reference):
    """The whole picture; every row has the same keys as in `sweep.json`."""
    height = TOP + len(PANELS) * (PANEL + 8) + 150
    width = LEFT + len(worlds) * COLUMN + 10
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'font-family="system-ui, sans-serif" role="img">', "<title>Foresight by size of the file</title>",
           f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    for index, world in enumerate(worlds):
        here = sorted((it for it in rows if it["environment"] == world), key=lambda it: -it["file_bytes"])
        out += column(here, world, LEFT + index * COLUMN, reference)
    out.append(text(8, height - 10, f"Bars: 95 % intervals of each file by itself; gates know differences better, by "
                    f"pairs. Dashed: {reference}. Dotted: limits of the profiles for 8 and 4 bits.", "start", 10, SOFT))
    return "\n".join([*out, "</svg>"]) + "\n"
