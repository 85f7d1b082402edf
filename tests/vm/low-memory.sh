#!/bin/bash
# Little memory: four times as much as there is goes through a mounted file system, so that the kernel has to write to the
# device in order to get memory; nothing hangs and nothing is lost (H26).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

left_mib=160

available_mib() { sed -n 's/^MemAvailable:[[:space:]]*\([0-9]*\) kB/\1/p' /proc/meminfo | { read -r kib && echo $((kib >> 10)); }; }

# What holds the data must not be memory, or there is soon none: a sparse file that stays nearly empty would do for a test of
# writes of zeroes only. So both sides are on a disk of the guest, if there is one, and in ram disks made before if not.
start_daemon
for each in 0 1; do dd if=/dev/zero of="/dev/ram$each" bs=1M count=128 oflag=direct status=none; done
make_volume vol0 /dev/ram0 /dev/ram1 --force --yes --image-pool 8MiB
fp set vol0 --run-timer-ms 20000
mkfs.ext4 -q "$dev"
mount_at "$dev" "$work/mnt"
hog=$(($(available_mib) - left_mib))
((hog > 0)) || hog=0
mount_at none "$work/hog" -t tmpfs -o size=100%
((hog == 0)) || fallocate --length "${hog}M" "$work/hog/file"
at_most "MiB of memory left" $((left_mib * 2)) "$(available_mib)"
sysctl --quiet --write vm.dirty_ratio=60 vm.dirty_background_ratio=50
for ((each = 0; each < left_mib * 4 / 96; each++)); do
    dd if=/dev/urandom of="$work/mnt/file" bs=1M count=96 status=none || fail "dd"
    if ((each % 3 == 1)); then
        fp start vol0
        fp run vol0
        fp wait vol0 --until drained --timeout 120
        fp increment-complete vol0
    fi
done
before=$("$device" digest "$work/mnt")
unmount "$work/mnt"
rm --force "$work/hog/file"
fp wait vol0 --until in-sync --timeout 120
sysctl --quiet --write vm.dirty_ratio=20 vm.dirty_background_ratio=10
mount_at "$dev" "$work/mnt"
expect "the tree" "$before" "$("$device" digest "$work/mnt")"
unmount "$work/mnt"
in_sync vol0
fp down vol0
equal /dev/ram0 /dev/ram1
figure mib_written "$((left_mib * 4))"
stop_daemon
