#!/bin/bash
# A volume whose size is no multiple of its track, and one smaller than a track: the last, short track is copied, compared
# and cut like any other, and nothing is written beyond the end of a larger secondary (P1, P6).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

# round NAME BYTES TRACK
round() {
    local name=$1 bytes=$2 primary secondary
    primary=$(sparse "$name-primary" "$bytes")
    secondary=$work/$name-secondary
    # Larger than the primary, and not zero behind its end.
    head --bytes="$bytes" /dev/zero >"$secondary"
    printf 'beyond the end' >>"$secondary"
    truncate --size=%512 "$secondary"
    make_volume "$name" "$primary" "$secondary" --track-size "$3"
    fp set "$name" --run-timer-ms 20000
    expect "size of $name in sectors" "$((bytes / 512))" "$(sectors_of "$dev")"
    "$device" write "$dev" --seconds 2 --writers 2 --block 512 --largest $((bytes < 65536 ? 1024 : 65536)) --hot "$bytes" \
        --verify
    # The very last sector.
    printf 'last' | dd of="$dev" bs=512 seek=$((bytes / 512 - 1)) conv=notrunc,sync oflag=direct status=none
    fp start "$name"
    fp run "$name"
    fp wait "$name" --until drained --timeout "$patience"
    printf 'late' | dd of="$dev" bs=512 seek=$((bytes / 512 - 1)) conv=notrunc,sync oflag=direct status=none
    expect "last sector of the point" last "$(tail --bytes=+$((bytes - 511)) "$secondary" | head --bytes=4)"
    fp increment-complete "$name"
    in_sync "$name"
    fp down "$name"
    equal "$primary" "$secondary"
    expect "what is behind the end" "beyond the end" "$(tail --bytes=+$((bytes + 1)) "$secondary" | head --bytes=14)"
}

start_daemon
round odd $((3 * 1048576 + 512)) 64KiB
round tiny 4608 64KiB
round small-tracks $((1048576 + 3 * 512)) 4KiB
round large-tracks $((5 * 1048576 + 7 * 512)) 1MiB
stop_daemon
