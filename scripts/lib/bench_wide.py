"""Devices of terabytes over a few hundred megabytes: the same ram disk beneath every part of them.

A bench of cold regions needs thousands of them that nothing was written to, and memory for none. What is on the devices does not
count; what a write costs does, and it is a copy into memory that is there, wherever it goes: hot or cold, the device itself makes
no difference. Only the first megabytes, where md keeps its own, are memory of their own.
"""

from contextlib import contextmanager

from bench_host import run

SECTOR = 512
HEAD_MIB = 8
# As many parts of as many parts. A table of all of them would take longer to go through where it is used all over than where it
# is used in one place, and hot writes would look better than they are.
PARTS = 111


def sectors(mib):
    return mib * (1 << 20) // SECTOR


def linear(start, length, device):
    return f"{start} {length} linear {device} 0"


def many(device, length, start=0):
    """A table of the device over and over, from `start` on."""
    return [linear(start + number * length, length, device) for number in range(PARTS)]


@contextmanager
def wide_devices(heads, bodies, mib):
    """A primary and a secondary, each the first megabytes of a ram disk of `heads` and then one of `bodies` over and over."""
    made = []

    def make(name, table):
        run("dmsetup", "create", "--noudevrules", "--noudevsync", name, given="\n".join(table) + "\n")
        made.append(name)
        run("dmsetup", "mknodes")
        return f"/dev/mapper/{name}"

    first, part = sectors(HEAD_MIB), sectors(mib)
    try:
        devices = []
        for name, head, body in zip(["farpoint-bench-primary", "farpoint-bench-secondary"], heads, bodies):
            parts = make(f"{name}-parts", many(body, part))
            devices.append(make(name, [linear(0, first, head), *many(parts, PARTS * part, first)]))
        yield devices
    finally:
        for name in reversed(made):
            run("dmsetup", "remove", "--noudevrules", "--noudevsync", name)
