#!/bin/bash
# Primary, secondary and metadata are three slices of one dm-log-writes device, so that one log has the order of all three.
# It is replayed, and what a power cut would have left is checked at every entry, every flush included; at some points the
# volume is really started from there and becomes equal (P1, P5, P6, H1, H3, H4, H7, H22, H29).
#
# In the log are a first copy, a clean stop and start, writers, increments, a killed daemon with one under way, and regions
# that become cold.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

increments=3 writers_s=24 starts=3 seed=${FARPOINT_SEED:-$(date +%s)}
[[ -z $long ]] || increments=15 writers_s=90 starts=12
say "seed $seed (FARPOINT_SEED)"
# With regions as small as these there are two intent pages.
side_mib=160 metadata_mib=1 shape=(--track-size 4KiB --region-size 4KiB)
modprobe dm-log-writes || skip "this kernel has no dm-log-writes"

# slices COMMAND DEVICE: primary, secondary and metadata on it.
slices() {
    local sectors=$((side_mib * 2048))
    "$1" primary "0 $sectors linear $2 0"
    "$1" secondary "0 $sectors linear $2 $sectors"
    "$1" metadata "0 $((metadata_mib * 2048)) linear $2 $((2 * sectors))"
}

replay() {
    "$device" replay "$work/log" --side $((side_mib << 20)) --metadata $((metadata_mib << 20)) --seed "$seed" "$@"
}

# increment: one from start to end.
increment() {
    fp start vol0
    fp run vol0
    fp wait vol0 --until drained --timeout "$patience"
    fp increment-complete vol0
}

say "recording"
image_mib=$((2 * side_mib + metadata_mib))
loop_device "$(sparse logged "${image_mib}M")"
below=$node
loop_device "$(sparse log 4G)"
map logged "0 $((image_mib * 2048)) log-writes $below $node"
slices map /dev/mapper/logged
start_daemon
make_volume vol0 /dev/mapper/primary /dev/mapper/secondary --metadata /dev/mapper/metadata --queues 2 --image-pool 4MiB \
    "${shape[@]}"
fp set vol0 --run-timer-ms 20000 --collision-wait-ms 5000
in_sync vol0
fp down vol0
bring_up vol0
background "$device" marked "$dev" --log logged --until "$work/enough" --seed "$seed"
writer=$job
for ((each = 0; each < increments; each++)); do
    sleep $((writers_s / increments / 2))
    increment
done
fp pause vol0
sleep 1
fp start vol0
fp run vol0
kill_daemon
start_daemon
wait_for "the device to be taken back" in_state vol0 .state normal
sleep $((writers_s / 2))
touch "$work/enough"
finish "$writer" "the writers"
at_least "records of the intent log" 50 "$(field vol0 .counters.intent_records)"
in_sync vol0
wait_for "all regions to be cold" in_state vol0 .hot_regions 0
fp down vol0
stop_daemon

say "replaying"
# A log ends when its device goes; what is on it now is under the slices already.
slices remap "$below"
dmsetup remove --noudevrules --noudevsync logged
replay --starts "$starts" >"$work/replayed" 2>&1 || fail "$(cat "$work/replayed")"
cat "$work/replayed"
equal /dev/mapper/primary /dev/mapper/secondary
say "all of the log is what is there"
replay --until 999999999 --image "$work/image"
equal "$work/logged" "$work/image"
read -r -a counts < <(sed -n 's/^in the order of the log: //p' "$work/replayed")
declare -A found
for each in "${counts[@]}"; do
    figure "${each%=*}" "${each#*=}"
    found[${each%=*}]=${each#*=}
done
# Without these it would have checked nothing.
at_least "flushes" 100 "${found[flushes]}"
at_least "marks of flushed writes" 20 "${found[marks]}"
at_least "tracks that differ, at most" 10 "${found[most_differing]}"
at_least "entries at which they differ and a start copies a part only" 50 "${found[partly_cold]}"

say "starting from what was left at some of the flushes"
mapfile -t points < <(sed -n 's/^start-at=\([0-9]*\) .*/\1/p' "$work/replayed")
expect "places to start from" "$starts" "${#points[@]}"
for each in "${points[@]}"; do
    replay --until "$each" --image "$work/image"
    loop_device "$work/image"
    slices remap "$node"
    fp check /dev/mapper/metadata
    start_daemon
    bring_up vol0
    expect "full copy needed after entry $each" false "$(field vol0 .full_copy_needed)"
    expect "the increment under way" null "$(field vol0 .increment)"
    at_least "regions to copy again" 1 "$(field vol0 .recovered_regions)"
    in_sync vol0
    fp down vol0
    equal /dev/mapper/primary /dev/mapper/secondary
    stop_daemon
done
figure starts "${#points[@]}"
