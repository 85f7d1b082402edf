#!/bin/bash
# A slow secondary: in normal mode no write of the host notices; in an increment with before-images neither; when tracks are
# sent first a colliding write waits, but not beyond the bound; and the increments succeed (P5, H13).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

delay_ms=150
run_timer_ms=5000
collision_wait_ms=8000

modprobe --quiet dm-delay || skip "this kernel has no dm-delay"
start_daemon
map secondary "0 32768 delay /dev/ram0 0 0 /dev/ram0 0 $delay_ms"
make_volume vol0 "$(sparse primary 16M)" "$node" --force --yes --drain-window 1
fp set vol0 --run-timer-ms "$run_timer_ms" --collision-wait-ms "$collision_wait_ms"
in_sync vol0
writers_on "$dev" --hot $((8 << 20)) --writers 4 --pause-ms 5
sleep 3
end_writers
at_most "normal: longest write in ms" "$slack_ms" "$longest_ms"
figure longest_ms_normal "$longest_ms"
for policy in keep-before-image send-first; do
    fp set vol0 --collision-policy "$policy"
    writers_on "$dev" --hot $((8 << 20)) --writers 4 --pause-ms 5
    sleep 2
    for _ in 1 2; do
        fp start vol0
        fp run vol0
        fp wait vol0 --until drained --timeout "$patience"
        fp increment-complete vol0
    done
    end_writers
    at_most "$policy: longest write in ms" $((run_timer_ms + collision_wait_ms + slack_ms)) "$longest_ms"
    figure "longest_ms_$policy" "$longest_ms"
done
expect "increments completed" 4 "$(field vol0 .counters.increments_completed)"
images=$(field vol0 .counters.collisions_kept) sent=$(field vol0 .counters.collisions_sent_first)
at_least "before-images kept" 1 "$images"
at_least "collisions that waited for the secondary" 1 "$sent"
figure kept "$images"
figure sent_first "$sent"
figure bound_ms "$((run_timer_ms + collision_wait_ms + slack_ms))"
# The rest is long at this speed, and speed is not what is tested.
remap secondary "0 32768 linear /dev/ram0 0"
in_sync vol0
fp down vol0
equal "$work/primary" /dev/mapper/secondary
stop_daemon
