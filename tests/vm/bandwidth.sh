#!/bin/bash
# The bandwidth limit holds: over seconds the drain sends no more than it may, nor much less; it can be changed while it runs,
# and does not slow the host (P5, P6).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

limit=$((2 << 20))

start_daemon
make_volume vol0 "$(sparse primary 64M)" "$(sparse secondary 64M)"
in_sync vol0
fp set vol0 --bandwidth-limit "$limit"
before=$(field vol0 .counters.drained_bytes)
began=${EPOCHREALTIME/./}
dd if=/dev/urandom of="$dev" bs=1M count=32 oflag=direct conv=notrunc status=none
host_ms=$(((${EPOCHREALTIME/./} - began) / 1000))
sleep 6
sent=$(($(field vol0 .counters.drained_bytes) - before))
passed_ms=$(((${EPOCHREALTIME/./} - began) / 1000))
rate=$((sent * 1000 / passed_ms))
# One request and the burst may come on top; a fifth for the time between looking at the two.
at_most "bytes per second" $((limit * 12 / 10 + (1 << 20) * 1000 / passed_ms)) "$rate"
at_least "bytes per second" $((limit / 4)) "$rate"
at_least "bytes out of sync still" $((8 << 20)) "$(field vol0 .out_of_sync_bytes)"
fp set vol0 --bandwidth-limit 0
in_sync vol0
figure rate "$rate"
figure limit "$limit"
figure host_ms "$host_ms"
fp down vol0
equal "$work/primary" "$work/secondary"
stop_daemon
