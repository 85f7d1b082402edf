#!/bin/bash
# down while somebody uses the device is refused and names the user: a mount, of a partition too, a process, a device built
# upon it; swap, and a mount in another namespace, which only the kernel knows of. --force takes it away all the same, and no
# process hangs.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

start_daemon
make_volume vol0 "$(sparse primary 64M)" "$(sparse secondary 64M)"
mkfs.ext4 -q "$dev"
in_sync vol0

mount_at "$dev" "$work/mnt"
refused "down while it is mounted" 8 "*mounted on $work/mnt*--force*" fp down vol0
expect "state" normal "$(field vol0 .state)"
echo content >"$work/mnt/file"
unmount "$work/mnt"

exec {held}<"$dev"
sleep 600 &
exec {held}<&-
jobs+=($!)
refused "down while it is open" 8 "*process $! (sleep)*" fp down vol0
kill "$!"
wait "$!" 2>/dev/null || true

worker="$work/(udev-worker)"
cp /bin/sleep "$worker"
exec {held}<"$dev"
"$worker" 600 &
exec {held}<&-
jobs+=($!)
looks() { [[ $(<"/proc/$1/comm") == "(udev-worker)" && $(readlink "/proc/$1/fd/$held") == "$dev" ]]; }
wait_for "udev" looks $!
say "udev keeps nobody"
fp down vol0
kill "$!"
bring_up vol0
in_sync vol0

map upon "0 8192 linear $dev 0"
refused "down while something is built on it" 8 "*used by /dev/dm-*" fp down vol0
dmsetup remove --noudevrules --noudevsync upon

unseen() { refused "down while $1" 8 "*cannot be seen from here*--force*" fp down vol0; }

mkswap "$dev" >/dev/null
swapon "$dev"
unseen "it is swapped to"
swapoff "$dev"

mkfs.ext4 -q "$dev"
mkdir "$work/elsewhere"
background unshare --mount --propagation private \
    sh -c "mount $dev $work/elsewhere && touch $work/elsewhere/there && exec sleep 600"
elsewhere=$job
wait_for "the mount elsewhere" test -e "/proc/$elsewhere/root$work/elsewhere/there"
[[ ! -e $work/elsewhere/there ]] || fail "the mount can be seen from here"
unseen "it is mounted elsewhere"
kill "$elsewhere"
wait "$elsewhere" 2>/dev/null || true

addpart "$dev" 1 8192 65536
mkfs.ext4 -q "${dev}p1"
mount_at "${dev}p1" "$work/mnt"
refused "down while a partition is mounted" 8 "*mounted on $work/mnt*--force*" fp down vol0
unmount "$work/mnt"
delpart "$dev" 1
mkfs.ext4 -q "$dev"
in_sync vol0

say "--force under a mounted file system at work"
mount_at "$dev" "$work/mnt"
background "$device" churn "$work/mnt" --operations 100000 --threads 2
churn=$job
sleep 2
fp down vol0 --force --yes
[[ ! -e $dev ]] || fail "$dev is still there after down --force"
wait_for "the churn to end" gone "$churn"
unmount "$work/mnt"
bring_up vol0
in_sync vol0
expect "fsck" 0 "$(e2fsck -f -p "$dev" >"$work/fsck" 2>&1; status=$?; echo $((status & ~1)))"
in_sync vol0
fp down vol0
equal "$work/primary" "$work/secondary"
stop_daemon
