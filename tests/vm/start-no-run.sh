#!/bin/bash
# start without run: the run timer lets the held writes go and aborts the increment; no write waits longer than that, and
# nothing is lost (P5, H25).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

run_timer_ms=2500

start_daemon
make_volume vol0 "$(sparse primary 64M)" "$(sparse secondary 64M)" --queues 2
fp set vol0 --run-timer-ms "$run_timer_ms"
in_sync vol0
writers_on "$dev" --writers 6 --verify
sleep 1
for policy in keep-before-image send-first; do
    fp set vol0 --collision-policy "$policy"
    number=$(fp start vol0 --json | jq .increment)
    fp wait vol0 --until normal --timeout "$patience"
    expect "why increment $number ended" "increment $number: run did not come*" "$(field vol0 .reason)"
    refused "run afterwards" 4 "*" fp run vol0
done
# Its own timer for one start.
fp start vol0 --run-timer-ms 1000
fp wait vol0 --until normal --timeout "$patience"
at_most "longest hold in microseconds" $(((run_timer_ms + slack_ms) * 1000)) "$(field vol0 .counters.hold_us_max)"
end_writers
at_least "longest write in ms: one was held" 900 "$longest_ms"
at_most "longest write in ms" $((run_timer_ms + slack_ms)) "$longest_ms"
expect "increments aborted" 3 "$(field vol0 .counters.increments_aborted)"
in_sync vol0
fp down vol0
equal "$work/primary" "$work/secondary"
figure longest_write_ms "$longest_ms"
figure bound_ms "$run_timer_ms+$slack_ms"
stop_daemon
