#!/bin/bash
# A part of the primary that cannot be read: its tracks stay marked and are reported, no zeroes are sent in their place, the
# others go on, no point is formed without them; and when the part heals, both sides become equal (P1, H15).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

size=65536
good="0 $size linear /dev/ram0 0"
# Sectors 20000 to 20299 cannot be read: parts of 4 tracks of 64 KiB.
bad=("0 20000 linear /dev/ram0 0" "20000 300 error" "20300 $((size - 20300)) linear /dev/ram0 20300")

unreadable() { (($(field vol0 .unreadable_tracks) > 0)); }
only_those() { (($(field vol0 .out_of_sync_tracks) == $(field vol0 .unreadable_tracks))); }

# pattern LETTER: writes it over the whole device.
pattern() { filled "$1" $((32 << 20)) | dd of="$dev" bs=1M iflag=fullblock oflag=direct conv=notrunc status=none; }

start_daemon
ram_disk 0 32 primary
make_volume vol0 "$node" "$(sparse secondary 32M)"
fp set vol0 --run-timer-ms 20000
pattern o
in_sync vol0
fp pause vol0
pattern n
remap primary "${bad[@]}"
fp resume vol0
wait_for "unreadable tracks" unreadable
wait_for "the others to be sent" only_those
at_most "unreadable tracks" 4 "$(field vol0 .unreadable_tracks)"
expect "link" up "$(field vol0 .link)"
at_least "read errors of the primary" 1 "$(field vol0 .counters.primary_read_errors)"
expect "the secondary where it cannot be read" oooo "$(tail --bytes=+$((20100 * 512)) "$work/secondary" | head --bytes=4)"
expect "the secondary elsewhere" nnnn "$(tail --bytes=+$((30000 * 512)) "$work/secondary" | head --bytes=4)"
refused "to be in sync" 5 "*" fp wait vol0 --until in-sync --timeout 1

say "a read of the host there fails, and others do not"
refused "to read it" 1 "*Input/output error*" dd if="$dev" bs=4k skip=2505 count=1 iflag=direct of=/dev/null status=none
dd if="$dev" bs=4k skip=3000 count=1 iflag=direct of=/dev/null status=none

say "an increment does not become a point without them"
fp start vol0
fp run vol0
refused "to drain" 5 "*" fp wait vol0 --until drained --timeout 3
refused "to complete" 4 "*" fp increment-complete vol0

say "it heals"
remap primary "$good"
fp wait vol0 --until drained --timeout "$patience"
fp increment-complete vol0
in_sync vol0
expect "unreadable tracks" 0 "$(field vol0 .unreadable_tracks)"
fp down vol0
equal /dev/mapper/primary "$work/secondary"
stop_daemon
