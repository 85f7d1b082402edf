#!/bin/bash
# fio with verification: what is written is what is read, from 512 B to 512 KiB, at any offset, at depths from 1 to 128, over
# two queues, with writes that overlap; and the secondary equals the primary in the end (P1, P5, P6, H11, H19).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

each=8M
[[ -z $long ]] || each=48M
size=384M
common=(--filename= --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 --verify_dump=0 --group_reporting
    --output-format=terse --terse-version=3 --randseed=7 --size="$each")

start_daemon
make_volume vol0 "$(sparse primary $size)" "$(sparse secondary $size)" --queues 2 --depth 128
expect "queues" 2 "$(find "/sys/block/${dev##*/}/mq" -mindepth 1 -maxdepth 1 | wc --lines)"
common[0]+=$dev
mix=512/20:4k/40:20k/10:64k/15:192k/10:512k/5

# One fio, so that its jobs run side by side; each verifies what it wrote in its own part of the device.
fio "${common[@]}" \
    --name=depth1 --offset=0 --rw=randwrite --bssplit=$mix --blockalign=512 --iodepth=1 --size=2M \
    --name=depth16 --offset=48M --rw=randrw --bssplit=$mix --blockalign=512 --iodepth=16 \
    --name=depth128 --offset=96M --rw=randwrite --bssplit=$mix --blockalign=512 --iodepth=128 \
    --name=odd --offset=144M --rw=randwrite --bsrange=512-100k --blockalign=512 --iodepth=32 \
    --name=sequential --offset=192M --rw=write --bs=512k --iodepth=4 \
    --name=buffered --offset=240M --rw=randwrite --direct=0 --bsrange=300-70000 --bs_unaligned=1 --ioengine=psync \
    --size=2M --end_fsync=1 >"$work/fio" || fail "fio: $(tail -n 20 "$work/fio")"
say "verified"
# Writes that overlap in flight: nobody knows what the primary holds, but the secondary must hold the same.
fio --filename="$dev" --direct=1 --ioengine=libaio --randseed=9 --output="$work/fio2" --name=overlap --offset=0 --size=1M \
    --io_size=$each --rw=randwrite --bsrange=4k-128k --blockalign=512 --iodepth=64 --norandommap \
    --numjobs=2 --group_reporting || fail "fio: $(tail -n 20 "$work/fio2")"
in_sync vol0
equal "$work/primary" "$work/secondary"
expect "errors of the host" 0 "$(field vol0 .counters.host_errors)"
figure writes "$(field vol0 .counters.host_writes)"
figure mib "$(($(field vol0 .counters.host_write_bytes) >> 20))"
fp down vol0
stop_daemon
