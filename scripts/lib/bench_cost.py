"""What durable intent costs, as scripts/bench tells it: cold writes beside hot ones, opening, what a crash has copied again."""

import statistics
from collections import defaultdict

from bench_crash import HOT_MAX, REGION_BYTES
from bench_figures import PASSES, median, number, paired, rounded, spread, with_spread

HOT, COLD = "-hot", "-cold"
RANDOM, SEQUENTIAL = "randwrite-4k-qd32", "seqwrite-128k-qd8"
HOT_BAR, SEQUENTIAL_BAR, PEER_BAR, OPEN_BAR_US = 0.97, 0.95, 1.0, 1_000_000
FARPOINT, PEERS = ("tracking", "sync"), ("md", "drbd")


class Intent:
    """The samples of the intent part, and what follows from comparing them within their rounds."""

    def __init__(self, samples):
        self.runs = defaultdict(dict)
        for sample in samples:
            self.runs[sample["system"], sample["profile"]][sample["round"]] = sample

    def cold_ratios(self, system, profile):
        """Cold IOPS to the same system's hot IOPS, by turn: the geometric mean over its passes."""
        hot, cold, turns = self.runs[system, profile + HOT], self.runs[system, profile + COLD], defaultdict(list)
        for at in cold:
            if at in hot:
                turns[at // PASSES].append(cold[at]["iops"] / hot[at]["iops"])
        return {turn: statistics.geometric_mean(ratios) for turn, ratios in turns.items()}

    def complete(self, row):
        """Adds to a row of a cold profile its ratio to the hot one, and how many regions were marked for each write."""
        if not row["profile"].endswith(COLD):
            return row
        ratios = list(self.cold_ratios(row["system"], row["profile"].removesuffix(COLD)).values())
        marked = [run["marked"] / run["ios"] for run in self.runs[row["system"], row["profile"]].values()]
        more = {"cold_ratio": median(ratios), "marked_per_io": median(marked)}
        spreads = {**row["spread"], "cold_ratio": spread(ratios), "marked_per_io": spread(marked)}
        return rounded({**row, **more, "spread": spreads})

    def own_bars(self):
        bars = []
        for profile in (RANDOM, SEQUENTIAL):
            ratios = paired(self.runs["tracking", profile + HOT], self.runs["rublk", profile + HOT], "iops")
            bars.append((f"{profile}{HOT}: IOPS against rublk loop, at least {HOT_BAR}", median(ratios), HOT_BAR))
        cold = median(self.cold_ratios("tracking", SEQUENTIAL).values())
        bars.append((f"{SEQUENTIAL}{COLD}: IOPS against its own hot writes, at least {SEQUENTIAL_BAR}", cold, SEQUENTIAL_BAR))
        return judged(bars)

    def peer_bars(self, where=""):
        bars = []
        for system in FARPOINT:
            for peer in PEERS:
                ours, theirs = self.cold_ratios(system, RANDOM), self.cold_ratios(peer, RANDOM)
                ratios = [ours[at] / theirs[at] for at in ours if at in theirs]
                what = f"{RANDOM}{COLD}{where}, {system}: share of its own hot IOPS against that of {peer}, at least {PEER_BAR:.0f}"
                bars.append((what, median(ratios), PEER_BAR))
        return judged(bars)


def judged(bars):
    return [(what, figure, figure >= bar) for what, figure, bar in bars if figure is not None]


INTENT_WORDS = """Intent: writes to regions that have to be marked on media first (cold), and to those that are marked (hot). A turn
runs the sequential two twice, as two rounds; of their ratios the geometric mean counts."""
LATENCY_WORDS = """Latency: the random two again, 16,384 writes each, on disks that take a millisecond for each read and write, however
many are under way, and need no flush (null_blk), all of them alike. A cold write waits for one of the metadata before its own."""


def intent_table(words, rows, names):
    lines = ["", words, "",
             "| Profile | System | IOPS | MiB/s | p50 us | p99 us | CPU us per I/O | marked per write | IOPS / rublk | cold / hot |",
             "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    last = None
    for row in rows:
        profile = row["profile"] if row["profile"] != last else ""
        last = row["profile"]
        spreads = row["spread"]
        cold = with_spread(row["cold_ratio"], spreads["cold_ratio"]) if "cold_ratio" in row else ""
        marked = number(row["marked_per_io"], 2) if "cold_ratio" in row else ""
        lines.append(f"| {profile} | {names[row['system']]} | {number(row['iops'])} | {number(row['mib_s'])} "
                     f"| {number(row['lat_us_p50'])} | {number(row['lat_us_p99'])} | {number(row['cpu_us_per_io'], 1)} | {marked} "
                     f"| {with_spread(row['iops_ratio'], spreads['iops_ratio'])} | {cold} |")
    return lines if rows else []


def grouped(samples, *keys):
    groups = defaultdict(list)
    for sample in samples:
        groups[tuple(sample[key] for key in keys)].append(sample)
    return groups


def summary(samples, key, scale=1):
    values = [sample[key] / scale for sample in samples]
    return median(values), spread(values)


def open_table(samples):
    if not samples:
        return []
    lines = ["", "Opening sparse volumes. *Seen*: the call of `up`, or from the start of the next daemon until the volume is served.",
             "", "| Volume | stopped | opens | open, ms | of it reading metadata, ms | seen, ms | regions recovered |",
             "|---|---|--:|--:|--:|--:|--:|"]
    for (size, stop), group in grouped(samples, "size", "stop").items():
        times = [with_spread(*summary(group, key, 1000), 1) for key in ("open_us", "metadata_us", "seen_us")]
        recovered = with_spread(*summary(group, "recovered_regions"), 0)
        lines.append(f"| {size} | {stop} | {len(group)} | {' | '.join(times)} | {recovered} |")
    return lines


def open_bars(samples):
    bars = []
    for (size, stop), group in grouped(samples, "size", "stop").items():
        took = summary(group, "seen_us")[0]
        bars.append((f"opening {size}, {stop}, us until it is served, at most {OPEN_BAR_US}", took, took <= OPEN_BAR_US))
    return bars


def bound_mib(sample):
    """Regions that may be hot without anything out of sync, and those with something out of sync or in flight at the kill."""
    return (HOT_MAX + sample["out_of_sync_tracks"]) * REGION_BYTES >> 20


def crash_table(samples):
    if not samples:
        return []
    lines = ["", "Copied again after kill -9 under load that the drain follows. The bound: 1,024 regions of 4 MiB, and those that were "
             "out of sync or in flight when the daemon died.", "",
             "| Load | kills | written before, MiB | hot regions | copied again, MiB | bound, MiB |", "|---|--:|--:|--:|--:|--:|"]
    for (load,), group in grouped(samples, "load").items():
        bounds = [bound_mib(sample) for sample in group]
        figures = [with_spread(*summary(group, key), 0) for key in ("written_mib", "hot", "recovered_mib")]
        lines.append(f"| {load} | {len(group)} | {' | '.join(figures)} | {with_spread(median(bounds), spread(bounds), 0)} |")
    return lines


def crash_bars(samples):
    bars = []
    for (load,), group in grouped(samples, "load").items():
        worst = max(sample["recovered_mib"] / bound_mib(sample) for sample in group)
        bars.append((f"copied again after kill -9 under {load} load, worst case against its bound, at most 1", worst, worst <= 1))
    return bars
