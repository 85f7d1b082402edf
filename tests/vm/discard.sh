#!/bin/bash
# Discard and write-zeroes: the device reads zeroes, primary and secondary stay equal, and one that comes after the cut does
# not reach the point (H18).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

mib=$((1 << 20))

# zero OFFSET LENGTH: the device reads zeroes there.
zero() { cmp --bytes="$2" --ignore-initial="$1:0" "$dev" /dev/zero || fail "not zero: $2 bytes at $1"; }

# fill: every byte of the device is something.
fill() { filled x $((32 * mib)) | dd of="$dev" bs=1M oflag=direct iflag=fullblock conv=notrunc status=none; }

# rounds NAME SECONDARY
rounds() {
    local name=$1 secondary=$2 primary
    primary=$(sparse "$name-primary" 32M)
    say "secondary $secondary"
    make_volume "$name" "$primary" "$secondary"
    at_least "largest discard" 65536 "$(cat "/sys/block/${dev##*/}/queue/discard_max_bytes")"
    at_least "largest write-zeroes" 65536 "$(cat "/sys/block/${dev##*/}/queue/write_zeroes_max_bytes")"
    fill
    in_sync "$name"
    blkdiscard --offset $((4 * mib)) --length $((2 * mib)) "$dev"
    blkdiscard --offset $((8 * mib + 4096)) --length $((mib + 8192)) "$dev"
    blkdiscard --zeroout --offset $((16 * mib + 512)) --length $((mib + 1024)) "$dev"
    blkdiscard --zeroout --offset $((20 * mib)) --length $((3 * mib)) "$dev"
    in_sync "$name"
    zero $((4 * mib)) $((2 * mib))
    zero $((8 * mib + 4096)) $((mib + 8192))
    zero $((16 * mib + 512)) $((mib + 1024))
    zero $((20 * mib)) $((3 * mib))
    fio --name=trim --filename="$dev" --direct=1 --ioengine=libaio --rw=randtrimwrite --bs=64k --iodepth=8 \
        --offset=24M --size=4M --verify=crc32c --output="$work/fio" || fail "fio: $(tail -n 20 "$work/fio")"
    in_sync "$name"
    equal "$primary" "$secondary"
}

# in_increment NAME SECONDARY: everything is discarded after the cut, with not one track of it sent.
in_increment() {
    local name=$1 secondary=$2
    fp set "$name" --run-timer-ms 20000
    fp pause "$name"
    fill
    fp start "$name"
    fp run "$name"
    blkdiscard "$dev"
    zero 0 $((32 * mib))
    fp resume "$name"
    fp wait "$name" --until drained --timeout "$patience"
    filled x $((32 * mib)) | cmp --bytes=$((32 * mib)) - "$secondary" || fail "the point lacks what the discard removed"
    at_least "images kept" 512 "$(field "$name" .counters.collisions_kept)"
    fp increment-complete "$name"
    in_sync "$name"
    cmp --bytes=$((32 * mib)) "$secondary" /dev/zero || fail "the secondary is not zero after the discard"
    expect "tracks sent as zeroes" "[1-9]*" "$(field "$name" .counters.zero_tracks)"
}

start_daemon
secondary=$(sparse secondary 32M)
rounds to-file "$secondary"
in_increment to-file "$secondary"
fp down to-file
ram_disk 0 32 secondary
rounds to-device "$node"
fp down to-device
stop_daemon
