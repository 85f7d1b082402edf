#!/bin/bash
# A volume cannot lie on a device that the same daemon serves: not the device, not what is built on it, not a file on a file
# system on it, as primary or as secondary (H24, H26).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

start_daemon
make_volume vol0 "$(sparse primary 64M)" "$(sparse secondary 64M)"
other=$(sparse other 16M)
refused "the device as secondary" "[18]" "*daemon itself*" fp create bad --primary "$other" --secondary "$dev"
refused "the device as primary" "[18]" "*daemon itself*" fp create bad --primary "$dev" --secondary "$other"
map upon "0 32768 linear $dev 0"
refused "a device upon it as secondary" "[18]" "*daemon itself*" fp create bad --primary "$other" --secondary "$node"
dmsetup remove --noudevrules --noudevsync upon
mkfs.ext4 -q "$dev"
mount_at "$dev" "$work/mnt"
truncate --size=16M "$work/mnt/file"
refused "a file on it as secondary" "[138]" "*" timeout 60 "$farpoint" --config-dir "$work/etc" \
    create bad --primary "$other" --secondary "$work/mnt/file"
refused "a file on it as primary" "[138]" "*" timeout 60 "$farpoint" --config-dir "$work/etc" \
    create bad --primary "$work/mnt/file" --secondary "$other"
unmount "$work/mnt"
expect "volumes" vol0 "$(fp status --json | jq --raw-output '.volumes[].name')"
fp down vol0
stop_daemon
