#!/bin/bash
# The guest of power-cut.sh: checks what the last cut left, and then writes until it is cut.
#
# power-cut-inside.sh SHARE NUMBER [last]

set -euo pipefail
share=$1 number=$2 last=${3:-}
tree=$(cd "${BASH_SOURCE[0]%/*}/../.." && pwd -P)
export FARPOINT_WORK=/tmp/power-cut FARPOINT=/tmp/farpoint FARPOINT_DEVICE=/tmp/device
mkdir -p "$FARPOINT_WORK"
cp "$FARPOINT_BIN" "$FARPOINT"
cp "$FARPOINT_DEVICE_BIN" "$FARPOINT_DEVICE"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$tree/tests/vm/lib.sh"
bank=$tree/scripts/lib/demo-bank.py
mount --make-rshared /

# acknowledged FILE: a number kept outside.
acknowledged() { cat "$share/$1" 2>/dev/null || echo 0; }

# What holds after every cut.
check_volume() {
    local damages
    # A page that was torn reads as all ones; no more than that may be wrong.
    damages=$(fp check /dev/vdc) || (($? == 9)) || fail "check: $damages"
    say "${damages//$'\n'/; }"
    bring_up vol0
    expect "full copy needed" false "$(field vol0 .full_copy_needed)"
    expect "the increment under way" null "$(field vol0 .increment)"
    at_least "last complete increment" "$(acknowledged completed)" "$(field vol0 '.last_complete // 0')"
}

# Every commit that was acknowledged is there, and nothing is torn.
check_files() {
    local each guest count found
    mount_at "$dev" "$work/mnt"
    for each in "$share"/ack.*; do
        [[ -e $each ]] || continue
        guest=${each##*.} found=0
        read -r count _ <"$each"
        if ((10#$count > 0)); then
            found=$(sqlite3 "$work/mnt/bank$guest" 'PRAGMA integrity_check') || fail "the database of guest $guest: $found"
            expect "integrity of the database of guest $guest" ok "$found"
            found=$(python3 "$bank" check "$work/mnt/bank$guest" 2>&1) || fail "the transactions of guest $guest: ${found##*$'\n'}"
        fi
        at_least "transactions of guest $guest" "$((10#$count))" "${found% *}"
    done
    unmount "$work/mnt"
    e2fsck -f -n "$dev" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
    say "the file system is sound"
}

# begin: an increment; that it was begun is kept outside.
begin() {
    local next
    next=$(fp start vol0 --json | jq .increment)
    ((next > $(acknowledged started))) || fail "increment $next was begun before"
    echo "$next" >"$share/started"
    fp run vol0
}

# increments: one after the other; what was completed is kept outside.
increments() {
    while true; do
        begin
        fp wait vol0 --until drained --timeout "$patience"
        fp increment-complete vol0
        cp "$share/started" "$share/completed"
    done
}

# scratch_writes: 64 blocks that are flushed, and 1024 that are not.
scratch_writes() {
    blkdiscard --force --zeroout /dev/vdd
    filled x $((1024 * 4096)) >"$work/pattern"
    dd if="$work/pattern" of=/dev/vdd bs=4k count=64 oflag=direct conv=fsync status=none
    dd if="$work/pattern" of=/dev/vdd bs=64k seek=4 oflag=direct status=none
}

[[ ! -d $share/volumes.d ]] || cp -r "$share/volumes.d" "$work/etc/"
start_daemon
if [[ ! -d $share/volumes.d ]]; then
    # shellcheck disable=SC2086 # Several options, or none.
    fp create vol0 --primary /dev/vda --secondary /dev/vdb --metadata /dev/vdc --image-pool 4MiB --queues 2 $FARPOINT_SHAPE
    cp -r "$work/etc/volumes.d" "$share/volumes.d"
    bring_up vol0
    mkfs.ext4 -q "$dev"
    sync
else
    check_volume
    # Two of three are cut while they copy again what the cut before left: it takes longer than they live.
    [[ -n $last ]] || ((number % 3 == 0)) || fp set vol0 --bandwidth-limit 512KiB
    check_files
fi
fp set vol0 --run-timer-ms 20000 --collision-wait-ms 5000
if [[ -n $last ]] || ((number % 3 == 0)); then
    in_sync vol0
    equal /dev/vda /dev/vdb
fi
if [[ -n $last ]]; then
    fp down vol0
    stop_daemon
    exit
fi
mount_at "$dev" "$work/mnt"
background python3 "$bank" run "$work/mnt/bank$number" "$share/ack.$number"
background fio --name=files --directory="$work/mnt" --filename=files --size=16M --rw=randwrite --bsrange=4k-128k \
    --direct=1 --fsync=32 --ioengine=libaio --iodepth=8 --time_based --runtime=600 --randseed="$number" --output="$work/fio"
wait_for "the first transactions" test -s "$share/ack.$number"
scratch_writes
if ((number % 2 == 0)); then
    # The cut hits an increment that cannot end before.
    fp pause vol0
    begin
else
    increments >"$work/increments" 2>&1 &
    jobs+=($!)
fi
in_state vol0 .in_sync true && echo "in sync" >"$share/writing.new" || echo "copying" >"$share/writing.new"
mv "$share/writing.new" "$share/writing"
wait -n || true
fail "something ended before the power did: $(tail -n 5 "$work"/{increments,fio} 2>&1)"
