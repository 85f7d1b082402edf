#!/bin/bash
# The daemon lives in a mount namespace of its own: a file system on its device is not mounted there, so a killed daemon
# does not wait for itself in exit (H27).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

free_of_device() { ! grep --quiet "$dev " "/proc/$daemon/mountinfo"; }

start_daemon
make_volume vol0 "$(sparse primary 64M)" "$(sparse secondary 64M)"
[[ $(readlink "/proc/$daemon/ns/mnt") != $(readlink /proc/1/ns/mnt) ]] || fail "the daemon has the host's mount namespace"
mkfs.ext4 -q "$dev"
mount_at "$dev" "$work/mnt"
wait_for "the mount to leave the daemon's namespace" free_of_device
mountpoint --quiet "$work/mnt" || fail "the host lost its mount"
echo content >"$work/mnt/file"
sync --file-system "$work/mnt/file"
say "killing the daemon with the file system mounted and dirty"
dd if=/dev/zero of="$work/mnt/dirty" bs=64K count=100 status=none
kill_daemon
start_daemon
wait_for "the device to be taken back" in_state vol0 .state normal
wait_for "the mount to leave the new daemon's namespace" free_of_device
expect "what was synced before the kill" content "$(cat "$work/mnt/file")"
unmount "$work/mnt"
fp down vol0
stop_daemon
