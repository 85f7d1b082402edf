#!/bin/bash
# Two volumes in one start, and the secondary of one fails: the increment is aborted on both, with one reason that names the
# volume; nothing is lost, and the next one is a later number (P2, P5).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

good="0 65536 linear /dev/ram0 0"

start_daemon
ram_disk 0 32 secondary
make_volume one "$(sparse one 32M)" "$(sparse one-secondary 32M)"
first=$dev
make_volume two "$(sparse two 32M)" "$node" --image-pool 1MiB
fp set one two --collision-wait-ms 1000 --increment-timer-ms 8000 --run-timer-ms 5000
in_sync one two

say "no write collides: the increment timer ends it"
fp pause two
dd if=/dev/urandom of="$dev" bs=64K count=64 oflag=direct conv=notrunc status=none
remap secondary "0 65536 error"
number=$(fp start one two --json | jq .increment)
fp run one two
fp resume two
refused "to complete it now" 4 "*" fp increment-complete one two
fp wait one two --until normal --timeout "$patience"
for each in one two; do
    expect "why $each ended" "increment $number: *increment timer expired" "$(field "$each" .reason)"
    expect "$each: increments aborted" 1 "$(field "$each" .counters.increments_aborted)"
done

say "writes collide: the volume that fails says so, and both end"
"$device" write "$first" "$dev" --writers 4 --hot $((8 << 20)) --until "$work/enough" >"$work/writers" 2>&1 &
writers=$!
jobs+=("$writers")
sleep 1
number=$(fp start one two --json | jq .increment)
fp run one two
fp wait one two --until normal --timeout "$patience"
for each in one two; do
    expect "why $each ended" "increment $number: two: *too long for the secondary" "$(field "$each" .reason)"
    expect "$each: increments aborted" 2 "$(field "$each" .counters.increments_aborted)"
done
end_writers
at_most "longest write in ms" $((5000 + 1000 + slack_ms)) "$longest_ms"

say "and it heals"
remap secondary "$good"
# It may be tried again only after half a minute.
in_sync two
next=$(fp start one two --json | jq .increment)
fp run one two
at_least "number of the next increment" $((number + 1)) "$next"
fp wait one two --until drained --timeout "$patience"
fp increment-complete one two
in_sync one two
fp down one
fp down two
equal "$work/one" "$work/one-secondary"
equal "$work/two" /dev/mapper/secondary
figure longest_write_ms "$longest_ms"
stop_daemon
