#!/bin/bash
# A secondary that does not answer at all, neither well nor badly: no write of the host waits for it longer than the bound
# that farpoint states, in normal mode and during an increment with collisions, under both policies and with a pool of
# before-images that runs full; and afterwards both sides become equal. A volume whose secondary does not answer can be
# taken down (P5, P6, H13, H21).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

run_timer_ms=2000
collision_wait_ms=1000
bound_ms=$((run_timer_ms + collision_wait_ms + slack_ms))
# How long it hangs: more than the bound, so that who waits for it is found out.
hang_s=9

hang() { dmsetup suspend --noudevsync --nolockfs --noflush secondary; }
answer() { dmsetup resume --noudevsync secondary; }

# while_hung WHAT: the writers of this case end while the secondary still hangs.
while_hung() {
    wait_for "the link to be stalled" in_state vol0 .link stalled
    sleep "$hang_s"
    end_writers
    at_most "$1: longest write in ms" "$2" "$longest_ms"
    expect "$1: errors of the writers" 0 "$errors"
    figure "longest_ms_$1" "$longest_ms"
    answer
    in_sync vol0
    equal "$work/primary" /dev/mapper/secondary
}

start_daemon
ram_disk 0 64 secondary
# 32 images only: they do not last.
make_volume vol0 "$(sparse primary 64M)" "$node" --image-pool 2MiB --queues 2
fp set vol0 --run-timer-ms "$run_timer_ms" --collision-wait-ms "$collision_wait_ms"
in_sync vol0

say "in normal mode"
writers_on "$dev" --hot $((16 << 20)) --writers 6
sleep 1
hang
while_hung normal "$slack_ms"
expect "increments aborted" 0 "$(field vol0 .counters.increments_aborted)"

for policy in keep-before-image send-first; do
    say "during an increment, $policy"
    aborted=$(field vol0 .counters.increments_aborted)
    fp set vol0 --collision-policy "$policy"
    writers_on "$dev" --hot $((16 << 20)) --writers 6
    sleep 1
    hang
    sleep 1
    fp start vol0
    fp run vol0
    fp wait vol0 --until normal --timeout "$patience"
    expect "why the increment ended" "*had to wait too long for the secondary" "$(field vol0 .reason)"
    expect "increments aborted" "$((aborted + 1))" "$(field vol0 .counters.increments_aborted)"
    while_hung "$policy" "$bound_ms"
done
at_least "before-images kept" 1 "$(field vol0 .counters.collisions_kept)"
at_least "collisions that waited for the secondary" 2 "$(field vol0 .counters.collisions_sent_first)"
at_most "longest wait of a write by farpoint's own account, in microseconds" $((bound_ms * 1000)) \
    "$(field vol0 .counters.write_wait_us_max)"
figure bound_ms "$bound_ms"
fp down vol0

# Zeroes are made by a worker of the kernel, which cannot be interrupted.
say "down while it does not answer to zeroes"
ram_disk 1 16 zeroed
make_volume vol1 "$(sparse primary1 16M)" "$node"
in_sync vol1
fp pause vol1
dd if=/dev/zero of="$dev" bs=1M count=16 oflag=direct conv=notrunc status=none
dmsetup suspend --noudevsync --nolockfs --noflush zeroed
fp resume vol1
wait_for "the link to be stalled" in_state vol1 .link stalled
fp --timeout "$patience" down vol1
expect "the state" down "$(field vol1 .state)"
at_least "tracks out of sync" 1 "$(field vol1 .out_of_sync_tracks)"
dmsetup resume --noudevsync zeroed
wait_for "the files to be let go" fp up vol1
in_sync vol1
equal "$work/primary1" "$node"
fp down vol1
stop_daemon
