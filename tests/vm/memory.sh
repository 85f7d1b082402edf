#!/bin/bash
# The daemon cannot wait for itself when memory is short: it is locked in memory, and every thread that serves I/O has the
# flag of an I/O flusher (H26).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

# PF_MEMALLOC_NOIO of linux/sched.h.
noio=$((0x80000))

start_daemon
make_volume vol0 "$(sparse primary 16M)" "$(sparse secondary 16M)" --queues 2
locked=$(sed -n 's/^VmLck:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$daemon/status")
resident=$(sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$daemon/status")
at_least "locked memory in kB, of the resident" "$((resident / 2))" "$locked"
queues=0 drains=0
for task in "/proc/$daemon/task"/*; do
    # A worker may have ended by now.
    stat=$(cat "$task/stat" 2>/dev/null) || continue
    name=${stat#*(} name=${name%) *}
    read -r -a words <<<"${stat##*) }"
    flusher=$(((words[6] & noio) != 0))
    say "thread $name: I/O flusher $flusher"
    case $name in
        ublk*-q*) queues=$((queues + 1)) && expect "$name is an I/O flusher" 1 "$flusher" ;;
        *drain*) drains=$((drains + 1)) && expect "$name is an I/O flusher" 1 "$flusher" ;;
    esac
done
expect "threads of queues" 2 "$queues"
expect "threads of drains" 1 "$drains"
fp down vol0
stop_daemon
