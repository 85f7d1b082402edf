#!/bin/bash
# Primaries and secondaries of every kind: files on ext4, xfs, btrfs and tmpfs, and block devices with 512 and 4096 byte
# blocks; the device takes its block size from the primary, and both sides are equal in the end (P5, P6, H29).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

size=48M
bytes=$((48 << 20))

# round NAME PRIMARY SECONDARY BLOCK
round() {
    local name=$1 primary=$2 secondary=$3 block
    say "$name: $primary to $secondary"
    make_volume "$name" "$primary" "$secondary"
    block=$(cat "/sys/block/${dev##*/}/queue/logical_block_size")
    expect "logical block of $name" "$4" "$block"
    "$device" write "$dev" --seconds 2 --writers 4 --block "$block" --largest 131072 --hot $((4 << 20)) --pause-ms 0 --verify
    blkdiscard --zeroout --offset $((8 << 20)) --length $((1 << 20)) "$dev"
    in_sync "$name"
    expect "errors of $name" 0 "$(field "$name" .counters.host_errors)"
    fp down "$name"
    equal "$primary" "$secondary"
}

# file_system KIND: makes one and a file on it; sets $file.
file_system() {
    case $1 in
        tmpfs) mount_at none "$work/mnt-tmpfs" -t tmpfs ;;
        *)
            # The smallest that all of them take.
            loop_device "$(sparse "$1" 320M)"
            "mkfs.$1" -q "$node" >/dev/null 2>&1
            mount_at "$node" "$work/mnt-$1"
            ;;
    esac
    file=$work/mnt-$1/primary
    truncate --size=$size "$file"
}

start_daemon
for kind in ext4 xfs btrfs tmpfs; do
    if ! modprobe --quiet "$kind" && ! grep --quiet --word-regexp "$kind" /proc/filesystems; then
        say "this kernel has no $kind"
        continue
    fi
    file_system "$kind"
    # btrfs takes direct I/O by its own blocks only.
    blocks=512
    [[ $kind != btrfs ]] || blocks=4096
    round "$kind" "$file" "$(sparse "$kind-secondary" $size)" "$blocks"
    unmount "$work/mnt-$kind"
done
ram_disk 0 48 block-primary
primary=$node
ram_disk 1 48 block-secondary
round block "$primary" "$node" 512
loop_device "$(sparse large-blocks $size)" --sector-size 4096 --direct-io=off
round large-blocks "$node" "$(sparse large-blocks-secondary $size)" 4096
figure bytes "$bytes"
stop_daemon
