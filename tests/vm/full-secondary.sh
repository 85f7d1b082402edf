#!/bin/bash
# A file secondary on a file system that runs full: the host sees nothing of it, the link is reported as failing, an increment
# under way is not completed, and when there is room again both sides become equal (P1, P5, H16).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

start_daemon
ram_disk 0 112 small
mkfs.ext4 -q "$node"
mount_at "$node" "$work/small"
fallocate --length 76M "$work/small/filler"
truncate --size=64M "$work/small/secondary"
make_volume vol0 "$(sparse primary 64M)" "$work/small/secondary"
fp set vol0 --run-timer-ms 10000 --collision-wait-ms 2000
in_sync vol0
writers_on "$dev" --writers 4 --largest 131072 --hot $((40 << 20)) --pause-ms 1
wait_for "the link to be failing" in_state vol0 .link failing
say "the increment timer ends an increment that cannot be drained"
fp set vol0 --increment-timer-ms 4000
fp start vol0
fp run vol0
fp wait vol0 --until normal --timeout "$patience"
expect "increments completed" 0 "$(field vol0 .counters.increments_completed)"
end_writers
expect "errors of the writers" 0 "$errors"
at_most "longest write in ms" $((10000 + 2000 + slack_ms)) "$longest_ms"
expect "link" failing "$(field vol0 .link)"
rm "$work/small/filler"
in_sync vol0
expect "link" up "$(field vol0 .link)"
equal "$work/primary" "$work/small/secondary"
figure longest_write_ms "$longest_ms"
fp down vol0
stop_daemon
