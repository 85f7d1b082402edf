"""The part of the bench that measures durable intent: the same writes to regions that are marked on media already, and to ones
that are not, on farpoint, on its peers, and on a server that marks nothing.

Each system is made anew for each round, so that everything is cold at first, and takes its turn with all profiles. Hot and cold
are compared within a turn. On ram disks, where only the work counts; and the random ones on disks that take their time, where it
counts how often a write waits for one.
"""

import os
import signal
from collections import namedtuple

from bench_figures import PASSES
from bench_fio import run_fio
from bench_host import HEADS, METADATA, PRIMARY, SECONDARY, SLOW_DISKS, Rublk, pin, slow_disks
from bench_peers import Drbd, Md
from bench_wide import HEAD_MIB, wide_devices

SYSTEMS = ("rublk", "tracking", "sync", "md", "drbd")
FARPOINT = ("tracking", "sync")
HOT_RANDOM, COLD_RANDOM = "randwrite-4k-qd32-hot", "randwrite-4k-qd32-cold"
SEQUENTIAL = "seqwrite-128k-qd8-hot", "seqwrite-128k-qd8-cold"
# Where the second cold sequential run begins; the first ends long before.
OFFSET_AGAIN = "75%"
# Of the random writes, those that met a region for the first time: of cold ones chance makes it about 0.98.
COLD_SHARE_MIN, HOT_SHARE_MAX = 0.95, 0.05
VOLUME = "intent"
# Fewer cold writes on slow disks: md makes 700 a second there.
SLOW_IOS = 16384

# A part of the bench: the name of its samples, its profiles, the disks for heads, bodies and metadata, and what takes the place of
# the profiles' own settings.
Part = namedtuple("Part", "kind profiles heads bodies metadata given")


class Farpoint:
    """A volume with its metadata on a disk of its own; with the drain paused, or in sync when a profile begins."""

    def __init__(self, bench, devices, metadata, paused):
        self.bench, self.paused, self.pids = bench, paused, [bench.daemon.pid]
        self.device = bench.daemon.volume(VOLUME, *devices, bench.options.queues, f"--metadata={metadata}", "--in-sync")
        if paused:
            bench.client.call("pause", volumes=[VOLUME])

    def marks(self):
        volume = self.bench.client.volume(VOLUME)
        return volume["hot_regions"] + volume["counters"]["intent_cleared"]

    def settle(self):
        if not self.paused:
            self.bench.client.call("wait", volumes=[VOLUME], until="in-sync", timeout_ms=300000)

    def close(self):
        self.bench.client.remove(VOLUME)


class Loop:
    """rublk's loop target, which marks nothing: it shows what the devices beneath make of hot and cold."""

    def __init__(self, bench, primary):
        self.server = Rublk(bench.options.rublk, primary, bench.options.queues)
        self.device, self.pids = self.server.device, self.server.pids()

    def marks(self):
        return 0

    def settle(self):
        pass

    def close(self):
        self.server.remove()


def is_of_intent(profile):
    return profile.endswith(("-hot", "-cold"))


def make(bench, part, system, devices):
    if system == "rublk":
        return Loop(bench, devices[0])
    if system == "md":
        return Md(*devices, HEAD_MIB)
    if system == "drbd":
        return Drbd(*devices, part.metadata, bench.options.mib)
    return Farpoint(bench, devices, part.metadata[0], system == "tracking")


def runs(profiles):
    """What a turn runs: a pass, a profile, and what takes the place of the profile's own settings. All profiles in their order;
    then the sequential two again, the other way round and the cold one on other regions, so that what changes while they run, on
    a machine that is busy, is on both sides."""
    again = [profile for profile in reversed(profiles) if profile in SEQUENTIAL]
    return [(0, profile, {}) for profile in profiles] + [(1, profile, {"offset": OFFSET_AGAIN}) for profile in again]


def turn(bench, part, number, system, devices):
    """All profiles on one system. Each pass of a turn counts as a round of its own."""
    # Even an idle server looks after its timers.
    os.kill(bench.daemon.pid, signal.SIGCONT if system in FARPOINT else signal.SIGSTOP)
    made = make(bench, part, system, devices)
    try:
        if bench.options.pin and made.pids:
            pin(made.device)
        for nth, profile, given in runs(part.profiles):
            given.update(part.given)
            if profile == HOT_RANDOM:
                # The same writes once before: they mark the regions.
                run_fio(bench, profile, made.device, made.pids, **given)
            made.settle()
            before = made.marks()
            figures = run_fio(bench, profile, made.device, made.pids, **given)
            marked = made.marks() - before
            if system != "rublk":
                check_marked(system, profile, marked, figures["ios"])
            bench.sample(part.kind, round=PASSES * number + nth, system=system, profile=profile, marked=marked, **figures)
            bench.say(f"round {number + 1} of {bench.options.rounds}  {profile:24} {system:10} {figures['iops']:9.0f} IOPS"
                      f"  {marked} regions marked")
    finally:
        made.close()


def check_marked(system, profile, marked, writes):
    if profile == COLD_RANDOM and marked < COLD_SHARE_MIN * writes or profile == HOT_RANDOM and marked > HOT_SHARE_MAX * writes:
        raise RuntimeError(f"{system}: {writes} writes of {profile} marked {marked} regions, so they were not what they should be")


def measure(bench, part):
    systems = [system for system in bench.options.systems if system in SYSTEMS]
    if not systems or not part.profiles:
        return
    try:
        with wide_devices(part.heads, part.bodies, bench.options.mib) as devices:
            for number in range(bench.options.rounds):
                first = number % len(systems)
                for system in systems[first:] + systems[:first]:
                    turn(bench, part, number, system, devices)
    finally:
        # The last turn may have been a peer's; the other parts need the daemon.
        os.kill(bench.daemon.pid, signal.SIGCONT)


def measure_intent(bench):
    measure(bench, Part("intent", list(filter(is_of_intent, bench.options.profiles)), HEADS, (PRIMARY, SECONDARY), METADATA, {}))


def measure_latency(bench):
    profiles = [profile for profile in bench.options.profiles if profile in (HOT_RANDOM, COLD_RANDOM)]
    if not profiles:
        return
    with slow_disks():
        measure(bench, Part("latency", profiles, SLOW_DISKS[2:4], SLOW_DISKS[:2], SLOW_DISKS[4:], {"number_ios": SLOW_IOS}))
