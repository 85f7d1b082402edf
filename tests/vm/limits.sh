#!/bin/bash
# The device has the primary's limits: block sizes, write cache and FUA, discard, and as many queues and requests as asked
# for, from 1 to the most (H29).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

limit() { cat "/sys/block/${dev##*/}/queue/$1"; }

start_daemon
loop_device "$(sparse blocks 32M)" --sector-size 4096
make_volume vol0 "$node" "$(sparse secondary 32M)" --queues 4 --depth 256
expect "logical block" 4096 "$(limit logical_block_size)"
expect "physical block" 4096 "$(limit physical_block_size)"
expect "write cache" "write back" "$(limit write_cache)"
expect "FUA" 1 "$(limit fua)"
at_least "largest request in KiB" 128 "$(limit max_sectors_kb)"
queues=$(find "/sys/block/${dev##*/}/mq" -mindepth 1 -maxdepth 1 | wc --lines)
# The driver grants no more queues than there are processors.
expect "queues" "$(($(nproc) < 4 ? $(nproc) : 4))" "$queues"
refused "a write of half a block" 1 "*Invalid argument*" \
    dd if=/dev/zero of="$dev" bs=512 count=1 oflag=direct conv=notrunc status=none
fio --name=deep --filename="$dev" --direct=1 --ioengine=libaio --rw=randwrite --bs=4k --iodepth=256 --size=4M --numjobs=2 \
    --offset_increment=8M --verify=crc32c --group_reporting --output="$work/fio" || fail "fio: $(tail -n 20 "$work/fio")"
in_sync vol0
fp down vol0
equal "$node" "$work/secondary"
make_volume shallow "$(sparse small 8M)" "$(sparse small-secondary 8M)" --queues 1 --depth 1
"$device" write "$dev" --seconds 2 --writers 3 --largest 524288 --hot $((8 << 20)) --pause-ms 0 --verify
in_sync shallow
fp down shallow
equal "$work/small" "$work/small-secondary"
stop_daemon
