#!/bin/bash
# Power cuts: a guest is ended at once, again and again, while a database commits, files are written and increments are
# formed on the device, or while it copies again what the last cut left; what its disks had not flushed is gone, in part and
# torn. The next one finds every commit that was acknowledged, a sound file system and database, the increment void and no
# number used twice, and both sides become equal (P1, P5, H5, H7, H22).
#
# Runs outside, and boots power-cut-inside.sh once for each cut and once more. What was acknowledged is kept outside, in
# a directory shared with the guest.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
device=${FARPOINT_DEVICE_BIN:?start tests with tests/vm/run.sh NAME}
work=${FARPOINT_WORK:?start tests with tests/vm/run.sh NAME}
boot_limit=800 seed=${FARPOINT_SEED:-$(($(date +%s) % 32768))} guest='' server=''

say() { echo "-- $*"; }

fail() {
    echo "FAILED: $*"
    [[ ! -s $work/guest ]] || tail -n 30 "$work/guest" | sed 's/^/    /'
    exit 1
}

# What is started here ends with it; the guest's own processes end with scripts/vm.
clean_up() {
    local each
    for each in "$guest" "$server"; do [[ -z $each ]] || kill -TERM "$each" 2>/dev/null || true; done
    wait 2>/dev/null || true
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Powers the disks; of what is not flushed at the cut a part that follows from the seed is lost.
start_disks() {
    rm -f "$work/cut"
    "$device" disks --cut "$work/cut" --seed "$1" "${files[@]}" >"$work/disks" &
    server=$!
    local file
    for file in "${files[@]}"; do
        until [[ -S ${file%.*}.socket ]]; do
            [[ -d /proc/$server ]] || fail "the disks do not start"
            sleep 0.05
        done
    done
}

# boot CUT: the guest, in the background.
boot() {
    local disks=() file
    for file in "${files[@]}"; do disks+=(--disk "nbd:unix:${file%.*}.socket"); done
    rm -f "$share/writing"
    "$here/../../scripts/vm" --timeout "$boot_limit" --memory 1024 --share "$share" "${kernel[@]}" "${disks[@]}" \
        -- "$here/power-cut-inside.sh" "$share" "$1" "$2" >"$work/guest" 2>&1 </dev/null &
    guest=$!
}

# cut_power: the disks stop at one instant; whatever the guest still does afterwards reaches nobody.
cut_power() {
    touch "$work/cut"
    wait "$server" || fail "the disks: $(cat "$work/disks")"
    server=''
    kill -TERM "$guest"
    wait "$guest" || true
    guest=''
    cat "$work/disks"
}

# scratch FIRST COUNT: how many bytes of these blocks of 4 KiB are as the guest wrote them to the scratch disk.
scratch() { dd if="$work/scratch.disk" bs=4k skip="$1" count="$2" status=none | tr --delete --complement x | wc --bytes; }

# cut_once NUMBER: a guest that is ended while it writes.
cut_once() {
    local delay="$((RANDOM % 8)).$((RANDOM % 10))" flushed unflushed sectors
    start_disks "$((seed + $1))"
    boot "$1" ''
    until [[ -e $share/writing ]]; do
        [[ -d /proc/$guest ]] || fail "guest $1 ended before it wrote"
        sleep 0.1
    done
    sleep "$delay"
    [[ -d /proc/$guest ]] || fail "guest $1 ended by itself"
    cut_power
    cuts=$((cuts + 1))
    say "cut $1, $delay s after guest $1 was $(cat "$share/writing")"
    sed 's/^/    /' "$work/guest"
    # The next guest must find it void.
    [[ ! -e $share/started || $(<"$share/started") == $(cat "$share/completed" 2>/dev/null) ]] || void=$((void + 1))
    # The control: that something is lost at all, and only what was not flushed.
    flushed=$(scratch 0 64) unflushed=$(scratch 64 1024)
    ((flushed == 64 * 4096)) || fail "of $((64 * 4096)) flushed bytes $flushed are there"
    ((unflushed < 1024 * 4096)) || fail "nothing was lost of what was not flushed"
    say "the scratch disk has all of its flushed bytes, and $unflushed of $((1024 * 4096)) others"
    while IFS='=' read -r _ sectors; do
        lost=$((lost + sectors))
    done < <(grep -o --extended-regexp '^(prim|second)ary: .*' "$work/disks" | grep -o 'lost_sectors=.*')
}

# come_back NUMBER: the last guest, which ends when both sides are equal.
come_back() {
    start_disks "$((seed + $1))"
    boot "$1" last
    wait "$guest" || fail "the last guest ended with $?"
    guest=''
    cat "$work/guest"
    touch "$work/cut"
    wait "$server" || fail "the disks: $(cat "$work/disks")"
    server=''
    cmp "$work/primary.disk" "$work/secondary.disk" || fail "primary and secondary differ"
}

# volume CUTS SIZE [OPTION]...: a volume of this size, created with these options, and all its cuts.
volume() {
    local each number
    export FARPOINT_SHAPE="${*:3}"
    say "a volume of $2 ${FARPOINT_SHAPE:-without options}"
    rm -rf "$share" "$work"/*.disk
    mkdir "$share"
    files=()
    for each in "primary:$2" "secondary:$2" metadata:1M scratch:8M; do
        files+=("$work/${each%:*}.disk")
        truncate --size="${each#*:}" "${files[-1]}"
    done
    for ((number = 0; number < $1; number++)); do cut_once "$number"; done
    come_back "$number"
    transactions=$((transactions + $(cat "$share"/ack.* | awk '{ sum += $1 } END { print sum }')))
    increments=$((increments + $(<"$share/started")))
}

share=$work/share kernel=()
[[ -z ${FARPOINT_KERNEL:-} ]] || kernel=(--kernel "$FARPOINT_KERNEL")
say "seed $seed (FARPOINT_SEED)"
RANDOM=$seed
cuts=0 lost=0 void=0 transactions=0 increments=0
# One page of the intent, and several: many small regions.
one=(64M) several=(160M --track-size=4KiB --region-size=4KiB)
if [[ -n ${FARPOINT_LONG:-} ]]; then
    volume 10 "${one[@]}"
    volume 10 "${several[@]}"
elif ((seed % 2 == 0)); then
    volume 2 "${one[@]}"
else
    volume 2 "${several[@]}"
fi
((void > 0)) || fail "none of the cuts hit an increment"
echo "figure: cuts=$cuts"
echo "figure: lost_sectors=$lost"
echo "figure: transactions=$transactions"
echo "figure: increments=$increments"
echo "figure: void=$void"
