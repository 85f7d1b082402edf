#!/bin/bash
# A secondary that fails and comes back, for good, now and then, and during an increment: the host sees no error and waits
# for nothing, the link is reported as failing, and afterwards both sides are equal (P1, P5, P6, H7, H21).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

good="0 131072 linear /dev/ram0 0"
bad="0 131072 error"

# settled WHAT
settled() {
    end_writers
    expect "$1: errors of the writers" 0 "$errors"
    at_most "$1: longest write in ms" $((collision_wait_ms + slack_ms)) "$longest_ms"
    figure "longest_ms_$1" "$longest_ms"
    in_sync vol0
    expect "$1: link" up "$(field vol0 .link)"
    equal "$work/primary" /dev/mapper/secondary
}

collision_wait_ms=1000
start_daemon
ram_disk 0 64 secondary
make_volume vol0 "$(sparse primary 64M)" "$node" --image-pool 64MiB
fp set vol0 --collision-wait-ms "$collision_wait_ms" --run-timer-ms 5000
in_sync vol0

say "it fails and comes back"
writers_on "$dev" --hot $((8 << 20))
remap secondary "$bad"
wait_for "the link to be failing" in_state vol0 .link failing
at_least "errors of the secondary" 1 "$(field vol0 .counters.secondary_errors)"
sleep 3
remap secondary "$good"
settled returns

say "it fails in the middle of an increment, which waits, and comes back"
fp pause vol0
writers_on "$dev" --hot $((8 << 20))
sleep 2
fp start vol0
remap secondary "$bad"
fp run vol0
fp resume vol0
wait_for "the link to be failing" in_state vol0 .link failing
sleep 2
expect "the increment goes on" increment-in-progress "$(field vol0 .state)"
expect "it is not drained" false "$(field vol0 .drained)"
remap secondary "$good"
fp wait vol0 --until drained --timeout "$patience"
fp increment-complete vol0
settled increment

say "it fails now and then, flushes as well"
modprobe --quiet dm-flakey || skip "this kernel has no dm-flakey"
writers_on "$dev" --hot $((8 << 20))
remap secondary "0 131072 flakey /dev/ram0 0 1 1 1 error_writes"
sleep 8
remap secondary "$good"
settled flakey
figure secondary_errors "$(field vol0 .counters.secondary_errors)"
fp down vol0
stop_daemon
