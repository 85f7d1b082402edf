#!/bin/bash
# Increment after increment over two volumes under full load, each point checked by an independent checker of dependent
# writes and checked again just before increment-complete; both collision policies, a pool of before-images that runs full;
# the checker is shown to find a spoiled point (P2, P3, P4, P6, H11, H12, H14).
#
# One volume is on block devices with tracks of 64 KiB, the other in files with tracks of 16 KiB and two queues. The long form
# completes 200 increments.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

count=10 collisions=50
[[ -z $long ]] || count=100 collisions=250

"$device" self-test
start_daemon
ram_disk 0 16 primary
primary=$node
ram_disk 1 16 secondary
make_volume one "$primary" "$node" --image-pool 1MiB
first=$dev
make_volume two "$(sparse two 8M)" "$(sparse two-secondary 8M)" --track-size 16KiB --image-pool 256KiB --queues 2
fp set one two --run-timer-ms 30000 --collision-wait-ms 30000
in_sync one two
"$device" increments --socket "$work/run/control.sock" --count "$count" --collisions-min "$collisions" \
    --volume "one,$first,$primary,/dev/mapper/secondary" --volume "two,$dev,$work/two,$work/two-secondary" |
    tee "$work/increments" || fail "see above"
figure increments "$(($(field one .counters.increments_completed)))"
figure kept "$(($(field one .counters.collisions_kept) + $(field two .counters.collisions_kept)))"
figure sent_first "$(($(field one .counters.collisions_sent_first) + $(field two .counters.collisions_sent_first)))"
figure aborted "$(field one .counters.increments_aborted)"
figure longest_write_ms "$(sed -n 's/.*longest-write-ms \([0-9]*\).*/\1/p' "$work/increments")"
fp down one
fp down two
stop_daemon
