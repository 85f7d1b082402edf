"""Devices of terabytes over a few hundred megabytes: the same ram disk beneath every part of them.

A bench of cold regions needs thousands of them that nothing was written to, and memory for none. What is on the devices does not
count; what a write costs does, and it is a copy into memory that is there, wherever it goes: hot or cold, the device itself makes
no difference. Only the first megabytes, where md keeps its own, are memory of their own.
"""

from contextlib import contextmanager

from bench_host import run

SECTOR = 512
HEAD_MIB, PARTS = 8, 12288


def sectors(mib):
    return mib * (1 << 20) // SECTOR


def wide_table(head, body, mib):
    first, part = sectors(HEAD_MIB), sectors(mib)
    lines = [f"0 {first} linear {head} 0"]
    lines += [f"{first + number * part} {part} linear {body} 0" for number in range(PARTS)]
    return "\n".join(lines) + "\n"


@contextmanager
def wide_devices(heads, bodies, mib):
    """A primary and a secondary, each the first megabytes of a ram disk of `heads` and then one of `bodies` over and over."""
    names = ["farpoint-bench-primary", "farpoint-bench-secondary"]
    made = []
    try:
        for name, head, body in zip(names, heads, bodies):
            run("dmsetup", "create", "--noudevrules", "--noudevsync", name, given=wide_table(head, body, mib))
            made.append(name)
        run("dmsetup", "mknodes")
        yield [f"/dev/mapper/{name}" for name in names]
    finally:
        for name in made:
            run("dmsetup", "remove", "--noudevrules", "--noudevsync", name)
