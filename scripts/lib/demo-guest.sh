#!/bin/bash
# The story that scripts/demo tells, as root on a kernel with ublk: demo-guest.sh FARPOINT PARCEL, where PARCEL has
# the tree and its checksums. What it makes goes away with it.

set -euEo pipefail
export LC_ALL=C PATH=/usr/local/sbin:/usr/sbin:/sbin:$PATH

lib=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source-path=SCRIPTDIR source=story.sh
. "$lib/story.sh"

farpoint=$1 parcel=$2
volume=demo volume_mib=512
# Bytes per second of the link that the demonstration pretends to have.
link=4MiB
doing="making ready" result=''
work='' run='' daemon='' bank='' churn='' device=''
acked='' longest=''
python=/usr/bin/python3
[[ -x $python ]] || python=python3

# Every failure ends here: a check that did not hold, or a command that failed.
failed() {
    trap - ERR
    printf '\n%s while %s: %s\n' "$(colour '1;31' 'DEMO FAILED')" "$doing" "$*"
    if [[ -s $work/daemon.log ]]; then
        printf '\nThe last lines of the daemon:\n'
        tail -n 15 "$work/daemon.log"
    fi
    exit 1
}

fp() { "$farpoint" --config-dir "$run/etc" --socket "$run/control.sock" "$@"; }

# number FIELD JSON
number() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" <<<"$2"; }

make_places() {
    work=$(mktemp -d "${FARPOINT_DEMO_DIR:-$([[ $(stat -f -c %T /tmp) == tmpfs ]] && echo /tmp || echo /var/tmp)}/farpoint-demo.XXXXXX")
    # The daemon believes only a configuration that nobody but root can have written.
    run=$(mktemp -d /run/farpoint-demo.XXXXXX)
    mkdir "$work/live" "$work/copy" "$run/etc" "$run/state"
    printf 'run_dir = "%s"\nstate_dir = "%s"\n' "$run" "$run/state" >"$run/etc/farpoint.toml"
}

stop() {
    [[ -z $1 ]] || ! kill -TERM "$1" 2>/dev/null || wait "$1" 2>/dev/null || true
}

clean_up() {
    local status=$?
    trap - EXIT ERR
    set +e
    stop "$churn"
    stop "$bank"
    umount "$work/copy" "$work/live" 2>/dev/null
    [[ -z $device ]] || fp down --force --yes "$volume" >/dev/null 2>&1
    stop "$daemon"
    rm -rf "${work:?}" "${run:?}"
    [[ $status == 0 || -n $result ]] || echo "The demo did not come to its end (status $status)."
    exit "$status"
}

start_daemon() {
    local tries=200
    "$farpoint" --config-dir "$run/etc" daemon >"$work/daemon.log" 2>&1 &
    daemon=$!
    until [[ -S $run/control.sock ]]; do
        if ((tries-- == 0)) || ! kill -0 "$daemon" 2>/dev/null; then failed "the daemon did not start"; fi
        sleep 0.05
    done
}

make_volume() {
    doing="making the volume"
    step "A mirrored volume over a file"
    truncate --size "${volume_mib}M" "$work/primary.img" "$work/secondary.img"
    start_daemon
    show "farpoint create $volume --primary primary.img --secondary secondary.img"
    fp create "$volume" --primary "$work/primary.img" --secondary "$work/secondary.img" --yes >/dev/null
    show "farpoint up $volume"
    device=$(fp up "$volume")
    show "mkfs.ext4 $device && mount $device live"
    mkfs.ext4 -q "$device"
    mount "$device" "$work/live"
    tell "$device, $volume_mib MiB, tracks of 64 KiB; both files sparse, on $(stat -f -c %T "$work")"
}

copy_tree() {
    local began=$EPOCHREALTIME
    doing="copying the tree"
    step "The tree copied to the device"
    mkdir "$work/live/tree"
    tar --extract --file "$parcel/tree.tar" --directory "$work/live/tree"
    sync --file-system "$work/live"
    files=$(wc -l <"$parcel/sums")
    tell "$(grouped "$files") files, copied and synced in $(seconds_since "$began")"
}

# What else writes while the point is cut: files made and removed, over and over.
churn_files() {
    local copy=0
    trap 'exit 0' TERM
    mkdir "$work/live/churn"
    while true; do
        copy=$(((copy + 1) % 4))
        rm -rf "$work/live/churn/$copy"
        cp --recursive "$work/live/tree/usr/share" "$work/live/churn/$copy"
        sync --file-system "$work/live"
    done
}

# read_acked: the last transaction whose commit returned, and the longest commit in ms. No program is started: it is called
# while writes are held.
read_acked() {
    read -r acked longest <"$work/acked"
    acked=$((10#$acked))
    longest=$((10#${longest%.*}))
}

first_copy() {
    local began=$EPOCHREALTIME answer
    doing="copying to the secondary for the first time"
    step "The first full copy"
    show "farpoint wait $volume"
    fp --timeout 120 wait "$volume" >/dev/null
    answer=$(fp --json status "$volume")
    tell "in sync $(seconds_since "$began") later: $(grouped "$(number drained_tracks "$answer")") tracks," \
        "$(grouped "$(number zero_tracks "$answer")") of them zeroes"
    show "farpoint set $volume --bandwidth-limit $link"
    fp set "$volume" --bandwidth-limit "$link" >/dev/null
    tell "from here on the link to the secondary is a slow one"
}

start_writers() {
    local tries=600
    doing="starting the database"
    step "A database at work, and files that come and go"
    "$python" "$lib/demo-bank.py" run "$work/live/bank.db" "$work/acked" 2>"$work/bank.log" &
    bank=$!
    churn_files 2>/dev/null &
    churn=$!
    until [[ -s $work/acked && -d $work/live/churn/2 ]] && read_acked && ((acked >= 100)); do
        if ((tries-- == 0)) || ! kill -0 "$bank" 2>/dev/null; then
            failed "the database does not run: $(cat "$work/bank.log")"
        fi
        sleep 0.1
    done
    tell "SQLite moves money between 500 accounts, each transaction synced: $(grouped "$acked") so far, longest $longest ms"
    tell "beside it, parts of the tree are copied again, synced and removed"
}

# Between start and run no write gets to the device, so nothing is done there that is not needed.
cut() {
    local started ran before
    doing="cutting the point"
    step "The cut, while they write"
    before=$(fp --json status "$volume")
    drained_before=$(number drained_bytes "$before")
    collisions_before=$(number collisions "$before")
    began_cut=$EPOCHREALTIME
    read_acked
    acked_before=$acked
    started=$(fp --json start --run-timer-ms 10000 "$volume")
    read_acked
    acked_held=$acked
    ran=$(fp --json run "$volume")
    hold=$(ms "$(number hold_us "$ran")")
    show "farpoint start $volume"
    tell "the writes under way ended within $(ms "$(number hold_us "$started")"); the database had acknowledged" \
        "$(grouped "$acked_before") transactions before"
    show "farpoint run $volume"
    tell "new writes were held for $hold in all, most of it the time that it takes to start the second command"
}

drain() {
    local after
    doing="draining"
    step "The drain, and the copy"
    show "farpoint wait --until drained $volume"
    fp --timeout 120 wait --until drained "$volume" >/dev/null
    after=$(fp --json status "$volume")
    drained_mib=$(mib $(($(number drained_bytes "$after") - drained_before)))
    tell "$drained_mib sent, the point is whole at the secondary $(seconds_since "$began_cut") after start;" \
        "$(grouped $(($(number collisions "$after") - collisions_before))) writes met a track that was not sent yet"
    show "cp secondary.img copy.img"
    local began=$EPOCHREALTIME
    cp --reflink=auto --sparse=always "$work/secondary.img" "$work/copy.img"
    tell "$(mib $(($(stat -c '%b * %B' "$work/copy.img")))) on disk, in $(seconds_since "$began")"
    show "farpoint increment-complete $volume"
    fp increment-complete "$volume" >/dev/null
    read_acked
    acked_copied=$acked
    tell "meanwhile the database has acknowledged $(grouped "$acked_copied") transactions"
}

examine_file_system() {
    doing="mounting the copy"
    dumpe2fs -h "$work/copy.img" 2>/dev/null | grep --quiet needs_recovery ||
        failed "the copy's journal is empty, although it was cut from a mounted file system"
    mount -o loop "$work/copy.img" "$work/copy"
    umount "$work/copy"
    ! dumpe2fs -h "$work/copy.img" 2>/dev/null | grep --quiet needs_recovery || failed "the journal was not replayed"
    good "it mounts, and its journal is replayed"
    doing="checking the copy's file system"
    e2fsck -fn "$work/copy.img" >"$work/e2fsck.log" 2>&1 || failed "e2fsck -fn found faults: $(cat "$work/e2fsck.log")"
    good "e2fsck -fn finds nothing"
}

examine_files() {
    doing="comparing the copy's files"
    mount -o loop "$work/copy.img" "$work/copy"
    (cd "$work/copy/tree" && sha256sum --check --quiet "$parcel/sums") >"$work/sums.log" 2>&1 ||
        failed "$(wc -l <"$work/sums.log") files of the copy are not what they were: $(head -n 3 "$work/sums.log")"
    good "all $(grouped "$files") files synced before the cut are there, each with its SHA-256"
}

examine_database() {
    local answer total
    doing="checking the copy's database"
    answer=$(sqlite3 "$work/copy/bank.db" 'PRAGMA integrity_check')
    [[ $answer == ok ]] || failed "SQLite's integrity_check says: $answer"
    good "SQLite's integrity_check says ok"
    answer=$("$python" "$lib/demo-bank.py" check "$work/copy/bank.db" 2>&1) || failed "$answer"
    read -r copied total <<<"$answer"
    good "its ledger is one chain of $(grouped "$copied") transactions, and the accounts still hold $(grouped "$total")"
    ((copied >= acked_before)) ||
        failed "the copy ends at transaction $copied, but $acked_before had been acknowledged before the cut"
    good "every transaction acknowledged before the cut is in it ($(grouped "$acked_before"))"
    # The one whose commit had not returned yet may be in it.
    ((copied <= acked_held + 1)) || failed "the copy has transaction $copied, but at the cut there were only $((acked_held + 1))"
    good "and none from after it (the live database went on to $(grouped "$acked_copied") while the copy was made)"
}

examine_copy() {
    step "The copy, examined"
    examine_file_system
    examine_files
    examine_database
    umount "$work/copy"
}

examine_live() {
    doing="looking at the live device"
    step "The live device, meanwhile"
    read_acked
    kill -0 "$bank" 2>/dev/null || failed "the database stopped: $(cat "$work/bank.log")"
    ((acked > acked_copied)) || failed "the database did not go on"
    good "went on all the time: $(grouped "$acked") transactions now, $(grouped $((acked - copied))) more than the copy has"
    tell "longest commit $longest ms, the hold included"
    stop "$churn" && churn=''
    stop "$bank" && bank=''
    umount "$work/live"
    fp set "$volume" --bandwidth-limit 0 >/dev/null
    fp --timeout 120 wait "$volume" >/dev/null
    cmp "$work/primary.img" "$work/secondary.img" >/dev/null || failed "in sync, but primary and secondary differ"
    good "unmounted and in sync, primary and secondary are equal, byte by byte"
    fp down "$volume" >/dev/null
    device=''
}

main() {
    make_places
    step "Machine"
    tell "${FARPOINT_DEMO_PLACE:-this machine}: Linux $(uname -r), $(nproc) processors"
    make_volume
    copy_tree
    first_copy
    start_writers
    cut
    drain
    examine_copy
    examine_live
    result=held
    printf '\n%s: the copy is a consistency point of a device that never stopped: %s transactions, writes held %s, %s drained.\n' \
        "$(colour '1;32' 'IT HOLDS')" "$(grouped "$copied")" "$hold" "$drained_mib"
    [[ -z ${FARPOINT_DEMO_BEGAN:-} ]] || printf 'Time in all: %s.\n' "$(seconds_since "$FARPOINT_DEMO_BEGAN")"
}

trap 'failed "\"$BASH_COMMAND\" failed (line $LINENO)"' ERR
trap clean_up EXIT
trap 'exit 130' INT TERM
main
