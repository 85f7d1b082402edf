#!/bin/bash
# The whole way once: create, up, write, one consistency point with the three commands, in sync, down, delete (P3, P6).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

start_daemon
fp create vol0 --primary "$(sparse primary 64M)" --secondary "$(sparse secondary 64M)"
expect "a new volume must be copied once" true "$(field vol0 .full_copy_needed)"
bring_up vol0
fp set vol0 --run-timer-ms 20000
expect "size of the device in sectors" 131072 "$(sectors_of "$dev")"
in_sync vol0
dd if=/dev/urandom of="$work/data" bs=64K count=64 status=none
dd if="$work/data" of="$dev" bs=64K seek=100 oflag=direct conv=notrunc status=none
fp start vol0
expect "state between start and run" increment-pending "$(field vol0 .state)"
fp run vol0
fp wait vol0 --until drained --timeout "$patience"
expect "state until increment-complete" increment-in-progress "$(field vol0 .state)"
dd if="$work/secondary" of="$work/point" bs=64K skip=100 count=64 status=none
cmp "$work/data" "$work/point" || fail "the point does not hold what was written before start"
# After the cut: it must not reach the point before increment-complete.
dd if=/dev/zero of="$dev" bs=64K seek=100 count=64 oflag=direct conv=notrunc status=none
sleep 1
dd if="$work/secondary" of="$work/point" bs=64K skip=100 count=64 status=none
cmp "$work/data" "$work/point" || fail "the point changed before increment-complete"
fp increment-complete vol0
in_sync vol0
expect "tracks out of sync" 0 "$(field vol0 .out_of_sync_tracks)"
expect "increments completed" 1 "$(field vol0 .counters.increments_completed)"
figure hold_us "$(field vol0 .counters.hold_us_max)"
fp down vol0
[[ ! -e $dev ]] || fail "$dev is still there after down"
equal "$work/primary" "$work/secondary"
fp delete vol0 --yes
expect "volumes left" "no volumes" "$(fp status)"
stop_daemon
