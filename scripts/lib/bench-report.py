#!/usr/bin/python3
"""The telling half of scripts/bench: samples to medians, ratios to rublk loop, a table, JSON and a plot.

Ratios are taken within each round, between runs that followed each other closely, and then their median and their spread:
a machine that gets slower in the middle spoils the figures, but hardly the ratios. Ends with 1 if a bar is missed.
"""

import argparse
import json
import os
import sys
from collections import defaultdict

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bench_cost import INTENT_WORDS, LATENCY_WORDS, Intent, crash_bars, crash_table, intent_table, open_bars, open_table  # noqa: E402
from bench_figures import median, number, paired, rounded, spread, with_spread  # noqa: E402
from bench_plot import plot  # noqa: E402

SYSTEMS = {
    "raw": "raw primary",
    "rublk": "rublk loop",
    "tracking": "tracking only (paused)",
    "sync": "in sync, drain running",
    "increments": "increments back to back",
    "md": "md raid1, write-behind",
    "drbd": "DRBD, protocol A",
}
FIGURES = ("iops", "mib_s", "lat_us_p50", "lat_us_p99", "cpu_us_per_io", "server_cpu_us_per_io")
IOPS_BAR, CPU_BAR, DRAIN_BAR = 0.97, 1.05, 0.9
# Microseconds by which the hold of the largest volume may be longer than that of the smallest. It has 65,536 times the
# tracks: whatever looked at each of them would take seconds.
FLAT_BAR = 1000


def rows_of(samples):
    """One row per system and profile: medians, ratios to rublk in the same round, and the spread of both."""
    profiles = list(dict.fromkeys(sample["profile"] for sample in samples))
    runs = defaultdict(dict)
    for sample in samples:
        runs[sample["system"], sample["profile"]][sample["round"]] = sample
    order = list(SYSTEMS)
    rows = []
    for (system, profile), rounds in sorted(runs.items(), key=lambda item: (profiles.index(item[0][1]), order.index(item[0][0]))):
        row = {"system": system, "profile": profile, "jobs": jobs_of(profile)}
        row.update({name: median([run.get(name) for run in rounds.values()]) for name in FIGURES})
        row["runs"] = len(rounds)
        row["spread"] = {name: spread([run.get(name) for run in rounds.values()]) for name in FIGURES}
        for name, key in (("iops_ratio", "iops"), ("cpu_ratio", "cpu_us_per_io")):
            ratios = paired(rounds, runs.get(("rublk", profile), {}), key)
            row[name], row["spread"][name] = median(ratios), spread(ratios)
        rows.append({key: rounded(value) for key, value in row.items()})
    return rows


def jobs_of(profile):
    return 2 if profile.endswith("-2jobs") else 1


def bars_of(rows, holds, drains):
    """Every bar as (what, figure, whether it holds)."""
    bars = []
    for row in rows:
        if row["system"] != "tracking":
            continue
        if row["iops_ratio"] is not None:
            bars.append((f"{row['profile']}: IOPS against rublk loop, at least {IOPS_BAR}", row["iops_ratio"],
                         row["iops_ratio"] >= IOPS_BAR))
        if row["cpu_ratio"] is not None:
            bars.append((f"{row['profile']}: CPU per I/O against rublk loop, at most {CPU_BAR}", row["cpu_ratio"],
                         row["cpu_ratio"] <= CPU_BAR))
    if len(holds) > 1:
        first, last = list(holds)[0], list(holds)[-1]
        more = holds[last]["start_us"] - holds[first]["start_us"]
        bars.append((f"hold of {last} less that of {first}, us, at most {FLAT_BAR}", more, more <= FLAT_BAR))
    if drains:
        bars.append((f"drain rate against the faster plain copy, at least {DRAIN_BAR}", drains["ratio"],
                     drains["ratio"] >= DRAIN_BAR))
    return bars


def holds_of(samples):
    """Per size: the median and spread over all cuts of all rounds."""
    cuts = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        for key in ("start_us", "run_us"):
            cuts[sample["size"]][key] += sample[key]
    return {size: {"cuts": len(times["start_us"]), "start_us": median(times["start_us"]), "start_spread": spread(times["start_us"]),
                   "run_us": median(times["run_us"]), "run_spread": spread(times["run_us"])} for size, times in cuts.items()}


def drains_of(samples):
    """The drain's rate, and its ratio to the faster of the two plain copies of the same round."""
    if not samples:
        return None
    ratios = [sample["drain"] / max(sample["dd"], sample["parallel"]) for sample in samples]
    rates = {way: median([sample[way] for sample in samples]) for way in ("drain", "dd", "parallel")}
    return {**rates, "ratio": median(ratios), "spread": spread(ratios), "runs": len(samples)}


def io_table(rows):
    lines = ["| Profile | System | IOPS | MiB/s | p50 us | p99 us | CPU us per I/O | server's | IOPS / rublk | CPU / rublk |",
             "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    last = None
    for row in rows:
        profile = row["profile"] if row["profile"] != last else ""
        last = row["profile"]
        # The raw device has no server.
        server = row["server_cpu_us_per_io"] if row["system"] != "raw" else None
        lines.append(f"| {profile} | {SYSTEMS[row['system']]} | {number(row['iops'])} | {number(row['mib_s'])} "
                     f"| {number(row['lat_us_p50'])} | {number(row['lat_us_p99'])} | {number(row['cpu_us_per_io'], 1)} "
                     f"| {number(server, 1)} | {with_spread(row['iops_ratio'], row['spread']['iops_ratio'])} "
                     f"| {with_spread(row['cpu_ratio'], row['spread']['cpu_ratio'])} |")
    return lines


def increments_lines(samples):
    runs = [sample for sample in samples if sample["system"] == "increments"]
    if not runs:
        return []
    holds = [hold for run in runs for hold in run["hold_us"]]
    return ["", f"Increments back to back: {sum(run['increments'] for run in runs)} completed in {len(runs)} runs, "
            f"{number(sum(run['drained_mib'] for run in runs))} MiB drained, "
            f"{number(sum(run['collisions'] for run in runs))} collisions; "
            f"hold {number(median(holds))} us (median), {number(max(holds, default=None))} us (longest)."]


def other_tables(holds, drains):
    lines = []
    if holds:
        lines += ["", "| Volume | cuts | hold until `start` answers, us | hold with `run` sent at once, us |", "|---|--:|--:|--:|"]
        for size, hold in holds.items():
            times = [with_spread(hold[f"{what}_us"], hold[f"{what}_spread"], 0) for what in ("start", "run")]
            lines.append(f"| {size} | {hold['cuts']} | {' | '.join(times)} |")
    if drains:
        lines += ["", f"Drain of a whole volume out of sync: {number(drains['drain'])} MiB/s. Plain copies of the same devices, 1 MiB "
                  f"direct: dd {number(drains['dd'])} MiB/s, 16 threads {number(drains['parallel'])} MiB/s. Ratio to the faster one of "
                  f"the same round: {with_spread(drains['ratio'], drains['spread'])}, {drains['runs']} runs."]
    return lines


def bar_table(bars):
    lines = ["", "| Bar | Figure | |", "|---|--:|---|"]
    return lines + [f"| {what} | {figure:.3f} | {'pass' if held else '**FAIL**'} |" for what, figure, held in bars]


def machine_lines(machine, host, end):
    load = end.get("load", ["-"])
    words = {
        "Source": host.get("commit"),
        "Machine": f"{host.get('place')}; {host.get('cpu')}, {host.get('processors')} processors, {host.get('memory_mib')} MiB,"
                   f" Linux {host.get('kernel')}",
        "Measured on": f"{machine['cpu']}, {machine['processors']} processors, {machine['memory_mib']} MiB, Linux {machine['kernel']}",
        "Load average of the machine": f"{host.get('load_before')} before, {host.get('load_after')} after;"
                                       f" where measured, {' '.join(load)} at the end",
        "Versions": ", ".join(str(machine[name]) for name in ("farpoint", "rublk", "fio")) + (
            f", {host['qemu']}" if host.get("qemu") else ""),
        "Devices": f"ram disks (brd) of {machine['ram_disk_mib']} MiB, null_blk for the latency part; {machine['queues']} queue(s) of depth {machine['depth']}"
                   f" for rublk and farpoint; {machine['affinity']}",
        "Runs": f"{machine['rounds']} rounds of {machine['seconds']} s after {machine['ramp']} s,"
                f" {end.get('seconds', 0) / 60:.0f} minutes in all",
    }
    return ["", "| | |", "|---|---|"] + [f"| {key} | {value} |" for key, value in words.items()]


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", help="the file that bench-run.py wrote")
    parser.add_argument("--name", action="store_true", help="only print the name that the results should have")
    parser.add_argument("--host", help="JSON object that describes the machine")
    parser.add_argument("--out", help="path of the results, without what is behind the dot")
    parser.add_argument("--json", help="one more place for the rows")
    return parser.parse_args()


def load(path):
    kinds = defaultdict(list)
    with open(path, encoding="ascii") as file:
        for line in file:
            sample = json.loads(line)
            kinds[sample.pop("kind")].append(sample)
    return kinds


def write_json(path, rows):
    with open(path, "w", encoding="ascii") as file:
        file.write("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def name_of(machine):
    """For example linux-6.12-tcg-1q: the name of a result says what it may be compared with."""
    kernel = "linux-" + ".".join(machine["kernel"].split(".")[:2])
    accelerator = ["tcg"] if "TCG" in machine["cpu"] else []
    return "-".join([kernel, *accelerator, f"{machine['queues']}q"])


def main():
    options = parse()
    kinds = load(options.samples)
    if options.name:
        print(name_of(kinds["machine"][0]))
        return 0
    host = json.loads(options.host)
    rows, intent, latency = rows_of(kinds["io"]), Intent(kinds["intent"]), Intent(kinds["latency"])
    intent_rows = [intent.complete(row) for row in rows_of(kinds["intent"])]
    latency_rows = [{"part": "latency", **latency.complete(row)} for row in rows_of(kinds["latency"])]
    holds, drains = holds_of(kinds["hold"]), drains_of(kinds["drain"])
    bars = bars_of(rows, holds, drains) + intent.own_bars() + intent.peer_bars() + latency.peer_bars(" on slow disks")
    bars += open_bars(kinds["open"]) + crash_bars(kinds["crash"])
    machine, end = kinds["machine"][0], (kinds["end"] or [{}])[0]
    table = (io_table(rows) + increments_lines(kinds["io"]) if rows else [])
    table += intent_table(INTENT_WORDS, intent_rows, SYSTEMS) + intent_table(LATENCY_WORDS, latency_rows, SYSTEMS)
    table += other_tables(holds, drains) + open_table(kinds["open"]) + crash_table(kinds["crash"]) + bar_table(bars)
    text = "\n".join(table + machine_lines(machine, host, end)) + "\n"
    print(text)
    title = os.path.basename(options.out)
    with open(options.out + ".md", "w", encoding="ascii") as file:
        file.write(f"# scripts/bench: {title}\n\n"
                   "Medians; in brackets the smallest and the largest of all rounds. Ratios are taken within each round.\n"
                   f"Every row is in `{title}.json`, every run in `{title}.jsonl`.\n\n" + (f"![ratios]({title}.svg)\n\n" if rows else "") + text)
    for path in filter(None, (options.out + ".json", options.json)):
        write_json(path, rows + intent_rows + latency_rows)
    cold = [row for row in intent_rows if "cold_ratio" in row and row["cold_ratio"] is not None]
    if rows:
        with open(options.out + ".svg", "w", encoding="ascii") as file:
            file.write(plot(rows, cold, machine, host))
    missed = [what for what, _, held in bars if not held]
    print(f"{len(bars) - len(missed)} of {len(bars)} bars held." + "".join(f"\n  missed: {what}" for what in missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
