#!/bin/bash
# A file primary on a file system that runs full: the host is told (no space left), what was acknowledged is there, the daemon
# goes on, and both sides become equal (P1, P5).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

ENOSPC=28

# round KIND DIRECTORY
round() {
    local name=$1 primary=$2/primary
    truncate --size=64M "$primary"
    make_volume "$name" "$primary" "$(sparse "$name-secondary" 64M)"
    in_sync "$name"
    writers_on "$dev" --writers 4 --largest 131072 --hot $((64 << 20)) --pause-ms 0 --errors-allowed --verify --seconds 30
    wait_for "errors of the host" has_errors "$name"
    say "an increment meanwhile"
    fp start "$name" --run-timer-ms 20000
    fp run "$name"
    fp wait "$name" --until drained --timeout "$patience"
    fp increment-complete "$name"
    end_writers
    at_least "errors" 1 "$errors"
    expect "the error" "$ENOSPC" "$errno"
    in_sync "$name"
    expect "state" normal "$(field "$name" .state)"
    figure "errors_$name" "$errors"
    fp down "$name"
    equal "$primary" "$work/$name-secondary"
}

has_errors() { (($(field "$1" .counters.host_errors) > 0)); }

start_daemon
mount_at none "$work/tmpfs" -t tmpfs -o size=16m
round tmpfs "$work/tmpfs"
ram_disk 0 32 small
mkfs.ext4 -q "$node"
mount_at "$node" "$work/ext4"
round ext4 "$work/ext4"
stop_daemon
