"""The part of the bench that kills the daemon under load, and looks at how much the next one copies again.

The load is one that the drain can follow, so that most of what was written is at the secondary when the daemon dies: what is
copied again is what the intent cannot tell apart.
"""

import subprocess
import time

from bench_host import DEPTH, HEADS, METADATA, PRIMARY, SECONDARY, Daemon
from bench_wide import wide_devices

REGION_BYTES = 4 << 20
# Regions that the intent may show although nothing in them is out of sync; a region with something out of sync is copied besides.
HOT_MAX = 1024
LOAD_S = 10
LOADS = {
    "random": ["--rw=randwrite", "--bs=4k", "--iodepth=8", "--rate_iops=400"],
    "sequential": ["--rw=write", "--bs=128k", "--iodepth=8", "--rate=400m"],
}
VOLUME = "crash"


def measure_crash(bench):
    daemon = Daemon(bench.options.farpoint, bench.work)
    try:
        with wide_devices(HEADS, (PRIMARY, SECONDARY), bench.options.mib) as devices:
            for number in range(bench.options.rounds):
                for load in LOADS:
                    figures = crash(daemon, devices, load)
                    bench.sample("crash", round=number, load=load, **figures)
                    bench.say(f"killed under {load} load: {figures['hot']} regions hot, {figures['recovered_mib']} MiB to copy again")
    finally:
        daemon.stop()


def crash(daemon, devices, load):
    device = daemon.volume(VOLUME, *devices, 1, f"--metadata={METADATA[0]}", "--in-sync")
    client = daemon.client()
    fio = subprocess.Popen(["fio", "--name=load", f"--filename={device}", "--direct=1", "--ioengine=io_uring", "--time_based=1",
                            "--runtime=600", "--norandommap=1", "--random_generator=tausworthe64", "--output=/dev/null",
                            *LOADS[load]])
    time.sleep(LOAD_S)
    before = client.volume(VOLUME)
    daemon.kill()
    # Its writes wait for the next daemon as all do, and are its last ones.
    fio.terminate()
    client.close()
    daemon.start()
    client = daemon.client()
    after = client.await_normal(VOLUME)
    client.call("wait", volumes=[VOLUME], until="in-sync", timeout_ms=300000)
    fio.wait()
    counters = client.volume(VOLUME)["counters"]
    client.remove(VOLUME)
    client.close()
    return {
        "written_mib": before["counters"]["host_write_bytes"] >> 20,
        "hot": before["hot_regions"],
        "out_of_sync_tracks": before["out_of_sync_tracks"] + DEPTH,
        "recovered_mib": after["recovered_regions"] * REGION_BYTES >> 20,
        "copied_mib": counters["drained_bytes"] >> 20,
    }
