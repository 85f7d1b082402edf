#!/bin/bash
# kill -9 under load, in normal mode, during a hold, during a drain with collisions, and under a mounted file system: the
# next daemon takes the device back, the host's writes pause and none fails, what was acknowledged is on the primary, and both
# sides become equal (P1, P5, H22, H23).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

# under_load WHEN COMMAND...: runs the command under load, then kills.
under_load() {
    say "killed $1"
    # The writers expect a device never written to.
    dd if=/dev/zero of="$dev" bs=1M count=32 oflag=direct conv=notrunc status=none
    writers_on "$dev" --writers 6 --hot $((4 << 20)) --pause-ms 0 --verify
    sleep 1.5
    "${@:2}"
    kill_daemon
    start_daemon
    wait_for "the device to be taken back" in_state vol0 .state normal
    expect "the device" "$dev" "$(device_of vol0)"
    expect "full copy needed" false "$(field vol0 .full_copy_needed)"
    at_least "regions to copy again" 1 "$(field vol0 .recovered_regions)"
    sleep 1
    end_writers
    expect "errors of the writers" 0 "$errors"
    at_most "longest write in ms" $((40000 + slack_ms)) "$longest_ms"
    in_sync vol0
    equal "$work/primary" "$work/secondary"
}

begin_hold() { fp start vol0 && sleep 0.3; }

begin_drain() {
    fp pause vol0
    sleep 0.5
    fp start vol0
    fp run vol0
    fp resume vol0
}

start_daemon
make_volume vol0 "$(sparse primary 32M)" "$(sparse secondary 32M)" --image-pool 4MiB --queues 2
fp set vol0 --run-timer-ms 10000 --collision-wait-ms 5000
in_sync vol0
under_load normal true
under_load in-a-hold begin_hold
under_load in-a-drain begin_drain
[[ -z $long ]] || for each in {1..10}; do under_load "again, $each" sleep "0.$((RANDOM % 10))"; done

say "under a file system"
mkfs.ext4 -q "$dev"
mount_at "$dev" "$work/mnt"
echo content >"$work/mnt/file"
sync --file-system "$work/mnt"
background "$device" churn "$work/mnt" --operations 600 --threads 4
churn=$job
sleep 2
kill_daemon
start_daemon
finish "$churn" "the churn"
live=$("$device" digest "$work/mnt")
unmount "$work/mnt"
in_sync vol0
mount_at "$dev" "$work/mnt"
expect "what was synced" content "$(cat "$work/mnt/file")"
expect "the tree" "$live" "$("$device" digest "$work/mnt")"
unmount "$work/mnt"
e2fsck -f -n "$dev" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
in_sync vol0
fp down vol0
equal "$work/primary" "$work/secondary"
stop_daemon
