"""The kernel's own ways of keeping a second copy, as bench systems: md's raid1 with write-behind, and DRBD's protocol A.

Both acknowledge a write when the first copy has it, as farpoint does, and both remember on media where the copies may differ.
Each is made anew over the same two devices, with nothing to copy and nothing marked. `marks` counts regions of 4 MiB that were
marked on media since then: what makes a write a cold one is not believed but counted.
"""

import glob
import os
import re
import subprocess
import time

from bench_host import load_module, read, run

REGION_MIB = 4
PATIENCE_S = 60


def await_that(what, holds):
    until = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > until:
            raise RuntimeError(f"{what}: not within {PATIENCE_S} s")
        time.sleep(0.1)


class Md:
    """raid1 with an internal bitmap; the second leg is only written to, behind."""

    device, pids = "/dev/md0", []

    def __init__(self, primary, secondary, head_mib):
        load_module("raid1")
        self.leg = primary
        run("mdadm", "--create", self.device, "--quiet", "--run", "--force", "--level=1", "--raid-devices=2", "--assume-clean",
            "--bitmap=internal", f"--bitmap-chunk={REGION_MIB}M", f"--data-offset={head_mib}M", "--write-behind=4096", primary,
            "--write-mostly", secondary, quiet=True)
        # It begins with every bit set and clears them when they were idle for twice this time, in seconds. None may be cleared
        # before it was counted.
        self.clear_after(1)
        await_that("md clears its bitmap", lambda: self.marks() == 0)
        self.clear_after(60)

    def clear_after(self, seconds):
        with open("/sys/block/md0/md/bitmap/time_base", "w", encoding="ascii") as file:
            file.write(f"{seconds}\n")

    def marks(self):
        examined = subprocess.run(["mdadm", "--examine-bitmap", self.leg], check=False, stdout=subprocess.PIPE, text=True).stdout
        return int(re.search(r"(\d+) dirty", examined).group(1))

    def settle(self):
        pass

    def close(self):
        run("mdadm", "--stop", "--quiet", self.device)
        run("modprobe", "--remove", "raid1")


class Drbd:
    """Both ends on this machine, each a resource of its own, connected over loopback; metadata on disks of its own."""

    device, pids = "/dev/drbd0", []
    PORTS = 7700, 7701

    def __init__(self, primary, secondary, metadata, mib):
        load_module("drbd")
        os.makedirs("/run/lock/drbd", exist_ok=True)
        with open("/sys/module/drbd/parameters/proc_details", "w", encoding="ascii") as file:
            file.write("1\n")
        # The tools of the version that the kernel has stand apart from those of version 9.
        self.setup = glob.glob("/*/lib/drbd/drbdsetup-84")[0]
        for number, (device, place) in enumerate(zip((primary, secondary), metadata)):
            run("blkdiscard", "--zeroout", f"--length={mib}MiB", place)
            run("drbdmeta", "--force", str(number), "v08", place, "0", "create-md", quiet=True)
            run(self.setup, "new-resource", f"r{number}")
            run(self.setup, "new-minor", f"r{number}", str(number), "0")
            run(self.setup, "attach", str(number), device, place, "0")
        ends = [f"ipv4:127.0.0.1:{port}" for port in self.PORTS]
        for number, (here, there) in enumerate((ends, ends[::-1])):
            run(self.setup, "connect", f"r{number}", here, there, "--protocol=A", "--sndbuf-size=10M")
        await_that("DRBD connects", lambda: read("/proc/drbd").count("cs:Connected") == 2)
        run(self.setup, "new-current-uuid", "--clear-bitmap", "0")
        run(self.setup, "primary", "0")

    def marks(self):
        """Extents that came into the activity log; one that is pushed out by another and comes back counts again."""
        return int(re.search(r"act_log:.*changed:(\d+)", read("/proc/drbd")).group(1))

    def settle(self):
        await_that("DRBD sends the rest", lambda: " pe:0 ua:0 ap:0 " in read("/proc/drbd"))

    def close(self):
        for number in range(2):
            run(self.setup, "down", f"r{number}")
        run("modprobe", "--remove", "drbd")
