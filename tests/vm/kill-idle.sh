#!/bin/bash
# kill -9 of an idle daemon: the next one takes the device back; no process hangs; only regions that were in use are copied
# again; numbers of increments are not used again (P1, P7, H22, H24).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

start_daemon
make_volume vol0 "$(sparse primary 512M)" "$(sparse secondary 512M)"
fp set vol0 --run-timer-ms 20000
in_sync vol0
say "regions without use are forgotten"
wait_for "all regions to be cold" in_state vol0 .hot_regions 0
dd if=/dev/urandom of="$dev" bs=64K count=50 oflag=direct conv=notrunc status=none
in_sync vol0
for _ in 1 2; do
    number=$(fp start vol0 --json | jq .increment)
    fp run vol0
    fp wait vol0 --until drained --timeout "$patience"
    fp increment-complete vol0
done
say "killing it with increment $number complete, and the next one pending"
dd if=/dev/urandom of="$dev" bs=64K count=1 oflag=direct conv=notrunc status=none
number=$(fp start vol0 --json | jq .increment)
kill_daemon
start_daemon
wait_for "the device to be taken back" in_state vol0 .state normal
expect "the device" "$dev" "$(device_of vol0)"
expect "full copy needed" false "$(field vol0 .full_copy_needed)"
at_least "regions to copy again" 1 "$(field vol0 .recovered_regions)"
# The one that was written to, and those marked ahead of a writer.
at_most "regions to copy again" 16 "$(field vol0 .recovered_regions)"
in_sync vol0
at_least "tracks sent" 1 "$(field vol0 .counters.drained_tracks)"
at_most "tracks sent" 1024 "$(field vol0 .counters.drained_tracks)"
fp check vol0
next=$(fp start vol0 --json | jq .increment)
at_least "number of the next increment" $((number + 1)) "$next"
fp run vol0
fp wait vol0 --until drained --timeout "$patience"
fp increment-complete vol0
expect "full copy needed after a point" false "$(field vol0 .full_copy_needed)"

say "killed while somebody holds the device open"
exec {held}<"$dev"
kill_daemon
start_daemon
wait_for "the device to be taken back" in_state vol0 .state normal
exec {held}<&-
in_sync vol0
say "killed while it comes up"
fp down vol0
fp up vol0 >"$work/up" 2>&1 &
jobs+=($!)
sleep 0.3
kill_daemon
start_daemon
# Whether there is a device to be taken back depends on how far it came.
wait_for "the volume to be up or down" in_state vol0 .state "@(normal|down)"
in_state vol0 .state normal || bring_up vol0
in_sync vol0
fp down vol0
equal "$work/primary" "$work/secondary"
stop_daemon
expect "devices left" "/dev/ublkb\*" "$(echo /dev/ublkb*)"
