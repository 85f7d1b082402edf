#!/usr/bin/python3
"""The measuring half of scripts/bench, as root on a kernel with ublk: makes the devices, runs the profiles, writes samples.

Every sample is one JSON object on a line of the file --out, so that what was measured survives an end half-way. The systems
take turns within a round, in an order that moves on from round to round, so that a drift of the machine meets all of them.
bench-report.py reads the file.
"""

import argparse
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bench_crash import measure_crash  # noqa: E402
from bench_fio import run_fio  # noqa: E402
from bench_host import PRIMARY, SECONDARY, Cycles, Daemon, Rublk, make_ram_disks, machine, pin, run  # noqa: E402
from bench_intent import is_of_intent, measure_intent, measure_latency  # noqa: E402
from bench_open import measure_open  # noqa: E402

VOLUME = "bench"
SYSTEMS = ("raw", "rublk", "tracking", "sync", "increments")
HOLD_SIZES = {"1 GiB": 1 << 30, "1 TiB": 1 << 40, "64 TiB": 1 << 46}


class Bench:
    """What all parts share: the options, the daemon, and the file of samples."""

    def __init__(self, options):
        self.options = options
        self.work = tempfile.mkdtemp(prefix="farpoint-bench.")
        self.out = open(options.out, "w", encoding="ascii")
        self.daemon = Daemon(options.farpoint, self.work)
        self.client = self.daemon.client()
        self.rublk = None
        self.began = time.monotonic()

    def sample(self, kind, **values):
        self.out.write(json.dumps({"kind": kind, **values}) + "\n")
        self.out.flush()

    def say(self, text):
        print(f"bench: {time.monotonic() - self.began:5.0f} s  {text}", file=sys.stderr, flush=True)

    def close(self):
        """Removes what was made; whoever was stopped has to go on for that."""
        for pid in [self.daemon.pid] + (self.rublk.pids() if self.rublk else []):
            os.kill(pid, signal.SIGCONT)
        if self.rublk:
            self.rublk.remove()
        self.daemon.stop()
        self.out.close()
        subprocess.run(["modprobe", "--remove", "brd"], check=False, stderr=subprocess.DEVNULL)
        run("rm", "--recursive", "--force", self.work)


def rest(bench, system):
    """Stops the servers that are not measured: even an idle one looks after its timers. No request is under way to them."""
    servers = {"farpoint": [bench.daemon.pid], "rublk": bench.rublk.pids() if bench.rublk else []}
    at_work = {"raw": None, "rublk": "rublk"}.get(system, "farpoint")
    for name, pids in servers.items():
        for pid in pids:
            os.kill(pid, signal.SIGCONT if name == at_work else signal.SIGSTOP)


def prepare(bench, system):
    """Brings the volume into the state that a system stands for; returns the device, the servers and what ends it."""
    rest(bench, system)
    client, daemon = bench.client, bench.daemon
    if system == "raw":
        return PRIMARY, [], lambda: {}
    if system == "rublk":
        return bench.rublk.device, bench.rublk.pids(), lambda: {}
    if system == "tracking":
        return bench.device, [daemon.pid], lambda: {}
    client.call("resume", volumes=[VOLUME])
    client.call("wait", volumes=[VOLUME], until="in-sync", timeout_ms=120000)
    before = client.volume(VOLUME)["counters"]
    cycles = Cycles(daemon, VOLUME) if system == "increments" else None

    def end():
        after = client.volume(VOLUME)["counters"]
        extra = {"drained_mib": (after["drained_bytes"] - before["drained_bytes"]) / 1048576}
        if cycles:
            extra.update(increments=cycles.end(), hold_us=cycles.holds, collisions=after["collisions"] - before["collisions"])
        client.call("pause", volumes=[VOLUME])
        return extra

    return bench.device, [daemon.pid], end


def measure_io(bench):
    options = bench.options
    systems = [system for system in options.systems if system in SYSTEMS]
    profiles = [profile for profile in options.profiles if not is_of_intent(profile)]
    if not systems or not profiles:
        return
    make_devices(bench)
    for number in range(options.rounds):
        for profile in profiles:
            turn = number % len(systems)
            for system in systems[turn:] + systems[:turn]:
                device, pids, end = prepare(bench, system)
                figures = run_fio(bench, profile, device, pids)
                figures.update(end())
                bench.sample("io", round=number, system=system, profile=profile, **figures)
                bench.say(f"round {number + 1} of {options.rounds}  {profile:24} {system:10} {figures['iops']:9.0f} IOPS")
    rest(bench, "tracking")
    bench.client.remove(VOLUME)
    if bench.rublk:
        rest(bench, "rublk")
        bench.rublk.remove()
        bench.rublk = None
        rest(bench, "tracking")


def fill(mib):
    """Nothing may be measured on a ram disk without memory, and the drain sends zeroes in another way than data."""
    for device in (PRIMARY, SECONDARY):
        run("fio", "--name=fill", f"--filename={device}", "--rw=write", "--bs=1M", "--direct=1", "--refill_buffers=1",
            "--output=/dev/null", f"--size={mib}M")


def make_devices(bench):
    queues = bench.options.queues
    bench.device = bench.daemon.volume(VOLUME, PRIMARY, SECONDARY, queues)
    # farpoint first: it wants its primary to itself, rublk does not mind.
    if "rublk" in bench.options.systems:
        bench.rublk = Rublk(bench.options.rublk, PRIMARY, queues)
    bench.client.call("pause", volumes=[VOLUME])
    if bench.options.pin:
        pin(bench.device)
        if bench.rublk:
            pin(bench.rublk.device)


def measure_hold(bench):
    """Cuts of sparse volumes of very different sizes, in turn, each while the host writes all over the volume."""
    volumes = {}
    for name, size in HOLD_SIZES.items():
        volume = "hold-" + name.replace(" ", "-")
        files = [os.path.join(bench.work, f"{volume}.{part}") for part in ("primary", "secondary")]
        for file in files:
            with open(file, "w", encoding="ascii") as sparse:
                sparse.truncate(size)
        volumes[name] = volume, bench.daemon.volume(volume, *files, 1)
        bench.client.call("pause", volumes=[volume])
    for number in range(bench.options.rounds):
        for name, (volume, device) in volumes.items():
            holds = hold_of(bench, volume, device)
            bench.sample("hold", round=number, size=name, **holds)
            bench.say(f"hold of {name}: {holds['start_us']} us")
    for volume, _ in volumes.values():
        bench.client.remove(volume)


def hold_of(bench, volume, device, cuts=5):
    """A few cuts under load: the time until start answered, and the whole hold with run sent at once."""
    client = bench.client
    load = subprocess.Popen(["fio", "--name=load", f"--filename={device}", "--rw=randwrite", "--bs=4k", "--iodepth=8", "--direct=1",
                             "--ioengine=io_uring", "--norandommap=1", "--random_generator=tausworthe64", "--time_based=1",
                             "--runtime=60", "--rate_iops=500", "--output=/dev/null"])
    before = client.volume(volume)["counters"]["host_writes"]
    while client.volume(volume)["counters"]["host_writes"] < before + 100 and load.poll() is None:
        time.sleep(0.05)
    start_us, run_us = [], []
    for _ in range(cuts):
        start_us.append(client.call("start", volumes=[volume])["hold_us"])
        run_us.append(client.call("run", volumes=[volume])["hold_us"])
        client.call("abort", volumes=[volume])
        client.call("wait", volumes=[volume], until="normal", timeout_ms=60000)
        time.sleep(0.05)
    load.terminate()
    load.wait()
    return {"start_us": start_us, "run_us": run_us}


def measure_drain(bench):
    """The drain of a volume that is out of sync from end to end, against plain copies of the same devices in the same turn."""
    size = bench.options.mib << 20
    device = bench.daemon.volume("drain", PRIMARY, SECONDARY, 1)
    ways = {"dd": copy_by_dd, "parallel": lambda: copy_in_parallel(size), "drain": lambda: drain(bench, device)}
    order = list(ways)
    for number in range(bench.options.rounds):
        turn = number % len(order)
        rates = {way: size / 1048576 / ways[way]() for way in order[turn:] + order[:turn]}
        bench.sample("drain", round=number, **rates)
        bench.say("  ".join(f"{way} {rates[way]:.0f} MiB/s" for way in order))
    bench.client.remove("drain")


def copy_by_dd():
    began = time.monotonic()
    run("dd", f"if={PRIMARY}", f"of={SECONDARY}", "bs=1M", "iflag=direct", "oflag=direct", "conv=fsync", "status=none")
    return time.monotonic() - began


def copy_in_parallel(size, threads=16):
    """As many requests at a time as the drain's window has, for dd has but one."""
    source, sink = os.open(PRIMARY, os.O_RDONLY | os.O_DIRECT), os.open(SECONDARY, os.O_WRONLY | os.O_DIRECT)
    offsets = iter(range(0, size, 1 << 20))

    def work(buffer):
        # One step of an iterator is not interrupted by another thread.
        for offset in offsets:
            if os.preadv(source, [buffer], offset) != 1 << 20 or os.pwritev(sink, [buffer], offset) != 1 << 20:
                raise RuntimeError(f"short copy at {offset}")

    workers = [threading.Thread(target=work, args=(mmap.mmap(-1, 1 << 20),)) for _ in range(threads)]
    began = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.fsync(sink)
    took = time.monotonic() - began
    os.close(source)
    os.close(sink)
    return took


def drain(bench, device):
    client = bench.client
    client.call("pause", volumes=["drain"])
    # What is there already, written again: every track is marked and none is zeroes.
    run("dd", f"if={PRIMARY}", f"of={device}", "bs=1M", "oflag=direct", "status=none")
    began = time.monotonic()
    client.call("resume", volumes=["drain"])
    client.call("wait", volumes=["drain"], until="in-sync", timeout_ms=300000)
    return time.monotonic() - began


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--farpoint", "--rublk", "--profile-dir", "--out"):
        parser.add_argument(name, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--ramp", type=int, default=1)
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--pin", action="store_true")
    parser.add_argument("--mib", type=int, default=256)
    for name in ("--systems", "--profiles", "--parts"):
        parser.add_argument(name, type=lambda text: text.split(","), required=True)
    return parser.parse_args()


def main():
    options = parse()
    make_ram_disks(options.mib)
    fill(options.mib)
    bench = Bench(options)
    parts = {"io": measure_io, "intent": measure_intent, "latency": measure_latency, "hold": measure_hold, "open": measure_open,
             "crash": measure_crash, "drain": measure_drain}
    try:
        bench.sample("machine", **machine(bench))
        for part in options.parts:
            parts[part](bench)
        with open("/proc/loadavg", encoding="ascii") as file:
            bench.sample("end", seconds=time.monotonic() - bench.began, load=file.read().split()[:3])
    except Exception:
        bench.daemon.show_log()
        raise
    finally:
        bench.close()


if __name__ == "__main__":
    main()
