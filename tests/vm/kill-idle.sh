#!/bin/bash
# kill -9 of an idle daemon: the next one takes the device back; no process hangs; a full copy is needed and done; numbers
# of increments are not used again (P1, H22, H24, H28).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

start_daemon
make_volume vol0 "$(sparse primary 64M)" "$(sparse secondary 64M)"
fp set vol0 --run-timer-ms 20000
dd if=/dev/urandom of="$dev" bs=64K count=50 oflag=direct conv=notrunc status=none
in_sync vol0
for _ in 1 2; do
    number=$(fp start vol0 --json | jq .increment)
    fp run vol0
    fp wait vol0 --until drained --timeout "$patience"
    fp increment-complete vol0
done
say "killing it with increment $number complete, and the next one pending"
number=$(fp start vol0 --json | jq .increment)
kill_daemon
start_daemon
wait_for "the device to be taken back" in_state vol0 .state normal
expect "the device" "$dev" "$(device_of vol0)"
in_sync vol0
expect "tracks sent" 1024 "$(field vol0 .counters.drained_tracks)"
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
