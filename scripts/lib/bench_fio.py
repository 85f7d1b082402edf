"""One run of one profile of fio: its figures, with the CPU time of the time that fio measured and of nothing else."""

import json
import os
import subprocess
import time

from bench_host import cpu_seconds, process_cpu_seconds

TICK = 0.2


def job_file(bench, profile, given):
    """The profile with this run's times, and what else is given, in place of its own."""
    with open(os.path.join(bench.options.profile_dir, profile + ".fio"), encoding="ascii") as file:
        lines = file.read().splitlines()
    given = {"ramp_time": bench.options.ramp, "runtime": bench.options.seconds, **given}
    lines = [f"{key}={given[key]}" if (key := line.partition("=")[0]) in given else line for line in lines]
    path = os.path.join(bench.work, profile + ".fio")
    with open(path, "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
    return path


def watch(process, pids):
    """Notes the time, the system's and the servers' CPU time until the process ends."""
    notes = []
    while process.poll() is None:
        notes.append((time.time(), cpu_seconds(), [process_cpu_seconds(pid) for pid in pids]))
        try:
            process.wait(TICK)
        except subprocess.TimeoutExpired:
            pass
    return notes


def cpu_within(notes, start, end):
    """Rates of CPU time, the system's and the servers', over the notes inside the measured time."""
    inside = [note for note in notes if start <= note[0] <= end]
    if len(inside) < 2:
        return None, None
    first, last = inside[0], inside[-1]
    elapsed = last[0] - first[0]
    servers = sum(b - a for a, b in zip(first[2], last[2]))
    return (last[1] - first[1]) / elapsed, servers / elapsed


def run_fio(bench, profile, device, pids, **given):
    result = os.path.join(bench.work, "fio.json")
    command = ["fio", "--output-format=json", f"--output={result}", "--eta=never", job_file(bench, profile, given)]
    process = subprocess.Popen(command, env={**os.environ, "DEV": device}, stdout=subprocess.DEVNULL)
    notes = watch(process, pids)
    if process.returncode != 0:
        raise RuntimeError(f"fio {profile} on {device} failed with status {process.returncode}")
    with open(result, encoding="ascii") as file:
        text = file.read()
    job = json.loads(text[text.index("{"):])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio {profile} on {device}: error {job['error']}")
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    # fio ends as soon as its time is over, and looks at its processes ten times a second.
    end = notes[-1][0] - 0.2
    system, servers = cpu_within(notes, end - side["runtime"] / 1000, end)
    iops = side["iops"]
    percentile = side["lat_ns"]["percentile"]
    return {
        "ios": side["total_ios"],
        "iops": iops,
        "mib_s": side["bw_bytes"] / 1048576,
        "lat_us_p50": percentile["50.000000"] / 1000,
        "lat_us_p99": percentile["99.000000"] / 1000,
        "cpu_us_per_io": None if system is None else system / iops * 1e6,
        "server_cpu_us_per_io": None if servers is None else servers / iops * 1e6,
    }
