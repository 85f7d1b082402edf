#!/bin/bash
# SIGTERM takes the volumes down cleanly: a volume that was in sync copies nothing when it comes up again, one that was not
# copies exactly what it had left, and an increment under way is given up without loss (P1, P7).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

start_daemon
make_volume vol0 "$(sparse primary 64M)" "$(sparse secondary 64M)"
first=$dev
make_volume vol1 "$(sparse primary1 64M)" "$(sparse secondary1 64M)"
fp set vol0 --run-timer-ms 20000
dd if=/dev/urandom of="$first" bs=64K count=50 oflag=direct conv=notrunc status=none
in_sync vol0 vol1
fp pause vol1
dd if=/dev/urandom of="$dev" bs=64K count=33 seek=100 oflag=direct conv=notrunc status=none
fp start vol0
stop_daemon
[[ ! -e $first && ! -e $dev ]] || fail "a device is still there after SIGTERM"

start_daemon
for each in vol0 vol1; do
    expect "$each needs a full copy" false "$(field "$each" .full_copy_needed)"
    expect "$each is down" down "$(field "$each" .state)"
done
expect "tracks that vol1 has left" 33 "$(field vol1 .out_of_sync_tracks)"
bring_up vol0
in_sync vol0
expect "bytes sent by vol0" 0 "$(field vol0 .counters.drained_bytes)"
equal "$work/primary" "$work/secondary"
bring_up vol1
in_sync vol1
expect "tracks sent by vol1" 33 "$(field vol1 .counters.drained_tracks)"
equal "$work/primary1" "$work/secondary1"

say "SIGTERM while a host writes"
dev=$(device_of vol0)
writers_on "$dev" --errors-allowed --writers 4
sleep 2
touch "$work/enough"
finish "$writers" "the writers"
stop_daemon
start_daemon
bring_up vol0
in_sync vol0
expect "full copy needed" false "$(field vol0 .full_copy_needed)"
at_most "tracks sent" 1023 "$(field vol0 .counters.drained_tracks)"
fp down vol0
equal "$work/primary" "$work/secondary"

say "what a volume was made of can be taken at once"
ram_disk 0 64 primary
ram_disk 1 64 secondary
ram_disk 2 8 metadata
fp create vol2 --primary /dev/mapper/primary --secondary /dev/mapper/secondary --metadata /dev/mapper/metadata
# Exclusively, as mount, mdadm and mkfs do.
take() { python3 -c 'import os, sys; [os.close(os.open(each, os.O_RDWR | os.O_EXCL)) for each in sys.argv[1:]]' "$@"; }
for each in 1 2 3 4 5; do
    bring_up vol2
    dd if=/dev/urandom of="$dev" bs=64K count=20 oflag=direct conv=notrunc status=none
    fp down vol2
    # Nothing is left to be done by a daemon that is too busy for it.
    kill -STOP "$daemon"
    take /dev/mapper/{primary,secondary,metadata} || fail "after down no. $each something is still held"
    kill -CONT "$daemon"
done

say "the other way round"
bring_up vol2
in_sync vol2
fp down vol2
fp delete vol2 --yes
fp create vol2 --primary /dev/mapper/secondary --secondary /dev/mapper/primary --metadata /dev/mapper/metadata --in-sync --yes
bring_up vol2
in_sync vol2
expect "bytes sent" 0 "$(field vol2 .counters.drained_bytes)"
dd if=/dev/urandom of="$dev" bs=64K count=20 oflag=direct conv=notrunc status=none
in_sync vol2
fp down vol2
equal /dev/mapper/primary /dev/mapper/secondary
stop_daemon
