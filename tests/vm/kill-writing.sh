#!/bin/bash
# kill -9 under load: the host's writes fail instead of hanging, what was acknowledged is on the primary, the device can be had
# again, and copying the regions that were in use makes both sides equal; in normal mode, during a hold, during a drain
# with collisions, and under a mounted file system (P1, P5, H22, H23).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

# under_load WHEN COMMAND...: runs the command under load, then kills.
under_load() {
    say "killed $1"
    # The writers expect a device never written to.
    dd if=/dev/zero of="$dev" bs=1M count=32 oflag=direct conv=notrunc status=none
    writers_on "$dev" --writers 6 --hot $((4 << 20)) --pause-ms 0 --errors-allowed --verify --verify-at "$work/primary"
    sleep 1.5
    "${@:2}"
    kill_daemon
    # Their last write has failed by now or never will.
    end_writers
    at_least "errors of the writers" 1 "$errors"
    at_most "longest write in ms" $((10000 + slack_ms)) "$longest_ms"
    start_daemon
    expect "full copy needed" false "$(field vol0 .full_copy_needed)"
    at_least "regions to copy again" 1 "$(field vol0 .recovered_regions)"
    bring_up vol0
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
background "$device" churn "$work/mnt" --operations 100000 --threads 4
churn=$job
sleep 2
kill_daemon
wait_for "the churn to end" gone "$churn"
unmount "$work/mnt"
start_daemon
bring_up vol0
in_sync vol0
mount_at "$dev" "$work/mnt"
expect "what was synced" content "$(cat "$work/mnt/file")"
unmount "$work/mnt"
e2fsck -f -n "$dev" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
in_sync vol0
fp down vol0
equal "$work/primary" "$work/secondary"
stop_daemon
