#!/bin/bash
# A flush and a write with FUA reach the primary's medium: the primary is a loop device, which counts the flushes it gets;
# and a flush waits for nothing but the primary (P5, H29).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

# flushes: how many the primary has completed.
flushes() {
    local words
    read -r -a words <"/sys/block/${primary##*/}/stat"
    echo "${words[15]}"
}

# grows WHAT COMMAND...: the command makes the primary flush.
grows() {
    local what=$1 before after
    shift
    before=$(flushes)
    "$@"
    after=$(flushes)
    at_least "flushes of the primary: $what" $((before + 1)) "$after"
}

sync_write() { dd if=/dev/zero of="$dev" bs=4k count=1 seek=3 oflag=direct conv=notrunc,fsync status=none; }
fua_write() { dd if=/dev/zero of="$dev" bs=4k count=1 seek=5 oflag=direct,dsync conv=notrunc status=none; }

start_daemon
loop_device "$(sparse primary 32M)"
primary=$node
map secondary "0 65536 linear /dev/ram0 0"
make_volume vol0 "$primary" "$node" --force --yes
queue=/sys/block/${dev##*/}/queue
expect "write cache of the device" "write back" "$(cat "$queue/write_cache")"
expect "FUA of the device" 1 "$(cat "$queue/fua")"
in_sync vol0
before=$(flushes)
dd if=/dev/zero of="$dev" bs=4k count=8 oflag=direct conv=notrunc status=none
expect "flushes of the primary after plain writes" "$before" "$(flushes)"
grows "fsync" sync_write
# The kernel sends a flush of its own after the write with FUA: one more than that must reach the primary.
asked=$(field vol0 .counters.host_flushes) done=$(flushes)
grows "FUA" fua_write
asked=$(($(field vol0 .counters.host_flushes) - asked)) done=$(($(flushes) - done))
at_least "flushes of the primary for a write with FUA and $asked flushes" $((asked + 1)) "$done"
fp pause vol0
grows "fsync with the drain paused" sync_write
fp resume vol0
dmsetup suspend --noudevsync --nolockfs --noflush secondary
sync_write
grows "fsync with a secondary that hangs" sync_write
dmsetup resume --noudevsync secondary
in_sync vol0
fp down vol0
equal "$primary" /dev/mapper/secondary
stop_daemon
