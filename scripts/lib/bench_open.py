"""The part of the bench that opens volumes of very different sizes, after a clean stop and after the daemon was killed."""

import os
import time

from bench_host import Daemon, run

KIB, TIB, PIB = 1 << 10, 1 << 40, 1 << 50
# Size and track size. Two bits for each track are in memory: of a PiB 4 GiB with tracks of 64 KiB, more than the guest has.
VOLUMES = {"1 GiB": (1 << 30, 64 * KIB), "64 TiB": (64 * TIB, 64 * KIB), "1 PiB": (PIB, 1024 * KIB)}
HOT_WRITES = 1024


def measure_open(bench):
    """Each size has a daemon to itself, so that the memory of one is not in the way of another."""
    for size, (bytes_, track) in VOLUMES.items():
        daemon = Daemon(bench.options.farpoint, bench.work)
        try:
            create(bench, daemon, bytes_, track)
            for number in range(bench.options.rounds):
                for stop, figures in (("clean", after_clean(daemon)), ("killed", after_kill(daemon))):
                    bench.sample("open", round=number, size=size, stop=stop, **figures)
                    bench.say(f"opening {size}, {stop}: {figures['open_us']} us, of it metadata {figures['metadata_us']} us")
        finally:
            daemon.stop()


def create(bench, daemon, size, track):
    files = [os.path.join(bench.work, f"open.{part}") for part in ("primary", "secondary")]
    for file in files:
        with open(file, "w", encoding="ascii") as sparse:
            sparse.truncate(size)
    daemon.volume("open", *files, 1, f"--track-size={track}", "--in-sync")


def after_clean(daemon):
    client = daemon.client()
    client.call("wait", volumes=["open"], until="in-sync", timeout_ms=300000)
    client.call("down", volume="open")
    began = time.monotonic()
    client.call("up", volume="open")
    took = time.monotonic() - began
    figures = opening(client)
    client.close()
    return {**figures, "seen_us": round(took * 1e6)}


def after_kill(daemon):
    """With as many regions hot as there may be at rest. The time seen is that from the start of the next daemon."""
    client = daemon.client()
    device = client.volume("open")["device"]
    run("fio", "--name=heat", f"--filename={device}", "--rw=randwrite", "--bs=4k", "--iodepth=8", "--direct=1",
        "--ioengine=io_uring", "--norandommap=1", "--random_generator=tausworthe64", f"--number_ios={HOT_WRITES}",
        "--zero_buffers=1", "--output=/dev/null")
    client.close()
    daemon.kill()
    began = time.monotonic()
    daemon.start()
    client = daemon.client()
    client.await_normal("open")
    took = time.monotonic() - began
    figures = opening(client)
    client.close()
    return {**figures, "seen_us": round(took * 1e6)}


def opening(client):
    volume = client.volume("open")
    open_us, metadata_us = (volume["counters"][name] for name in ("open_us", "open_metadata_us"))
    return {"open_us": open_us, "metadata_us": metadata_us, "recovered_regions": volume["recovered_regions"]}
