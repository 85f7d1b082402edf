#!/bin/bash
# The device outlives its daemon: killed again and again under verified writes and under a mounted file system with a
# database, started again, and the users notice a pause and no error; nothing acknowledged is lost, both sides become equal
# (P1, P5, H22, H23).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

cycles=4 size=32M bank=${BASH_SOURCE[0]%/tests/*}/scripts/lib/demo-bank.py
# The database grows.
[[ -z $long ]] || cycles=100 size=256M

# kill_and_start: at a random moment, and not always at once.
kill_and_start() {
    sleep "0.$((RANDOM % 10))"
    kill_daemon
    sleep "0.$((RANDOM % 5))"
    start_daemon
    wait_for "the device to be taken back" is_served
}

is_served() { [[ $(field vol0 .state) == @(normal|increment-*|aborting) ]]; }

start_daemon
make_volume vol0 "$(sparse primary "$size")" "$(sparse secondary "$size")" --image-pool 4MiB --queues 2 --depth 32
fp set vol0 --run-timer-ms 20000 --collision-wait-ms 5000
first=$dev
in_sync vol0

say "under verified writes"
writers_on "$dev" --writers 6 --hot $((4 << 20)) --pause-ms 1 --verify
for ((each = 0; each < cycles; each++)); do
    if ((each % 2 == 1)); then
        # Whatever is under way of a point is void.
        fp start vol0
        ((each % 4 == 1)) || fp run vol0
    fi
    kill_and_start
    expect "the device" "$first" "$(device_of vol0)"
    expect "the increment under way" null "$(field vol0 .increment)"
done
sleep 1
end_writers
expect "errors of the writers" 0 "$errors"
in_sync vol0
equal "$work/primary" "$work/secondary"
figure kills $((2 * cycles))
figure longest_write_ms "$longest_ms"

say "requests of the killed daemon are still under way when the next one starts, which is killed while it waits for them"
ram_disk 0 16 below
below=$node
map slow "0 $(sectors_of "$below") delay $below 0 0 $below 0 15000"
slow=$node
make_volume vol1 "$slow" "$(sparse slow-secondary 16M)"
in_sync vol1
dd if=/dev/zero of="$dev" bs=16M count=1 oflag=direct conv=notrunc status=none
writers_on "$dev" --writers 8 --hot $((1 << 20)) --verify --verify-at "$slow"
sleep 4
for each in 1 2; do
    kill_daemon
    start_daemon
    expect "vol1" waiting "$(field vol1 .state)"
done
wait_for "the device to be taken back" in_state vol1 .state normal
sleep 4
end_writers
expect "errors of the writers" 0 "$errors"
in_sync vol1
equal "$slow" "$work/slow-secondary"
fp down vol1
fp delete vol1 --yes
dev=$first

say "under a file system with a database"
mkfs.ext4 -q "$dev"
mount_at "$dev" "$work/mnt"
background python3 "$bank" run "$work/mnt/bank" "$work/ack"
writer=$job
wait_for "the first transactions" test -s "$work/ack"
for ((each = 0; each < cycles; each++)); do kill_and_start; done
sleep 1
kill -TERM "$writer"
finish "$writer" "the database's writer"
read -r acknowledged _ <"$work/ack"
read -r found _ <<<"$(python3 "$bank" check "$work/mnt/bank")"
at_least "transactions in the database" "$((10#$acknowledged))" "$found"
at_least "transactions" "$cycles" "$found"
figure transactions "$found"
unmount "$work/mnt"
e2fsck -f -n "$dev" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
in_sync vol0
equal "$work/primary" "$work/secondary"

say "a daemon that is told to end leaves what is in use to the next one"
make_volume vol1 "$(sparse primary1 16M)" "$(sparse secondary1 16M)"
unused=$dev dev=$first
mount_at "$dev" "$work/mnt"
background python3 "$bank" run "$work/mnt/again" "$work/ack-again"
writer=$job
wait_for "the first transactions" test -s "$work/ack-again"
# The first one while it takes them back.
kill_daemon
start_daemon
stop_daemon
[[ -b $dev ]] || fail "$dev has gone with the daemon that took it back"
start_daemon
wait_for "the device to be taken back" is_served
[[ ! -b $unused ]] || wait_for "the other device to be taken back" in_state vol1 .state normal
for ((each = 0; each < 2; each++)); do
    stop_daemon
    [[ -b $dev ]] || fail "$dev has gone with its daemon"
    [[ ! -b $unused ]] || fail "$unused is still there, though nobody used it"
    start_daemon
    wait_for "the device to be taken back" is_served
    expect "regions that are copied again" 0 "$(field vol0 .recovered_regions)"
done
sleep 1
kill -TERM "$writer"
finish "$writer" "the database's writer"
read -r acknowledged _ <"$work/ack-again"
read -r found _ <<<"$(python3 "$bank" check "$work/mnt/again")"
at_least "transactions in the database" "$((10#$acknowledged))" "$found"
unmount "$work/mnt"
in_sync vol0
equal "$work/primary" "$work/secondary"

say "its users have more to do than the device has tags: the kernel learns of the daemon's end only from its own clock"
make_volume vol2 "$(sparse primary2 16M)" "$(sparse secondary2 16M)" --queues 2 --depth 4
busy=$dev
in_sync vol2
writers_on "$busy" --writers 16 --hot $((4 << 20)) --verify
for ((each = 0; each < 2; each++)); do
    sleep 1
    if ((each == 0)); then kill_daemon; else stop_daemon; fi
    start_daemon
    wait_for "the device to be taken back" in_state vol2 .state normal
done
expect "regions that are copied again" 0 "$(field vol2 .recovered_regions)"
sleep 1
end_writers
expect "errors of the writers" 0 "$errors"
figure saturated_longest_write_ms "$longest_ms"
at_most "longest write in ms" $((15000 + slack_ms)) "$longest_ms"
in_sync vol2
equal "$work/primary2" "$work/secondary2"
stop_daemon
