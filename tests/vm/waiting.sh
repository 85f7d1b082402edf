#!/bin/bash
# A device that cannot be taken back waits, says why, and can be removed: its primary is away, its volume or its metadata
# is not known for a while, or nobody wants it any more (H22).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

is_served() { [[ $(field vol0 .state) == @(normal|increment-*|aborting) ]]; }

start_daemon
make_volume vol0 "$(sparse primary 32M)" "$(sparse secondary 32M)" --queues 2
first=$dev
in_sync vol0

say "it cannot be taken back: the primary is away"
dd if=/dev/urandom of="$dev" bs=64K count=4 oflag=direct conv=notrunc status=none
background dd if=/dev/zero of="$dev" bs=64K count=400 oflag=direct conv=notrunc status=none
copier=$job
kill_daemon
mv "$work/primary" "$work/away"
start_daemon
wait_for "the volume to say why" in_state vol0 .state waiting
wait_for "the volume to say why" in_state vol0 .reason "*$work/primary*"
expect "the device that waits" "$first" "$(device_of vol0)"
refused "delete" 4 "*not down*" fp delete vol0 --yes
refused "down" 8 "*in use*" fp down vol0
kill -0 "$copier" || fail "the host's writes did not wait"
mv "$work/away" "$work/primary"
wait_for "the device to be taken back by itself" is_served
expect "the device" "$first" "$(device_of vol0)"
finish "$copier" "the host's writes"
in_sync vol0
equal "$work/primary" "$work/secondary"

say "nobody wants it any more"
kill_daemon
mv "$work/primary" "$work/away"
start_daemon
wait_for "the volume to wait" in_state vol0 .state waiting
wait_for "the device to be removed" fp down vol0
[[ ! -b $first ]] || fail "$first is still there"
mv "$work/away" "$work/primary"
bring_up vol0
in_sync vol0

say "a slip in the configuration takes nothing from anybody"
exec {held}<"$dev"
kill_daemon
mv "$work/etc/volumes.d/vol0.toml" "$work/away"
start_daemon
grep --quiet "$dev is the device of a volume that is not known here" "$work/daemon.log" || fail "the log does not name $dev"
expect "devices" "*$dev state:waiting volume:unknown*" "$(fp devices)"
refused "remove-device" 8 "*in use*" fp remove-device "$dev" --yes
refused "remove-device" 3 "*no device of a farpoint volume*" fp remove-device /dev/ublkb9 --yes
refused "create" 8 "*$dev waits for a volume that is not known*" \
    fp create other --primary "$(sparse primary3 16M)" --secondary "$(sparse secondary3 16M)"
[[ -b $dev ]] || fail "$dev has gone"
stop_daemon
mv "$work/away" "$work/etc/volumes.d/vol0.toml"
start_daemon
wait_for "the device to be taken back" is_served

say "its metadata is away for a while"
kill_daemon
mv "$work/state/vol0.meta" "$work/away"
start_daemon
expect "status" "*state:left-out*reason:*no metadata*" "$(fp status vol0)"
mv "$work/away" "$work/state/vol0.meta"
wait_for "the device to be taken back" is_served
exec {held}<&-
in_sync vol0
equal "$work/primary" "$work/secondary"
expect "devices" "*$dev state:served volume:vol0*" "$(fp devices)"
refused "remove-device" 4 "*is the device of vol0*" fp remove-device "$dev" --yes

say "its volume is gone for good"
kill_daemon
mv "$work/etc/volumes.d/vol0.toml" "$work/away"
start_daemon
wait_for "the device to be removed" fp remove-device "$dev" --yes
[[ ! -b $dev ]] || fail "$dev is still there"
expect "devices" "no devices" "$(fp devices)"
stop_daemon
