#!/bin/bash
# pause stops the drain and nothing else: writes go on and are tracked, exactly the tracks written are sent after resume; an
# increment can be cut while it is paused and is drained afterwards (P1, P2, P6).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

start_daemon
make_volume vol0 "$(sparse primary 64M)" "$(sparse secondary 64M)"
fp set vol0 --run-timer-ms 20000
in_sync vol0
fp pause vol0
sent=$(field vol0 .counters.drained_tracks)
dd if=/dev/urandom of="$dev" bs=64K count=100 seek=7 oflag=direct conv=notrunc status=none
dd if=/dev/urandom of="$dev" bs=4K count=1 seek=4001 oflag=direct conv=notrunc status=none
# Over the border of two tracks.
dd if=/dev/urandom of="$dev" bs=4K count=2 seek=8015 oflag=direct conv=notrunc status=none
expect "link" paused "$(field vol0 .link)"
expect "tracks out of sync" 103 "$(field vol0 .out_of_sync_tracks)"
sleep 1
expect "tracks sent while paused" "$sent" "$(field vol0 .counters.drained_tracks)"
cmp --quiet "$work/primary" "$work/secondary" && fail "the secondary followed while paused"
fp start vol0
fp run vol0
refused "to drain while paused" 5 "*" fp wait vol0 --until drained --timeout 1
dd if=/dev/zero of="$dev" bs=64K count=10 seek=7 oflag=direct conv=notrunc status=none
expect "tracks recorded apart" 10 "$(field vol0 .recorded_tracks)"
cp --sparse=always "$work/primary" "$work/now"
fp resume vol0
fp wait vol0 --until drained --timeout "$patience"
expect "tracks sent for the point" $((sent + 103)) "$(field vol0 .counters.drained_tracks)"
cmp --quiet "$work/now" "$work/secondary" && fail "the point holds what was written after the cut"
fp increment-complete vol0
in_sync vol0
expect "tracks sent in all" $((sent + 113)) "$(field vol0 .counters.drained_tracks)"
fp down vol0
equal "$work/primary" "$work/secondary"
stop_daemon
