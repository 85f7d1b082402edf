# shellcheck shell=bash
# What the tests of the device share: a daemon of their own, disks to spoil, assertions that say what was expected, and an
# end that leaves nothing behind. Read by every test in this directory, which tests/vm/run.sh starts in the guest.
#
# run.sh gives each test an empty directory (work), the program (farpoint), the tools of tests/device (device), and says
# whether it is the long form (long).

set -euo pipefail

farpoint=${FARPOINT:?start tests with tests/vm/run.sh NAME}
device=${FARPOINT_DEVICE:?start tests with tests/vm/run.sh NAME}
work=${FARPOINT_WORK:?start tests with tests/vm/run.sh NAME}
# shellcheck disable=SC2034 # For the tests.
long=${FARPOINT_LONG:-}

# An emulated CPU that others use too may be away from a task for this long; added to every bound of a latency.
# shellcheck disable=SC2034 # For the tests.
slack_ms=4000
# How long anything may take that is not a matter of latency.
patience=120

daemon=''
mounts=() mapped=() loops=() jobs=()

mkdir -p "$work/etc"
printf 'run_dir = "%s/run"\nstate_dir = "%s/state"\n' "$work" "$work" >"$work/etc/farpoint.toml"

say() { echo "-- $*"; }

# figure NAME VALUE: a number worth keeping; run.sh shows it in the test's line.
figure() { echo "figure: $1=$2"; }

fail() {
    trap - ERR
    echo "FAILED: $*"
    exit 1
}

# skip REASON: this machine cannot run the test.
skip() {
    echo "skipped: $*"
    exit 77
}

fp() { "$farpoint" --config-dir "$work/etc" "$@"; }

# launch_daemon: starts a daemon.
launch_daemon() {
    "$farpoint" --config-dir "$work/etc" daemon >>"$work/daemon.log" 2>&1 &
    daemon=$!
}

# start_daemon: starts a daemon and waits until it answers.
start_daemon() {
    local try
    launch_daemon
    for ((try = 0; try < 300; try++)); do
        if [[ -S $work/run/control.sock ]] && fp --timeout 30 status >"$work/status" 2>&1; then return; fi
        kill -0 "$daemon" 2>/dev/null || fail "the daemon ended: $(tail -n 3 "$work/daemon.log")"
        sleep 0.1
    done
    fail "the daemon does not answer"
}

# stop_daemon: a clean end, which must succeed.
stop_daemon() {
    kill -TERM "$daemon"
    daemon_ends
}

# daemon_ends: it has been told to, and must end well; it may have ended already.
daemon_ends() {
    local status=0
    wait_for "the daemon to end" gone "$daemon"
    wait "$daemon" || status=$?
    daemon=''
    ((status == 0)) || fail "the daemon ended with $status after SIGTERM: $(tail -n 3 "$work/daemon.log")"
}

# kill_daemon: as a crash would end it.
kill_daemon() {
    kill -KILL "$daemon"
    wait_for "the killed daemon to go" gone "$daemon"
    wait "$daemon" 2>/dev/null || true
    daemon=''
}

# state_of PID: the letter of its state, nothing if it is not there.
state_of() {
    local line=''
    read -r line 2>/dev/null <"/proc/$1/stat" || true
    line=${line##*) }
    echo "${line%% *}"
}

# gone PID: it has ended, or only waits to be waited for.
gone() { [[ $(state_of "$1") == [ZX] || ! -d /proc/$1 ]]; }

# wait_for WHAT COMMAND...: until the command succeeds.
wait_for() {
    local what=$1 end=$((SECONDS + patience))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "waited $patience seconds for $what"
        sleep 0.1
    done
}

# Fixtures.

# sparse NAME SIZE: an empty file in the test's directory; prints its path.
sparse() {
    truncate --size="$2" "$work/$1"
    echo "$work/$1"
}

# loop_device FILE [OPTION...]: sets $node.
loop_device() {
    node=$(losetup --find --show "${@:2}" "$1")
    loops+=("$node")
}

# map NAME TABLE...: makes a device of device mapper, one argument for each line of its table; sets $node.
map() {
    local name=$1
    shift
    printf '%s\n' "$@" | dmsetup create --noudevrules --noudevsync "$name"
    mapped+=("$name")
    dmsetup mknodes "$name"
    node=/dev/mapper/$name
}

# remap NAME TABLE...: gives it another table.
remap() {
    local name=$1
    shift
    printf '%s\n' "$@" | dmsetup load "$name"
    dmsetup suspend --noudevsync "$name"
    dmsetup resume --noudevsync "$name"
}

# ram_disk NUMBER MIB NAME: a part of a ram disk as a device of that size, zeroed; sets $node.
ram_disk() {
    local backing=/dev/ram$1
    [[ -b $backing ]] || fail "no $backing; run.sh loads brd"
    map "$3" "0 $(($2 * 2048)) linear $backing 0"
    blkdiscard --force --zeroout "$node"
}

# sectors_of DEVICE: its size in sectors of 512 bytes.
sectors_of() { blockdev --getsz "$1"; }

# mount_at DEVICE DIRECTORY [OPTION...]
mount_at() {
    mkdir -p "$2"
    mount "${@:3}" "$1" "$2"
    mounts+=("$2")
}

unmount() {
    umount "$1"
    local others=() each
    for each in "${mounts[@]}"; do [[ $each == "$1" ]] || others+=("$each"); done
    mounts=("${others[@]}")
}

# make_volume NAME PRIMARY SECONDARY [OPTION...]: creates it and brings it up; sets $dev to its device.
make_volume() {
    fp create "$1" --primary "$2" --secondary "$3" "${@:4}"
    bring_up "$1"
}

# bring_up NAME: sets $dev.
bring_up() {
    fp up "$1" >"$work/up" || fail "up $1 failed: $(tail -n 3 "$work/daemon.log")"
    dev=$(device_of "$1")
    [[ -b $dev ]] || fail "up $1 made no block device: $dev"
}

# filled LETTER BYTES: so many of it.
filled() { head --bytes="$2" /dev/zero | tr '\0' "$1"; }

# Questions.

# field VOLUME PATH: a field of its status, for example .counters.host_writes.
field() { fp status --json "$1" | jq --raw-output ".volumes[0]$2"; }

device_of() { field "$1" .device; }

# in_state VOLUME PATH PATTERN
in_state() {
    # shellcheck disable=SC2053 # A pattern.
    [[ $(field "$1" "$2") == $3 ]]
}

in_sync() { fp wait "$@" --until in-sync --timeout "$patience"; }

# Assertions.

# expect WHAT EXPECTED FOUND
expect() {
    # shellcheck disable=SC2053 # What is expected is a pattern.
    [[ $3 == $2 ]] || fail "$1: expected '$2', found '$3'"
    say "$1: $3"
}

# at_most WHAT BOUND FOUND
at_most() {
    (($3 <= $2)) || fail "$1: expected at most $2, found $3"
    say "$1: $3, at most $2"
}

# at_least WHAT BOUND FOUND
at_least() {
    (($3 >= $2)) || fail "$1: expected at least $2, found $3"
    say "$1: $3, at least $2"
}

# refused WHAT CODE PATTERN COMMAND...: it fails with this code and one line that matches.
refused() {
    local what=$1 code=$2 pattern=$3 status=0 text
    shift 3
    text=$("$@" 2>&1) || status=$?
    expect "$what: exit code" "$code" "$status"
    expect "$what: message" "$pattern" "$text"
}

# equal A B: the same content, as far as A goes.
equal() {
    "$device" compare "$1" "$2" || fail "$1 and $2 differ"
    say "equal: $1 $2"
}

# Work in the background.

# background COMMAND...: sets $job.
background() {
    "$@" &
    job=$!
    jobs+=("$job")
}

# finish JOB WHAT: waits for it; it must end well.
finish() {
    local status=0
    wait "$1" || status=$?
    ((status == 0)) || fail "$2 ended with $status"
}

# writers_on DEVICE [OPTION...]: writes to the device until end_writers; sets $writers.
writers_on() {
    rm -f "$work/enough"
    "$device" write "$1" --until "$work/enough" "${@:2}" >"$work/writers" 2>&1 &
    writers=$!
    jobs+=("$writers")
}

# end_writers: ends them, and sets $longest_ms, $errors and $errno.
end_writers() {
    touch "$work/enough"
    wait_for "the writers to end" gone "$writers"
    wait "$writers" || fail "the writers failed: $(cat "$work/writers")"
    writer_figures
}

writer_figures() {
    local line
    line=$(grep longest_ms= "$work/writers") || fail "the writers said nothing: $(cat "$work/writers")"
    say "$line"
    longest_ms=${line#*longest_ms=} errors=${line#* errors=} errno=${line#*errno=}
    longest_ms=${longest_ms%% *} errors=${errors%% *} errno=${errno%% *}
    # Counted at the start as well: writers that never wrote prove nothing.
    [[ $line != writes=0\ * ]] || fail "the writers wrote nothing"
}

# The end, whatever the test came to.

leave() {
    local status=$? each number
    trap - EXIT ERR
    set +e
    touch "$work/enough"
    for each in "${mapped[@]}"; do dmsetup resume --noudevsync "$each" 2>/dev/null; done
    if ((status != 0 && status != 77)); then
        [[ -z $daemon ]] || fp --timeout 5 status --verbose 2>&1 | grep --invert-match 'version:' | head -n 24
        [[ ! -e $work/daemon.log ]] || tail -n 12 "$work/daemon.log"
    fi
    for each in "${jobs[@]}"; do kill -KILL "$each" 2>/dev/null; done
    for ((number = ${#mounts[@]} - 1; number >= 0; number--)); do
        mountpoint --quiet "${mounts[number]}" && timeout 20 umount --lazy "${mounts[number]}"
    done
    if [[ -n $daemon ]]; then
        kill -TERM "$daemon" 2>/dev/null
        kill -CONT "$daemon" 2>/dev/null
        for ((number = 0; number < 150; number++)); do
            gone "$daemon" && break
            sleep 0.1
        done
        if ! gone "$daemon"; then
            echo "FAILED: the daemon did not end after SIGTERM"
            tasks_of "$daemon"
            status=1
            kill -KILL "$daemon"
        fi
    fi
    # Not for ever: a writer whose device waits for a daemon cannot be killed.
    for each in "${jobs[@]}" $daemon; do
        for ((number = 0; number < 50; number++)); do
            gone "$each" && break
            sleep 0.1
        done
    done
    # The last first: it may be built on others.
    for ((number = ${#mapped[@]} - 1; number >= 0; number--)); do
        timeout 10 dmsetup remove --noudevrules --noudevsync "${mapped[number]}" 2>/dev/null
    done
    for each in "${loops[@]}"; do losetup --detach "$each" 2>/dev/null; done
    exit "$status"
}
trap leave EXIT
trap 'exit 130' INT TERM
# A command that ends a test says nothing itself of where it was. One in a $( ) ends nothing, and is told all the same.
set -o errtrace
trap 'say "failed: $BASH_COMMAND (${BASH_SOURCE[0]##*/}, line $LINENO)" >&2' ERR

# tasks_of PID: where its threads are in the kernel.
tasks_of() {
    local task
    for task in "/proc/$1/task"/*; do
        echo "$(cat "$task/comm" 2>/dev/null) $(tr '\n' ' ' 2>/dev/null <"$task/stack")"
    done
}
