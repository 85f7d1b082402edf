#!/bin/bash
# Runs the tests of the device in guests; see usage below.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
top=${here%/tests/vm}

usage() {
    cat <<'TEXT'
Usage: tests/vm/run.sh [OPTION]... [TEST]...

Builds farpoint and the tools of tests/device, boots guests (scripts/vm) and runs the tests named, or all of them. Where there are
processors and memory for it, two guests run side by side and share the tests.
TEST is the name of a file in tests/vm without .sh.

  --short       the form for every commit (default)
  --long        more of everything: 100 increments with each collision policy, larger trees, 20 power cuts, low memory
  --smoke       only the tests that show that a kernel suits: about two minutes
  --kernel K    6.12 (default) or newest
  --inside      do not boot: this is the guest, or a machine with ublk that may be used for tests
  --keep DIR    leave the tests' logs in DIR [default: vm-tests in the target directory]
  --list        print the tests of the form chosen
  --help        this text

One line is printed for each test: ok, FAILED with the end of its log, or skipped with the reason. The last line is
"N passed, N failed, N skipped". Exit status: 0 if none failed, 1 if one did, 2 wrong usage, 3 if not all could be run.
A guest that dies fails the test under way, and the others run in another one. FARPOINT_BIN, FARPOINT_DEVICE_BIN and
FARPOINT_STORAGE_BIN name programs that are built already.
TEXT
}

die() {
    echo "run.sh: $*" >&2
    exit 2
}

# In this order: what fails early makes what comes later pointless. The number is the most seconds it may take: generous,
# a limit and not a measure, beside another guest on a slow processor. Some run elsewhere than in the common guest: in a small
# one with two disks, or outside, because they boot guests themselves.
tests='
first            smoke 240
memory           smoke 240
namespace        smoke 240
fio-verify       smoke 600
discard          smoke 400
odd-size         short 300
primaries        short 600
flush            smoke 240
ext4             smoke 600
xfs              short 600
start-no-run     smoke 300
hung-secondary   short 600
slow-secondary   short 1200
failing-secondary short 480
one-of-two       short 300
unreadable       short 360
metadata-faults  short 600
full-primary     short 360
full-secondary   short 360
busy             smoke 300
pause            short 240
bandwidth        short 240
clean-stop       short 300
kill-idle        smoke 300
take-back        smoke 800
waiting          short 400
kill-writing     short 480
kill-recovering  short 800
dependent-writes smoke 1800
log-writes       short 800
own-device       short 240
limits           short 300
opening          short 600
service          short 800  outside
power-cut        short 1800  outside
low-memory       long  3000 small
'

# Memory of a guest.
guest_mib=3072
form=short kernel='' inside='' keep='' list='' chosen=()

parse_options() {
    while (($# > 0)); do
        case $1 in
            --help | -h) usage && exit 0 ;;
            --short | --long | --smoke) form=${1#--} ;;
            --kernel) kernel=${2:?--kernel needs a value} && shift ;;
            --keep) keep=${2:?--keep needs a value} && shift ;;
            --inside) inside=yes ;;
            --list) list=yes ;;
            -*) die "unknown option $1; see tests/vm/run.sh --help" ;;
            *) chosen+=("$1") ;;
        esac
        shift
    done
}

# wanted NAME LEVEL: whether the form or the command line asks for the test.
wanted() {
    if ((${#chosen[@]} > 0)); then
        [[ " ${chosen[*]} " == *" $1 "* ]]
    else
        case $form:$2 in
            long:* | short:smoke | short:short | smoke:smoke) ;;
            *) return 1 ;;
        esac
    fi
}

# selection: the tests to run, as "NAME SECONDS WHERE". The long forms have eight times as long.
selection() {
    local name level seconds where
    while read -r name level seconds where; do
        [[ $form != long ]] || seconds=$((seconds * 8))
        [[ -n $name ]] && wanted "$name" "$level" && echo "$name $seconds ${where:-common}"
    done <<<"$tests"
    true
}

# What the tests call on, besides what every machine with Debian has.
# In a shell of its own, because install.sh has its own way to die.
need_tools() (
    # shellcheck disable=SC2034 # Of install.sh.
    script_name=run.sh tree=$top
    # shellcheck source-path=SCRIPTDIR source=../../scripts/lib/install.sh
    . "$top/scripts/lib/install.sh"
    install_missing jq:jq fio:fio python3:python3 sqlite3:sqlite3 dmsetup:dmsetup mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs \
        mkfs.btrfs:btrfs-progs modprobe:kmod systemctl:systemd udevadm:udev
)

# The guest does not build: its processor is emulated.
build() {
    cd "$top"
    need_tools
    if [[ -z ${FARPOINT_BIN:-} ]]; then
        cargo build --release --quiet
        FARPOINT_BIN=${CARGO_TARGET_DIR:-$top/target}/release/farpoint
    fi
    [[ -n ${FARPOINT_DEVICE_BIN:-} ]] || FARPOINT_DEVICE_BIN=$(built device)
    [[ -n ${FARPOINT_STORAGE_BIN:-} ]] || FARPOINT_STORAGE_BIN=$(built storage)
    export FARPOINT_BIN FARPOINT_DEVICE_BIN FARPOINT_STORAGE_BIN
}

# built TEST: builds the program of a test and prints its path.
built() {
    # The program itself is named as well, before or after.
    cargo test --release --quiet --test "$1" --no-run --message-format=json |
        sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p'
}

# boot WHERE TEST...: the exit status is that of the guest.
boot() {
    local options=(--timeout 3600 --memory "$guest_mib" --share "$keep") disks=() disk status=0 where=$1
    shift
    [[ $form != long ]] || options[1]=7200
    if [[ $where == small ]]; then
        options[3]=512 disks=("$keep"/{primary,secondary}.disk)
        rm -f "${disks[@]}"
        truncate --size=1G "${disks[@]}"
    fi
    for disk in "${disks[@]}"; do options+=(--disk "$disk"); done
    [[ -z $kernel ]] || options+=(--kernel "$kernel")
    "$top/scripts/vm" "${options[@]}" -- "$here/run.sh" --inside "--$form" --keep "$keep" "$@" || status=$?
    rm -f "${disks[@]}"
    return "$status"
}

# notes WHAT: the lane's own file of results, or of the test under way.
notes() { echo "$keep/run/$1.${FARPOINT_LANE:-1}"; }

# claim NAME: takes a test for this lane; fails if another has it. In a directory, because a guest is told the truth when it
# makes one, while what it reads of another guest's files may be old.
claim() { mkdir "$keep/run/claimed/$1" 2>/dev/null && echo "$1" >"$(notes current)"; }

# unclaimed: the tests chosen that nobody has taken yet, as "NAME SECONDS WHERE". A small guest has disks of its own, so it is
# one lane's.
unclaimed() {
    local name seconds where
    while read -r name seconds where; do
        [[ -d $keep/run/claimed/$name || $where == small && $FARPOINT_LANE != 1 ]] || echo "$name $seconds $where"
    done < <(selection)
}

# clear_results: nothing is claimed, and nothing has run. A run whose guests are still there keeps its directory.
clear_results() {
    mkdir -p "$keep"
    keep=$(cd "$keep" && pwd -P)
    exec {keep_lock}>"$keep/lock"
    flock --nonblock "$keep_lock" || die "another run, or what is left of one, writes to $keep; end it, or use --keep"
    rm -rf "$keep/run"
    mkdir -p "$keep/run/claimed"
}

# lanes: how many guests run side by side. Most tests wait most of the time, so that two take little more than half as long.
lanes() {
    local available selected
    available=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
    mapfile -t selected < <(selection)
    if (($(nproc) > 1 && ${#selected[@]} > 1 && available > 2 * guest_mib + 2048)); then echo 1 2; else echo 1; fi
}

# become_root ARGUMENT...: once for all guests, each of which would do so, for nobody else could end them.
become_root() {
    # shellcheck disable=SC2031 # What need_tools changes is its own.
    local passed=("PATH=$PATH" "FARPOINT_CACHE=${FARPOINT_CACHE:-$HOME/.cache/farpoint}") name
    [[ $(id -u) != 0 ]] || return 0
    for name in "${!FARPOINT_@}" "${!CARGO@}"; do passed+=("$name=${!name}"); done
    exec sudo -- env "${passed[@]}" "$here/run.sh" "$@"
}

# run_in_guests: the lanes, to their end.
run_in_guests() {
    local lane pid
    lane_pids=()
    keep=${keep:-${CARGO_TARGET_DIR:-$top/target}/vm-tests}
    clear_results
    # Each in a process group of its own, to be ended as a whole.
    trap end_lanes INT TERM HUP
    set -m
    for lane in $(lanes); do
        run_lane "$lane" </dev/null &
        lane_pids+=($!)
    done
    set +m
    # One that has failed has said so; whether a test was not run for that is seen at the end.
    for pid in "${lane_pids[@]}"; do wait "$pid" || true; done
    trap - INT TERM HUP
    conclude
}

end_lanes() {
    local pid
    trap '' INT TERM HUP
    for pid in "${lane_pids[@]}"; do kill -TERM -- "-$pid" 2>/dev/null || true; done
    wait
    exit 130
}

# run_lane LANE: as many guests one after the other as are needed, within reason.
run_lane() {
    local boots status left=() where
    export FARPOINT_LANE=$1
    for ((boots = 0; boots < 7; boots++)); do
        mapfile -t left < <(unclaimed)
        ((${#left[@]} > 0)) || return 0
        where=${left[0]##* }
        mapfile -t left < <(printf '%s\n' "${left[@]}" | sed -n "s/ $where\$//p")
        if [[ $where == outside ]]; then
            run_outside "${left[@]}"
            continue
        fi
        rm -f "$(notes current)"
        status=0
        boot "$where" "${left[@]%% *}" || status=$?
        if [[ $status != 0 && -s $(notes current) ]]; then
            echo "FAILED  $(<"$(notes current)"): the guest ended with $status while it ran"
            echo "failed $(<"$(notes current)")" >>"$(notes results)"
        elif [[ $status != 0 ]]; then
            echo "run.sh: the guest could not run the tests: $status" >&2
            return 3
        fi
    done
}

# run_outside "NAME SECONDS"...: tests that boot guests themselves.
run_outside() {
    local name seconds status began
    export FARPOINT_LONG='' FARPOINT_KERNEL=$kernel FARPOINT_WORK
    [[ $form != long ]] || FARPOINT_LONG=yes
    while read -r name seconds; do
        claim "$name" || continue
        status=0 began=$SECONDS
        FARPOINT_WORK=$(mktemp --directory /tmp/farpoint-outside.XXXXXX)
        # In the foreground, or it would be in a process group of its own.
        timeout --foreground --signal=TERM --kill-after=60 "$seconds" "$here/$name.sh" >"$keep/$name.log" 2>&1 </dev/null || status=$?
        ((status != 124)) || echo "FAILED: it did not end in $seconds seconds" >>"$keep/$name.log"
        verdict "$name" "$status" "$keep/$name.log" $((SECONDS - began))
        rm -rf "$FARPOINT_WORK" || true
    done < <(printf '%s\n' "$@")
}

# conclude: the last line. Fails if a test did, or was not run.
conclude() {
    local results count each=() name left=()
    results=$(cat "$keep"/run/results.* 2>/dev/null) || true
    for count in passed failed skipped; do
        each+=("$(grep --count "^$count " <<<"$results" || true) $count")
    done
    while read -r name _; do
        grep --quiet --extended-regexp "^[a-z]* $name( |\$)" <<<"$results" || left+=("$name")
    done < <(selection)
    echo "${each[0]}, ${each[1]}, ${each[2]} in $SECONDS seconds"
    ((${#left[@]} == 0)) || { echo "run.sh: not run: ${left[*]}" >&2 && return 3; }
    ! grep --quiet '^failed ' <<<"$results"
}

# What every test needs, once.
prepare() {
    [[ $(id -u) == 0 ]] || die "needs root"
    [[ -e /dev/ublk-control ]] || modprobe ublk_drv || die "this kernel has no ublk_drv"
    # As on every machine with systemd: a mount made later is seen by a daemon that runs.
    mount --make-rshared /
    modprobe brd rd_nr=4 rd_size=131072 max_part=0
    directory=$(mktemp --directory /tmp/farpoint-tests.XXXXXX)
    # The programs once and from memory, not each page of them through the file server.
    cp "$FARPOINT_BIN" "$directory/farpoint"
    cp "$FARPOINT_DEVICE_BIN" "$directory/device"
    export FARPOINT=$directory/farpoint FARPOINT_DEVICE=$directory/device FARPOINT_LONG=''
    [[ $form != long ]] || FARPOINT_LONG=yes
    # A task that waits for a minute in the kernel is hung; none of the tests lets one wait that long.
    echo 60 >/proc/sys/kernel/hung_task_timeout_secs
    echo 1 >/proc/sys/kernel/hung_task_all_cpu_backtrace 2>/dev/null || true
}

# The file server of the guest has a file open for every one that the guest remembers, and may open only so many.
forget_files() {
    local inodes
    read -r inodes _ </proc/sys/fs/inode-nr
    ((inodes < 12000)) || echo 2 >/proc/sys/vm/drop_caches
}

# run_test NAME SECONDS
run_test() {
    local name=$1 seconds=$2 status=0 log began=$SECONDS
    forget_files
    log=$keep/$name.log
    export FARPOINT_WORK=$directory/$name
    mkdir -p "$FARPOINT_WORK"
    echo "farpoint-test: $name" >/dev/kmsg
    timeout --signal=TERM --kill-after=60 "$seconds" "$here/$name.sh" >"$log" 2>&1 </dev/null || status=$?
    ((status != 124)) || echo "FAILED: it did not end in $seconds seconds" >>"$log"
    aftermath "$name" >>"$log" || status=1
    verdict "$name" "$status" "$log" $((SECONDS - began))
    rm -rf "$FARPOINT_WORK" || true
}

# verdict NAME STATUS LOG SECONDS
verdict() {
    local figures word=failed
    figures=$(sed -n 's/^figure: //p' "$3" | tr '\n' ' ')
    case $2 in
        0) word=passed && echo "ok      $1 ($4 s) $figures" ;;
        77) word=skipped && echo "skipped $1: $(sed -n 's/^skipped: //p' "$3" | tail -n 1)" ;;
        *)
            echo "FAILED  $1 ($4 s) $figures"
            tail -n 45 "$3" | sed "s/^/        $1: /"
            ;;
    esac
    echo "$word $1 $4 $figures" >>"$(notes results)"
    rm -f "$(notes current)"
}

# aftermath NAME: what the test left in the machine; whatever it is goes, but it counts as a failure.
aftermath() {
    local clean=0 messages each
    messages=$(dmesg | sed "0,/farpoint-test: $1\$/d" |
        grep --extended-regexp 'blocked for more than|Out of memory|BUG:|WARNING:|Oops|general protection|refcount_t|KASAN' |
        grep --invert-match 'soft lockup') || true
    if [[ -n $messages ]]; then
        echo "FAILED: the kernel complains: $messages"
        dmesg | tail -n 60
        clean=1
    fi
    for each in /dev/ublkb*; do
        [[ -b $each ]] || continue
        echo "FAILED: it left $each"
        remove_devices
        clean=1
        break
    done
    hung || clean=1
    while read -r _ each _; do
        [[ $each != "$directory/"* ]] || umount --lazy "$each" || clean=1
    done <<<"$(tac /proc/mounts)"
    return "$clean"
}

# The test's daemon takes back what it had left, and then takes it down. What nobody knows stays.
remove_devices() {
    local process try name
    "$FARPOINT" --config-dir "$FARPOINT_WORK/etc" daemon &
    process=$!
    sleep 3
    for ((try = 0; try < 20; try++)); do
        compgen -G '/dev/ublkb*' >/dev/null || break
        for name in "$FARPOINT_WORK/etc/volumes.d/"*.toml; do
            name=${name##*/}
            "$FARPOINT" --config-dir "$FARPOINT_WORK/etc" down "${name%.toml}" --force --yes || true
        done
        sleep 0.5
    done
    kill -TERM "$process"
    wait "$process" || true
}

# hung: processes that cannot be killed; those that only wait for a moment are looked at again.
hung() {
    local try dir line names
    for ((try = 0; try < 30; try++)); do
        names=''
        for dir in /proc/[0-9]*; do
            read -r line 2>/dev/null <"$dir/stat" || continue
            [[ ${line##*) } != D* ]] || names+=" ${dir#/proc/}:${line%%)*})"
        done
        [[ -n $names ]] || return 0
        sleep 0.1
    done
    echo "FAILED: these cannot be interrupted:$names"
    for dir in $names; do cat "/proc/${dir%%:*}/stack" 2>/dev/null || true; done
    return 1
}

# In a guest, or by hand on a machine that has ublk.
run_inside() {
    local name seconds where
    prepare
    if [[ -z ${FARPOINT_LANE:-} ]]; then
        keep=${keep:-$directory}
        clear_results
    fi
    echo "farpoint tests ($form) on Linux $(uname -r)"
    while read -r name seconds where <&3; do
        claim "$name" || continue
        if [[ $where == outside ]]; then
            echo "skipped: it boots guests itself; run it without --inside" >"$keep/$name.log"
            verdict "$name" 77 "$keep/$name.log" 0
        else
            run_test "$name" "$seconds"
        fi
    done 3< <(selection)
    # Of all lanes the one who began them tells.
    [[ -n ${FARPOINT_LANE:-} ]] || conclude
}

main() {
    local name
    parse_options "$@"
    for name in "${chosen[@]}"; do
        [[ -x $here/$name.sh && $tests == *$'\n'"$name "* ]] || die "no test $name; see tests/vm/run.sh --list"
    done
    if [[ -n $list ]]; then
        selection
        return
    fi
    if [[ -n $inside ]]; then
        run_inside
        return
    fi
    build
    become_root "$@"
    run_in_guests
}

main "$@"
