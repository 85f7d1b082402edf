#!/bin/bash
# xfs on the device, at work while points are formed (P1, P2, P3, P6); see lib-file-system.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib-file-system.sh
. "${BASH_SOURCE[0]%/*}/lib-file-system.sh"

make_it() { mkfs.xfs -q -f "$1"; }
check_it() { xfs_repair -n "$1" >"$work/fsck" 2>&1 || { cat "$work/fsck" && return 1; }; }
# The live one is mounted too, and has the same identity.
# shellcheck disable=SC2034 # For lib-file-system.sh.
copy_options=(-o nouuid)

file_system 384M
