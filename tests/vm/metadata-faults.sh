#!/bin/bash
# Metadata that hangs, fails, or is slow when the daemon ends: writes to regions that are marked go on, others wait or get an
# error, status says so; the volume can be taken down, and comes back with both sides equal (P1, P5, H9, H23).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

mib=160
good="0 16384 linear /dev/ram0 0"

# cold_writes: all over the volume, nearly each to a region that is not marked.
cold_writes() { writers_on "$dev" --hot $((mib << 20)) --writers 6 --largest 4096 "$@"; }

is_stalled() { [[ $(field vol0 .metadata_stalled_s) != null ]]; }

# marked_write: to a region that has just been written to.
marked_write() { timeout 20 dd if=/dev/urandom of="$dev" bs=4K count=1 oflag=direct conv=notrunc status=none; }

# cold_write: to sixteen at once that, but for a few, have not.
cold_write() { dd if=/dev/urandom of="$dev" bs=64K count=1 seek=$((mib * 8 + RANDOM % 1024)) oflag=direct conv=notrunc status=none; }

ended_uncleanly() {
    local status=0
    fp down vol0 "$@" >"$work/down" 2>&1 || status=$?
    expect "down: exit code" "[1-9]" "$status"
    expect "down: message" "*metadata*" "$(<"$work/down")"
}

come_back() {
    expect "state" failed "$(field vol0 .state)"
    fp down vol0
    wait_for "the metadata to be let go" fp up vol0
    dev=$(device_of vol0)
    at_least "regions to copy again" 1 "$(field vol0 .recovered_regions)"
}

is_served() { [[ $(field vol0 .state) == @(normal|increment-*|aborting) ]]; }

start_daemon
ram_disk 0 8 metadata
metadata=$node
map secondary "0 $((mib * 1024)) linear /dev/ram1 0" "$((mib * 1024)) $((mib * 1024)) linear /dev/ram2 0"
secondary=$node
blkdiscard --force --zeroout "$secondary"
# Small regions: more than one page of intent, and with it a log.
make_volume vol0 "$(sparse primary "${mib}M")" "$secondary" --metadata "$metadata" --queues 2 \
    --track-size 4KiB --region-size 4KiB
in_sync vol0

say "it hangs"
marked_write
cold_writes --errors-allowed
sleep 2
dmsetup suspend --noudevsync --nolockfs --noflush metadata
wait_for "the status to say so" is_stalled
kill -0 "$writers" || fail "the writes did not wait"
ended_uncleanly --force --yes
end_writers
at_least "errors of the writers" 1 "$errors"
dmsetup resume --noudevsync metadata
come_back
in_sync vol0
equal "$work/primary" "$secondary"

say "it fails"
marked_write
remap metadata "0 16384 error"
! cold_write 2>"$work/cold" || fail "a write went on without its intent"
expect "metadata failed" true "$(field vol0 .metadata_failed)"
marked_write || fail "a write to a marked region failed"
ended_uncleanly
remap metadata "$good"
come_back
in_sync vol0
equal "$work/primary" "$secondary"

say "it is slow when the daemon ends, and the secondary hangs"
cold_writes
sleep 2
remap metadata "0 16384 delay /dev/ram0 0 0 /dev/ram0 0 300"
sleep 2
dmsetup suspend --noudevsync --nolockfs --noflush secondary
stops=$(grep --count 'INFO vol0 is down' "$work/daemon.log" || true)
kill -TERM "$daemon"
is_down() { (($(grep --count 'INFO vol0 is down' "$work/daemon.log") > stops)); }
wait_for "the volume to be stored" is_down
# The process does not end before the secondary answers, if it was just being flushed.
dmsetup resume --noudevsync secondary
daemon_ends
remap metadata "$good"
start_daemon
wait_for "the device to be taken back" is_served
expect "regions that are copied again" 0 "$(field vol0 .recovered_regions)"
end_writers
expect "errors of the writers" 0 "$errors"
in_sync vol0
equal "$work/primary" "$secondary"
stop_daemon
