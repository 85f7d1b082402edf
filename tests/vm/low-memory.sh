#!/bin/bash
# Little memory: in a guest of 512 MiB four times as much goes through a mounted file system, so that the kernel has to write
# to the device in order to get memory; nothing hangs, nothing is lost, increments go on (H26).
#
# Both sides are disks of the guest, so that what is written is not in memory.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

file_mib=64
memory_mib=$(sed -n 's/^MemTotal:[[:space:]]*\([0-9]*\) kB/\1/p' /proc/meminfo | { read -r kib && echo $((kib >> 10)); })
((memory_mib <= 512)) || skip "this machine has $memory_mib MiB of memory, which is not little"
[[ -b /dev/vda && -b /dev/vdb ]] || skip "there are no two disks"
rounds=$((4 * 512 / file_mib))

# stalls: how often somebody who wanted memory had to free some first.
stalls() { awk '/^allocstall/ { sum += $2 } END { print sum }' /proc/vmstat; }

start_daemon
make_volume vol0 /dev/vda /dev/vdb --force --yes --image-pool 8MiB --depth 32
fp set vol0 --run-timer-ms 30000 --collision-wait-ms 10000
mkfs.ext4 -q "$dev"
mount_at "$dev" "$work/mnt"
# Writers fill memory first, and the kernel writes out when it needs some.
sysctl --quiet --write vm.dirty_ratio=60 vm.dirty_background_ratio=50
stalled=$(stalls)
for ((each = 0; each < rounds; each++)); do
    dd if=/dev/urandom of="$work/mnt/file$((each % 8))" bs=1M count=$file_mib status=none || fail "dd"
    if ((each % 3 == 1)); then
        fp start vol0
        fp run vol0
        fp wait vol0 --until drained --timeout 300
        fp increment-complete vol0
    fi
done
stalled=$(($(stalls) - stalled))
at_least "times that memory was short" 1 "$stalled"
before=$("$device" digest "$work/mnt")
unmount "$work/mnt"
sysctl --quiet --write vm.dirty_ratio=20 vm.dirty_background_ratio=10
fp wait vol0 --until in-sync --timeout 600
mount_at "$dev" "$work/mnt"
expect "the tree" "$before" "$("$device" digest "$work/mnt")"
unmount "$work/mnt"
e2fsck -f -n "$dev" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
at_least "MiB written by the host" $((4 * 512)) "$(($(field vol0 .counters.host_write_bytes) >> 20))"
expect "errors of the host" 0 "$(field vol0 .counters.host_errors)"
figure mib_written "$((rounds * file_mib))"
figure memory_mib "$memory_mib"
figure stalls "$stalled"
figure longest_wait_ms "$(($(field vol0 .counters.write_wait_us_max) / 1000))"
in_sync vol0
fp down vol0
equal /dev/vda /dev/vdb
stop_daemon
