"""The plot of scripts/bench: grouped bars of the ratio to rublk loop, as SVG, with nothing but text formatting."""

from html import escape

WIDTH, LEFT, RIGHT = 1180, 70, 20
PANEL, GAP, TOP, BOTTOM = 300, 60, 124, 80
SHOWN = {
    "tracking": ("farpoint, tracking only", "#1f5fbf"),
    "sync": ("farpoint, in sync with the drain running", "#2a9d8f"),
    "increments": ("farpoint, increments back to back", "#e9a23b"),
}
COLD_SHOWN = {
    "rublk": ("rublk loop (marks nothing)", "#8a94a3"),
    "tracking": SHOWN["tracking"],
    "sync": ("farpoint, in sync", SHOWN["sync"][1]),
    "md": ("md write-behind", "#7b4fa6"),
    "drbd": ("DRBD protocol A", "#b5651d"),
}
INK, FAINT, BAR_LINE = "#1b1f24", "#d5dae1", "#c92a2a"


def words(profile):
    """The two lines below a group: randwrite-4k-qd32-2jobs is a 4 KiB write, random, depth 32, 2 jobs."""
    kind, size, depth, *more = profile.split("-")
    order, what = ("random", kind[4:]) if kind.startswith("rand") else ("sequential", kind[3:])
    first = f"{size.replace('k', ' KiB')} {what}"
    return first, ", ".join([order, depth.replace("qd", "depth "), *(word.replace("jobs", " jobs") for word in more)])


def text(x, y, content, size=13, anchor="middle", color=INK, weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}" '
            f'font-weight="{weight}">{escape(content)}</text>')


def line(x1, y1, x2, y2, color, width=1.0, dash=""):
    extra = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"{extra}/>'


def thousands(value):
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


class Panel:
    """One set of axes: a ratio per profile and system. `barred`: the profiles that the bar is for, all unless given."""

    def __init__(self, top, title, ratio, bar, below, highest, shown=None, barred=None):
        self.top, self.title, self.ratio, self.bar, self.below, self.highest = top, title, ratio, bar, below, highest
        self.shown, self.barred = shown or SHOWN, barred

    def y(self, value):
        return self.top + PANEL * (1 - min(value, self.highest) / self.highest)

    def axes(self):
        out = [text(LEFT, self.top - 12, self.title, 16, "start", weight="bold")]
        for step in range(7):
            value = step * self.highest / 6
            out.append(line(LEFT, self.y(value), WIDTH - RIGHT, self.y(value), FAINT))
            out.append(text(LEFT - 8, self.y(value) + 4, f"{value:.2f}", 12, "end"))
        out.append(line(LEFT, self.y(1), WIDTH - RIGHT, self.y(1), INK, 1.4))
        return out

    def bar_line(self):
        limit = "at least" if self.below else "at most"
        return [line(LEFT, self.y(self.bar), WIDTH - RIGHT, self.y(self.bar), BAR_LINE, 1.6, "7 4"),
                text(WIDTH - RIGHT, self.top - 12, f"dashed: bar for tracking only{self.where()}, {limit} {self.bar}", 13, "end", BAR_LINE)]

    def where(self):
        orders = [words(profile)[1].partition(",")[0] for profile in self.barred or []]
        return "".join(f", {order}" for order in orders)

    def column(self, row, x, width, color):
        value, (low, high) = row[self.ratio], row["spread"][self.ratio]
        out = [f'<rect x="{x:.1f}" y="{self.y(value):.1f}" width="{width:.1f}" height="{self.y(0) - self.y(value):.1f}" '
               f'fill="{color}"/>']
        middle = x + width / 2
        out.append(line(middle, self.y(low), middle, self.y(high), INK, 1.4))
        out += [line(middle - 5, self.y(end), middle + 5, self.y(end), INK, 1.4) for end in (low, high) if end <= self.highest]
        barred = row["system"] == "tracking" and (self.barred is None or row["profile"] in self.barred)
        missed = barred and (value < self.bar if self.below else value > self.bar)
        if missed:
            out.append(f'<rect x="{x:.1f}" y="{self.y(0) - 24:.1f}" width="{width:.1f}" height="24" fill="{BAR_LINE}"/>')
        fits = self.y(0) - self.y(value) > 26
        out.append(text(middle, self.y(0) - 8 if fits else self.y(high) - 6, f"{value:.2f}", 13, color="#ffffff" if fits else INK,
                        weight="bold"))
        return out


def group(panel, rows, profile, x, width):
    out = []
    shown = [system for system in panel.shown if (system, profile) in rows and rows[system, profile][panel.ratio] is not None]
    column = width * 0.78 / max(len(shown), 1)
    for place, system in enumerate(shown):
        out += panel.column(rows[system, profile], x + width * 0.11 + place * column, column * 0.88, panel.shown[system][1])
    return out


def labels(rows, profile, middle, y, key, unit):
    first, second = words(profile)
    out = [text(middle, y + 18, first, 13, weight="bold"), text(middle, y + 34, second, 13)]
    base, raw = rows.get(("rublk", profile)), rows.get(("raw", profile))
    if base and base[key]:
        out.append(text(middle, y + 52, f"rublk loop: {thousands(base[key])} {unit}", 12, color="#57606a"))
        if raw and raw[key]:
            out.append(text(middle, y + 68, f"raw primary: {raw[key] / base[key]:.2g}x", 12, color="#57606a"))
    return out


def legend(y, shown):
    out, x = [], LEFT
    for title, color in shown.values():
        out.append(f'<rect x="{x}" y="{y - 11}" width="14" height="14" fill="{color}"/>')
        out.append(text(x + 20, y + 1, title, 13, "start"))
        x += 40 + 7.2 * len(title)
    return out


def drawn(panel, rows, key, unit):
    """A panel with a group for each profile that the rows have."""
    by_key = {(row["system"], row["profile"]): row for row in rows}
    profiles = list(dict.fromkeys(row["profile"] for row in rows))
    out, width = panel.axes(), (WIDTH - LEFT - RIGHT) / len(profiles)
    for place, profile in enumerate(profiles):
        x = LEFT + place * width
        out += group(panel, by_key, profile, x, width)
        out += labels(by_key, profile, x + width / 2, panel.y(0), key, unit)
    return out + panel.bar_line()


def cold_panel(top, rows):
    """Cold writes beside hot ones: systems of its own, so a legend of its own."""
    sequential = [profile for profile in dict.fromkeys(row["profile"] for row in rows) if profile.startswith("seq")]
    title = "IOPS of cold writes compared with hot ones (more is better)"
    panel = Panel(top, title, "cold_ratio", 0.95, True, 1.5, COLD_SHOWN, sequential)
    return legend(top - 36, COLD_SHOWN) + drawn(panel, rows, "iops", "IOPS")


def plot(rows, cold, machine, host):
    """The whole picture, from the rows of the table; `cold` are those of the cold profiles."""
    second = TOP + PANEL + BOTTOM + GAP
    third = second + PANEL + BOTTOM + GAP + 30
    height = (third if cold else second) + PANEL + BOTTOM + 10
    iops = Panel(TOP, "IOPS compared with rublk loop (more is better)", "iops_ratio", 0.97, True, 1.5)
    cpu = Panel(second, "CPU time per I/O compared with rublk loop (less is better)", "cpu_ratio", 1.05, False, 3)
    where = f"{machine['cpu']}, {machine['processors']} processors, Linux {machine['kernel']}, {host.get('place')}"
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
           'font-family="DejaVu Sans, Helvetica, Arial, sans-serif">', f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
           text(LEFT, 28, "farpoint beside a plain ublk loop target, on the same ram disk", 20, "start", weight="bold"),
           text(LEFT, 48, where, 12, "start", "#57606a"),
           text(WIDTH - RIGHT, 48, "bars: median of the rounds; whiskers: smallest and largest", 12, "end", "#57606a")]
    out += legend(76, SHOWN) + drawn(iops, rows, "iops", "IOPS") + drawn(cpu, rows, "cpu_us_per_io", "us")
    out += cold_panel(third, cold) if cold else []
    return "\n".join(out + ["</svg>"]) + "\n"
