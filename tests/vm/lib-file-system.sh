# shellcheck shell=bash
# A file system on the device with a tree of real work: a copied tree, then files made, filled, renamed, linked, truncated,
# synced and removed by several threads while increments are formed; then fsck of the device and of a copy of the point,
# and the same tree from the secondary as from the device (P1, P2, P3, P6).
#
# Sourced by ext4.sh and xfs.sh, which say how to make and check theirs.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

# file_system SIZE: with make_it NODE and check_it NODE, and options for mount of a copy in copy_options.
file_system() {
    local size=$1 files=300 operations=300 increments=4 number live
    [[ -z $long ]] || files=4000 operations=3000 increments=20
    local live_mount=$work/live
    start_daemon
    make_volume vol0 "$(sparse primary "$size")" "$(sparse secondary "$size")" --queues 2
    fp set vol0 --run-timer-ms 20000 --collision-wait-ms 20000
    make_it "$dev"
    mount_at "$dev" "$live_mount"
    say "copying a tree"
    mkdir "$live_mount/tree"
    # The reader of the names ends early, and that is no error.
    { find /usr/share /usr/lib /etc -xdev -type f -size -100k -readable -print0 2>/dev/null || true; } |
        { head --zero-terminated -n "$files"; cat >/dev/null; } >"$work/list"
    tar --create --file="$work/tar" --files-from="$work/list" --null 2>"$work/tar.log" || true
    tar --extract --file="$work/tar" --directory="$live_mount/tree"
    rm "$work/tar"
    sync --file-system "$live_mount"
    live=$("$device" digest "$live_mount/tree")
    say "$live"
    background "$device" churn "$live_mount" --operations "$operations" --threads 4
    for ((number = 0; number < increments; number++)); do point "$number"; done
    finish "$job" "the churn"
    # The tree was not touched since it was synced: the last point has it.
    fp start vol0
    fp run vol0
    fp wait vol0 --until drained --timeout "$patience"
    cp --sparse=always "$work/secondary" "$work/copy"
    fp increment-complete vol0
    expect "the tree in the last point" "$live" "$(digest_of_copy tree)"
    live=$("$device" digest "$live_mount")
    unmount "$live_mount"
    check_it "$dev" || fail "the file system on the device is damaged"
    in_sync vol0
    fp down vol0
    equal "$work/primary" "$work/secondary"
    cp --sparse=always "$work/secondary" "$work/copy"
    expect "everything, from the secondary" "$live" "$(digest_of_copy .)"
    figure increments "$increments"
    figure collisions_kept "$collisions"
    stop_daemon
}

collisions=0

# point NUMBER: a point in the middle of the work; a copy of it must be a file system that mends itself by its journal.
point() {
    fp start vol0
    fp run vol0
    fp wait vol0 --until drained --timeout "$patience"
    cp --sparse=always "$work/secondary" "$work/copy"
    fp increment-complete vol0
    collisions=$(field vol0 .counters.collisions_kept)
    digest_of_copy tree >"$work/digest" || fail "the copy of point $1 cannot be read"
    say "point $1: $(cat "$work/digest")"
}

# digest_of_copy DIRECTORY: replays the copy's journal, checks it, and prints the digest of the tree in it.
digest_of_copy() {
    local node
    loop_device "$work/copy"
    # shellcheck disable=SC2154 # Of the file that reads this one.
    mount_at "$node" "$work/seen" "${copy_options[@]}" >&2
    "$device" digest "$work/seen/$1"
    unmount "$work/seen" >&2
    check_it "$node" >&2 || fail "the copy is damaged" >&2
    losetup --detach "$node" >&2
}
