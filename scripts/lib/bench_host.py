"""What bench-run.py measures with: the daemon and its control socket, rublk, the ram disks, and the kernel's clocks."""

import json
import os
import platform
import re
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

HZ = os.sysconf("SC_CLK_TCK")
DEPTH = 128


# Ram disks: of the io and drain parts, and beneath the wide devices of others; the heads of those; and for metadata.
PRIMARY, SECONDARY = "/dev/ram0", "/dev/ram1"
HEADS = "/dev/ram2", "/dev/ram3"
METADATA = "/dev/ram4", "/dev/ram5"
DISKS = (PRIMARY, SECONDARY, *HEADS, *METADATA)
# As many that take so long for each read and write, for the latency part.
SLOW_DISKS = [f"/dev/nullb{number}" for number in range(len(DISKS))]
SLOW_NS = 1_000_000


def run(*command, given=None, quiet=False):
    """Runs a program to its end and returns what it printed. `quiet`: what it has to say besides is only of use if it fails.

    One that does not end, on a kernel that does not answer it, ends the bench."""
    errors = subprocess.PIPE if quiet else None
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode} {done.stderr or ''}")
    return done.stdout


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def cpu_seconds():
    """CPU time of all processors that was not idle: user, nice, system, irq, softirq, steal."""
    fields = [int(field) for field in read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / HZ


def process_cpu_seconds(pid):
    """CPU time of a process and its threads, the kernel's for it included."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / HZ


def load_module(name, *parameters):
    """Only a module that nobody else uses: what is made with it here is removed with it."""
    if os.path.exists(f"/sys/module/{name}"):
        raise SystemExit(f"bench: this machine uses the kernel's module {name} for something else: unload it, or use --vm")
    run("modprobe", name, *parameters)


def make_ram_disks(mib):
    """Fresh ram disks: what is in old ones is the reader's own business, so they are not touched. One takes no memory before it
    is written to."""
    load_module("brd", f"rd_nr={len(DISKS)}", f"rd_size={mib * 1024}")


@contextmanager
def slow_disks():
    """Disks of 1 GiB that answer each request when its time is over, however many are under way, as a good network disk does. They
    take memory as they are written to."""
    load_module("null_blk", f"nr_devices={len(SLOW_DISKS)}", "gb=1", "bs=512", "memory_backed=1", "irqmode=2", "no_sched=1",
                f"completion_nsec={SLOW_NS}", "hw_queue_depth=256")
    try:
        yield
    finally:
        run("modprobe", "--remove", "null_blk")


class Client:
    """A connection to the daemon: JSON-RPC, one object per line. A program per command would cost more than what is measured."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile("r", encoding="utf-8")
        self.number = 0

    def call(self, method, **params):
        self.number += 1
        request = {"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self.file.readline())
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def close(self):
        self.file.close()
        self.socket.close()

    def remove(self, volume):
        self.call("down", volume=volume)
        self.call("delete", volume=volume)

    def await_normal(self, volume):
        """A new daemon has taken the volume's device back."""
        until = time.monotonic() + 60
        while (report := self.volume(volume))["state"] != "normal":
            if time.monotonic() > until:
                raise RuntimeError(f"{volume} is {report['state']}: {report['reason']}")
            time.sleep(0.01)
        return report

    def volume(self, name):
        return self.call("status", volumes=[name])["volumes"][0]


class Daemon:
    """A farpoint daemon with places of its own."""

    def __init__(self, program, work):
        self.program, self.log_path = program, os.path.join(work, "daemon.log")
        # The daemon believes only a configuration that nobody but root can have written.
        self.run_dir = run("mktemp", "--directory", "/run/farpoint-bench.XXXXXX").strip()
        self.config_dir = os.path.join(self.run_dir, "etc")
        os.mkdir(self.config_dir)
        with open(os.path.join(self.config_dir, "farpoint.toml"), "w", encoding="ascii") as file:
            file.write(f'run_dir = "{self.run_dir}"\nstate_dir = "{self.run_dir}/state"\n')
        os.mkdir(os.path.join(self.run_dir, "state"), 0o700)
        self.socket_path = os.path.join(self.run_dir, "control.sock")
        self.start()

    def start(self):
        with open(self.log_path, "a", encoding="ascii") as log:
            command = [self.program, "--config-dir", self.config_dir, "daemon"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.pid = self.process.pid
        for _ in range(1000):
            try:
                return self.client().close()
            except OSError:
                time.sleep(0.01)
        self.show_log()
        raise SystemExit("bench: the daemon did not start")

    def kill(self):
        """The devices stay, and wait for the next one."""
        self.process.kill()
        self.process.wait()

    def client(self):
        return Client(self.socket_path)

    def volume(self, name, primary, secondary, queues, *more):
        """Makes a volume and its device."""
        common = [self.program, "--config-dir", self.config_dir, "--socket", self.socket_path]
        run(*common, "create", name, f"--primary={primary}", f"--secondary={secondary}", f"--queues={queues}",
            f"--depth={DEPTH}", "--yes", "--force", *more)
        return run(*common, "up", name).strip()

    def show_log(self):
        print(read(self.log_path)[-3000:])

    def stop(self):
        self.process.terminate()
        self.process.wait()
        run("rm", "--recursive", "--force", self.run_dir)


class Rublk:
    """rublk's loop target over the same primary, with as many queues of the same depth."""

    def __init__(self, program, primary, queues):
        self.program = program
        there = set(ublk_devices())
        run(program, "add", "loop", "--queue", str(queues), "--depth", str(DEPTH), "--quiet", "--file", primary)
        self.device = next(iter(set(ublk_devices()) - there))

    def pids(self):
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and comm(pid).startswith("rublk")]

    def remove(self):
        run(self.program, "del", "--number", re.search(r"\d+$", self.device).group())


def queue_threads(device):
    """The threads that serve a ublk device's queues, as libublk notes them for both servers."""
    number = int(re.search(r"\d+$", device).group())
    queues = json.loads(read(f"/run/ublksrvd/{number:04}.json"))["queues"]
    return [queue["tid"] for _, queue in sorted(queues.items())]


def pin(device):
    """Each queue's thread on a CPU of its own, the last ones first: the same for every server, or luck would decide."""
    for number, thread in enumerate(queue_threads(device)):
        os.sched_setaffinity(thread, {os.cpu_count() - 1 - number % os.cpu_count()})


def comm(pid):
    try:
        return read(f"/proc/{pid}/comm").strip()
    except OSError:
        return ""


def ublk_devices():
    return ["/dev/" + name for name in os.listdir("/sys/block") if name.startswith("ublkb")]


class Cycles:
    """Increments back to back, on a connection of their own."""

    def __init__(self, daemon, volume):
        self.client, self.names, self.holds, self.ended = daemon.client(), {"volumes": [volume]}, [], False
        self.done = 0
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self):
        while not self.ended:
            self.client.call("start", **self.names)
            self.holds.append(self.client.call("run", **self.names)["hold_us"])
            while not self.drained():
                if self.ended:
                    self.client.call("abort", **self.names)
                    self.client.call("wait", **self.names, until="normal", timeout_ms=60000)
                    return
            self.client.call("increment-complete", **self.names)
            self.done += 1

    def drained(self):
        try:
            self.client.call("wait", **self.names, until="drained", timeout_ms=200)
            return True
        except RuntimeError as error:
            if self.client.volume(self.names["volumes"][0])["state"] != "increment-in-progress":
                raise RuntimeError(f"an increment was given up: {error}") from error
            return False

    def end(self):
        """Stops after what is under way; returns how many increments were completed."""
        self.ended = True
        self.thread.join()
        return self.done


def machine(bench):
    """What a reader has to know of the machine to judge the figures."""
    cpu = re.search(r"model name\s*: (.*)", read("/proc/cpuinfo"))
    options = bench.options
    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "memory_mib": int(re.search(r"MemTotal:\s*(\d+)", read("/proc/meminfo")).group(1)) // 1024,
        "farpoint": run(options.farpoint, "--version").strip(),
        "rublk": run(options.rublk, "--version").strip(),
        "fio": run("fio", "--version").strip(),
        "ublk_features": bench.client.call("status")["kernel"]["ublk_features"],
        "ram_disk_mib": options.mib,
        "queues": options.queues,
        "affinity": "queue threads of both pinned alike" if options.pin else "queue threads placed as each server does it",
        "depth": DEPTH,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "ramp": options.ramp,
    }
