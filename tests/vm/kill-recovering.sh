#!/bin/bash
# The daemon is killed again and again while it comes back: as it starts, while it takes its device back and while it copies
# hot regions again, under verified writes and under a mounted file system with a database. The users notice a pause and no
# error, nothing acknowledged is lost, and both sides become equal (P1, P5, H6, H22, H23).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

rounds=2 bank=${BASH_SOURCE[0]%/tests/*}/scripts/lib/demo-bank.py seed=${FARPOINT_SEED:-$(($(date +%s) % 32768))}
[[ -z $long ]] || rounds=20
RANDOM=$seed
say "seed $seed (FARPOINT_SEED)"
declare -A killed=([starting]=0 [taking]=0 [copying]=0)

# The log of the daemon started last.
own_log() { tail --bytes="+$((log_began + 1))" "$work/daemon.log"; }

said() { own_log | grep --quiet --fixed-strings "$1"; }

# moment: how far the daemon has come.
moment() {
    local reached=starting
    ! said "taking it back" || reached=taking
    ! said "is up as" || reached=copying
    echo "$reached"
}

# launch: starts a daemon, and remembers when.
launch() {
    log_began=$(stat --format=%s "$work/daemon.log")
    launched_us=${EPOCHREALTIME/./}
    launch_daemon
}

# us_until TEXT: how long after its launch the daemon said this, by its own clock.
us_until() { echo $(($(date --date "$(own_log | sed -n "/$1/{s/ .*//p;q}")" +%s%6N) - launched_us)); }

# measure: how long a daemon needs until it takes its device back, and until that is up.
measure() {
    launch
    wait_for "the device to be up" said "is up as"
    taking_us=$(us_until "taking it back") up_us=$(us_until "is up as")
    figure taking_ms $((taking_us / 1000))
    figure up_ms $((up_us / 1000))
}

# kill_between FROM TO: starts a daemon and kills it at a random instant between these microseconds.
kill_between() {
    local delay_us=$(($1 + RANDOM * ($2 - $1) / 32768)) seconds
    seconds=$(printf '%d.%06d' $((delay_us / 1000000)) $((delay_us % 1000000)))
    launch
    # A sleep without a program, which takes long to start.
    read -r -t "$seconds" -u "$never" || true
    kill_daemon
    ((killed[$(moment)] += 1))
}

# kill_up: starts a daemon and kills it soon after the device is up.
kill_up() {
    launch
    wait_for "the device to be up" said "is up as"
    sleep "0.$((RANDOM % 3))"
    kill_daemon
    ((killed[$(moment)] += 1))
}

# crash_and_crash_again: killed, five times more as it comes back, and then let live.
crash_and_crash_again() {
    local when
    kill_daemon
    for when in $(shuf --echo starting taking taking taking copying --random-source=<(yes "$RANDOM")); do
        case $when in
            starting) kill_between 0 $((taking_us / 2)) ;;
            taking) kill_between "$taking_us" "$up_us" ;;
            copying) kill_up ;;
        esac
    done
    start_daemon
    wait_for "the device to be taken back" in_state vol0 .state normal
    expect "the device" "$dev" "$(device_of vol0)"
    expect "full copy needed" false "$(field vol0 .full_copy_needed)"
}

start_daemon
make_volume vol0 "$(sparse primary 64M)" "$(sparse secondary 64M)" --image-pool 4MiB --queues 2
fp set vol0 --run-timer-ms 20000 --collision-wait-ms 5000
in_sync vol0
exec {never}<> <(:)
kill_daemon
measure

say "under verified writes, an increment under way at every first kill"
writers_on "$dev" --writers 6 --hot $((4 << 20)) --pause-ms 1 --verify
for ((each = 0; each < rounds; each++)); do
    sleep 1
    fp start vol0
    fp run vol0
    crash_and_crash_again
    at_least "regions to copy again" 1 "$(field vol0 .recovered_regions)"
    expect "the increment under way" null "$(field vol0 .increment)"
done
sleep 1
end_writers
expect "errors of the writers" 0 "$errors"
in_sync vol0
equal "$work/primary" "$work/secondary"
figure longest_write_ms "$longest_ms"

say "killed when some of the queues had been announced"
for each in 0 1 2; do
    number=${dev#/dev/ublkb}
    kill_daemon
    "$device" half-taken "$number" --announced "$each"
    start_daemon
    wait_for "the device to be taken back" in_state vol0 .state normal
    "$device" compare "$work/primary" "$dev"
done

say "under a file system with a database"
mkfs.ext4 -q "$dev"
mount_at "$dev" "$work/mnt"
background python3 "$bank" run "$work/mnt/bank" "$work/ack"
writer=$job
wait_for "the first transactions" test -s "$work/ack"
for ((each = 0; each < rounds; each++)); do
    sleep 1
    crash_and_crash_again
done
sleep 1
kill -TERM "$writer"
finish "$writer" "the database's writer"
read -r acknowledged _ <"$work/ack"
read -r found _ <<<"$(python3 "$bank" check "$work/mnt/bank")"
at_least "transactions in the database" "$((10#$acknowledged))" "$found"
unmount "$work/mnt"
e2fsck -f -n "$dev" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
in_sync vol0
fp down vol0
equal "$work/primary" "$work/secondary"
for each in "${!killed[@]}"; do at_least "kills while $each" 1 "${killed[$each]}"; done
figure killed_starting "${killed[starting]}"
figure killed_taking_back "${killed[taking]}"
figure killed_copying "${killed[copying]}"
figure transactions "$found"
stop_daemon
