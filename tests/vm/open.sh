#!/bin/bash
# The rules of opening that need a machine of its own: mounts, partitions, device mapper, swap, read-only and locked
# devices, and devices and mounts of ublk. Run as root in the guest: scripts/vm tests/vm/open.sh TEST_BINARY
#
# TEST_BINARY is the one of tests/storage.rs (cargo test --test storage --no-run prints its path); its ignored test
# "probe" opens what it is told to and prints what came of it. FARPOINT_UBLK_SERVER, if set, is a program that serves a
# ublk device in memory: "PROGRAM plain ID" in this mount namespace, "PROGRAM watch ID" in its own, with the watch.

set -euo pipefail

tool=${1:?usage: tests/vm/open.sh TEST_BINARY}
ublk_server=${FARPOINT_UBLK_SERVER:-}
[[ $(id -u) == 0 && -x $tool ]] || { echo "open.sh: needs root and the test binary" >&2; exit 2; }

work=$(mktemp -d)
failures=0 cases=0
started=()

finish() {
    local process
    for process in "${started[@]}"; do kill -9 "$process" 2>/dev/null || true; done
}
trap finish EXIT

# result [NAME=VALUE...]: what opening gives, as "KIND message" on one line.
result() { env "$@" "$tool" --ignored --exact probe --nocapture 2>&1 | sed -n 's/^.*RESULT //p'; }

# expect CASE PATTERN [NAME=VALUE...]
expect() {
    local name=$1 pattern=$2 found
    shift 2
    found=$(result "$@")
    cases=$((cases + 1))
    # shellcheck disable=SC2053  # The pattern is one.
    if [[ $found == $pattern ]]; then
        echo "ok: $name"
    else
        failures=$((failures + 1))
        printf 'FAILED: %s\n  expected %s\n  found    %s\n' "$name" "$pattern" "$found"
    fi
}

# is CASE COMMAND...: the command succeeds.
is() {
    local name=$1
    shift
    cases=$((cases + 1))
    if "$@"; then echo "ok: $name"; else failures=$((failures + 1)); echo "FAILED: $name"; fi
}

not() { ! "$@"; }

# partitioned FILE: a DOS partition table with two partitions of 8 MiB, at 1 MiB and at 9 MiB, by hand, as sfdisk may be
# missing.
partitioned() {
    truncate -s 32M "$1"
    {
        printf '\0\0\0\0\203\0\0\0\0\010\0\0\0\100\0\0'
        printf '\0\0\0\0\203\0\0\0\0\110\0\0\0\100\0\0'
        printf '\0%.0s' {1..32}
        printf '\125\252'
    } | dd of="$1" bs=1 seek=446 conv=notrunc status=none
}

modprobe brd rd_nr=4 rd_size=65536
spare=/dev/ram3

mounts() {
    mkfs.ext4 -q /dev/ram0
    mkdir "$work/mnt"
    mount /dev/ram0 "$work/mnt"
    expect "a mounted device is busy and its mount point is named" "Busy *mounted on \"$work/mnt\"*" PRIMARY=/dev/ram0
    truncate -s 16M "$work/mnt/file"
    expect "a file on it is fine" "Ok *" PRIMARY="$work/mnt/file"
    expect "the device beneath a file is no secondary of it" "Invalid *lies on*" \
        PRIMARY="$work/mnt/file" SECONDARY=/dev/ram0
    expect "a file is no secondary of the device beneath it" "Busy *mounted on*" \
        PRIMARY=/dev/ram0 SECONDARY="$work/mnt/file"
    chattr +i "$work/mnt/file"
    expect "an immutable file is refused" "Permission *immutable*" PRIMARY="$work/mnt/file"
    chattr -i "$work/mnt/file"
    dd if=/dev/zero of="$work/mnt/swap" bs=1M count=8 status=none
    chmod 600 "$work/mnt/swap"
    mkswap -q "$work/mnt/swap" >/dev/null
    swapon "$work/mnt/swap"
    expect "an active swap file is busy" "Busy *swap*" PRIMARY="$work/mnt/swap"
    swapoff "$work/mnt/swap"
    mount -o remount,ro "$work/mnt"
    expect "a file on a read-only file system is refused" "Permission *read-only*" PRIMARY="$work/mnt/file"
    umount "$work/mnt"
    expect "once unmounted it can be a primary" "Ok *" PRIMARY=/dev/ram0
    expect "as a secondary its file system is in the way" "Unsafe *ext4*--force*" PRIMARY=$spare SECONDARY=/dev/ram0
    expect "and not with force" "Ok *" PRIMARY=$spare SECONDARY=/dev/ram0 FORCE=1
}

devices() {
    mkswap /dev/ram1 >/dev/null
    swapon /dev/ram1
    expect "an active swap device is busy" "Busy *swap on*" PRIMARY=/dev/ram1
    swapoff /dev/ram1
    blockdev --setro /dev/ram1
    expect "a read-only device is refused" "Permission *read-only*" PRIMARY=/dev/ram1
    blockdev --setrw /dev/ram1
    flock --no-fork $spare sleep 60 &
    started+=($!)
    sleep 1
    expect "a locked device is busy and who locked it is named" "Busy *locked by process*" PRIMARY=$spare
    kill -9 "${started[-1]}"
    wait "${started[-1]}" 2>/dev/null || true
}

partitions() {
    local disk part
    partitioned "$work/disk"
    disk=$(losetup --find --show --partscan "$work/disk")
    [[ -b ${disk}p1 && -b ${disk}p2 ]] || { echo "skipped: partitions ($disk has none)"; return; }
    expect "a partition can be mirrored to its neighbour" "Ok *" PRIMARY="${disk}p1" SECONDARY="${disk}p2"
    expect "a disk is no secondary of its partition" "Invalid *lies on*" PRIMARY="${disk}p1" SECONDARY="$disk"
    expect "a partition is no secondary of its disk" "Invalid *lies on*" PRIMARY="$disk" SECONDARY="${disk}p1"
    truncate -s 16M "$work/small"
    expect "a partition table is a signature" "Unsafe *partition table*" PRIMARY="$work/small" SECONDARY="$disk"
    expect "a partition is identified by its disk and start" "Ok \"loop:file:*+2048\"*" PRIMARY="${disk}p1"
    mkfs.ext4 -q "${disk}p1"
    mkdir -p "$work/part"
    mount "${disk}p1" "$work/part"
    expect "a disk with a mounted partition is busy" "Busy *p1 is mounted on*" PRIMARY="$disk"
    umount "$work/part"
    part=${disk}p2
    STAY=30 PRIMARY=$part "$tool" --ignored --exact probe >/dev/null 2>&1 &
    started+=($!)
    sleep 2
    is "the whole disk of a partition is locked, so udev stays away" not flock --nonblock "$disk" true
    kill -9 "${started[-1]}"
    wait "${started[-1]}" 2>/dev/null || true
    is "and free after kill -9" flock --nonblock "$disk" true
    losetup --detach "$disk"
}

mapped() {
    local options=(--noudevrules --noudevsync)
    dmsetup create "${options[@]}" one --uuid farpoint-test-one --table "0 32768 linear /dev/ram1 0"
    dmsetup create "${options[@]}" two --table "0 32768 linear /dev/ram1 32768"
    dmsetup mknodes
    expect "a mapped device is identified by its UUID" "Ok \"dm:farpoint-test-one\"*" PRIMARY=/dev/mapper/one
    expect "what a mapped device is built on is busy, and by whom" "Busy *dev/mapper/*is built on /dev/ram1*" \
        PRIMARY=/dev/ram1
    expect "nor is it a secondary of that" "Invalid *lies on*" PRIMARY=/dev/mapper/one SECONDARY=/dev/ram1
    expect "two volumes on one disk may be mirrored" "Ok *" PRIMARY=/dev/mapper/one SECONDARY=/dev/mapper/two FORCE=1
    dmsetup remove "${options[@]}" one
    dmsetup remove "${options[@]}" two
}

# serve MODE ID
serve() {
    "$ublk_server" "$1" "$2" >"$work/server" 2>&1 &
    started+=($!)
    local try
    for try in {1..100}; do
        [[ -b /dev/ublkb$2 ]] && return
        sleep 0.1
    done
    echo "FAILED: no /dev/ublkb$2 after $try tries"
    cat "$work/server"
    exit 1
}

# sees PROCESS: whether it has a file system of a ublk device mounted.
sees() { grep -q /dev/ublkb "/proc/$1/mountinfo"; }

# until_gone COMMAND...: the command fails within five seconds.
until_gone() {
    local try
    for try in {1..50}; do
        "$@" || return 0
        sleep 0.1
    done
    return "$try"
}

own_devices() {
    [[ -n $ublk_server ]] || { echo "skipped: ublk devices (FARPOINT_UBLK_SERVER is not set)"; return; }
    serve plain 3
    expect "our own device is refused" "Invalid *this daemon itself*" OWN=3 PRIMARY=/dev/ublkb3
    expect "another server's device is not" "Ok *" OWN=4 PRIMARY=/dev/ublkb3
    dmsetup create --noudevrules --noudevsync upon --table "0 32768 linear /dev/ublkb3 0"
    dmsetup mknodes
    expect "nor is what lies on our own device" "Invalid *this daemon itself*" OWN=3 PRIMARY=/dev/mapper/upon
    dmsetup remove --noudevrules --noudevsync upon
    mkfs.ext4 -q /dev/ublkb3
    mkdir "$work/own"
    mount /dev/ublkb3 "$work/own"
    truncate -s 16M "$work/own/file"
    expect "nor is a file on a file system on our own device" "Invalid *this daemon itself*" \
        OWN=3 PRIMARY="$work/own/file"
    umount "$work/own"
}

mount_watch() {
    [[ -n $ublk_server ]] || return 0
    local server
    mount --make-rshared /
    serve watch 5
    server=${started[-1]}
    mkfs.ext4 -q /dev/ublkb5
    mkdir "$work/watched"
    mount /dev/ublkb5 "$work/watched"
    is "a mount of the device leaves the daemon's namespace" until_gone sees "$server"
    is "and stays in the host's" mountpoint -q "$work/watched"
    mkdir "$work/other"
    mount -t tmpfs none "$work/other"
    is "a mount of something else reaches the daemon" grep -q "$work/other" "/proc/$server/mountinfo"
    umount "$work/other"
    is "and leaves it" until_gone grep -q "$work/other" "/proc/$server/mountinfo"
    echo content >"$work/watched/file"
    umount "$work/watched"
    expect "once the host has unmounted the device is free" "Ok *" PRIMARY=/dev/ublkb5
    # The host dies with the mount in place: only the daemon could hold it now.
    mount /dev/ublkb5 "$work/watched"
    until_gone sees "$server"
    umount --lazy "$work/watched"
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
    is "kill -9 ends the daemon" until_gone test -d "/proc/$server/task"
}

mounts
devices
partitions
mapped
own_devices
mount_watch
echo "$cases cases, $failures failed"
((failures == 0))
