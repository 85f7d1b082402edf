#!/bin/bash
# The guest of service.sh: the unit under systemd. The daemon says when it is ready; killed, or silent for longer than the
# watchdog allows, it is started again and takes its devices back; a restart leaves what is in use to the next daemon; and a
# stop takes down what nobody uses (H22, H27). Volumes come up with the daemon, in time for /etc/fstab.

set -euo pipefail
tree=$(cd "${BASH_SOURCE[0]%/*}/../.." && pwd -P)
# Not in /tmp, which systemd empties.
export FARPOINT_WORK=/var/tmp/service FARPOINT=/usr/bin/farpoint FARPOINT_DEVICE=/var/tmp/service/device
mkdir -p "$FARPOINT_WORK"
cp "$FARPOINT_BIN" "$FARPOINT"
cp "$FARPOINT_DEVICE_BIN" "$FARPOINT_DEVICE"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$tree/tests/vm/lib.sh"

# The places are those of the unit.
fp() { farpoint "$@"; }

# The guest's first process is not systemd, so systemd gets a space of process numbers in which it is.
launch_systemd() {
    cp "$tree/packaging/farpoint.service" /usr/lib/systemd/system/
    cp "$tree/packaging/farpoint.tmpfiles" /usr/lib/tmpfiles.d/farpoint.conf
    cp "$tree/packaging/farpoint.rules" /usr/lib/udev/rules.d/65-farpoint.rules
    printf '[Unit]\nDescription=only what the unit needs\n' >/etc/systemd/system/test.target
    mkdir -p /etc/systemd/system/farpoint.service.d
    printf '[Service]\nWatchdogSec=20\nTimeoutAbortSec=1\n' >/etc/systemd/system/farpoint.service.d/test.conf
    mount --make-rshared /
    # What it mounts and unmounts its services see, as on every machine; in a container it would leave that to others.
    unshare --pid --mount --propagation slave --fork --mount-proc bash -c 'mount --make-rshared / && exec "$@"' - \
        env container=test /usr/lib/systemd/systemd --system --unit=test.target >"$work/systemd.log" 2>&1 &
    jobs+=($!)
    wait_for "systemd" has_child $!
    systemd=$(pgrep --parent $!)
    wait_for "systemd to be ready" ctl is-active test.target
}

has_child() { pgrep --parent "$1"; }

# inside COMMAND...: where systemd is; it talks only to one whom it sees.
inside() { nsenter --target "$systemd" --pid --mount "$@"; }

ctl() { inside systemctl "$@"; }

property() { ctl show --property="$1" --value farpoint.service; }

# is_again RESTARTS: it was started again more often than that.
is_again() { (($(property NRestarts) > $1)) && ctl is-active farpoint.service && in_state vol0 .state normal; }

# Commits until it is told to end; an error ends it at once.
commit() {
    local number=0
    until [[ -e $work/enough ]]; do
        number=$((number + 1))
        echo "$number" >"$1/number"
        sync "$1/number"
        echo "$number" >"$work/committed.new"
        mv "$work/committed.new" "$work/committed"
        sleep 0.05
    done
}

# went_on WHAT: whoever uses the device noticed nothing but a pause.
went_on() {
    local before
    before=$(<"$work/committed")
    expect "$1: the device" "$dev" "$(device_of vol0)"
    wait_for "commits after that" eval "((\$(<$work/committed) > $before))"
    [[ -d /proc/$commits ]] || fail "$1: the file system had an error"
}

launch_systemd
ctl start farpoint.service
background inside journalctl --follow --unit=farpoint --output=cat >"$work/daemon.log"
expect "the unit" "active" "$(property ActiveState)"
expect "its program, to systemd" "notify running" "$(property Type) $(property SubState)"
is_logged() { [[ $(inside journalctl --unit=farpoint --output=cat) == *ready* ]]; }
wait_for "the log" is_logged

make_volume vol0 "$(sparse primary 64M)" "$(sparse secondary 64M)" --autostart yes
named() { [[ $(readlink --canonicalize "/dev/farpoint/$1") == "$2" ]]; }
wait_for "the name of the device" named vol0 "$dev"
mkfs.ext4 -q "$dev"
in_sync vol0
mount_at "$dev" "$work/mnt"
background commit "$work/mnt"
commits=$job
wait_for "the first commit" test -s "$work/committed"

say "killed"
restarts=$(property NRestarts)
ctl kill --signal=KILL farpoint.service
wait_for "the daemon to be back" is_again "$restarts"
went_on "after a kill"

say "silent"
restarts=$(property NRestarts)
ctl kill --signal=STOP farpoint.service
patience=240 wait_for "the watchdog" is_again "$restarts"
went_on "after the watchdog"

say "restarted"
ctl restart farpoint.service
wait_for "the daemon to be back" in_state vol0 .state normal
went_on "after a restart"
expect "copied again after a restart" 0 "$(field vol0 .recovered_regions)"

say "ended and started, with another volume that nobody uses"
make_volume vol1 "$(sparse primary1 16M)" "$(sparse secondary1 16M)"
unused=$dev dev=$(device_of vol0)
in_sync vol1
ctl stop farpoint.service
[[ -b $dev && ! -e $unused ]] || fail "left: $(echo /dev/ublkb*)"
ctl start farpoint.service
wait_for "the daemon to be back" in_state vol0 .state normal
went_on "after a stop and a start"

touch "$work/enough"
finish "$commits" "commits"
expect "the last commit" "$(<"$work/committed")" "$(<"$work/mnt/number")"
unmount "$work/mnt"
in_sync vol0
ctl stop farpoint.service
[[ ! -e $dev ]] || fail "$dev is left though nobody used it"
equal "$work/primary" "$work/secondary"
e2fsck -f -n "$work/primary" >"$work/fsck" 2>&1 || fail "fsck: $(cat "$work/fsck")"
figure commits "$(<"$work/committed")"

say "mounted as the machine starts"
mkdir /mnt/vol0
ctl enable farpoint.service
# Without _netdev the mount and the service would wait for each other.
for options in '' '_netdev,'; do
    echo "/dev/farpoint/vol0 /mnt/vol0 ext4 ${options}x-systemd.after=farpoint.service 0 2" >/etc/fstab
    inside systemd-analyze verify --generators=yes --man=no local-fs.target multi-user.target >"$work/verify" 2>&1 || true
    cycles=$(grep --count 'ordering cycle.*' "$work/verify") || true
    [[ -z $options && $cycles != 0 || -n $options && $cycles == 0 ]] || fail "with '$options' $cycles cycles"
done
ctl daemon-reload
ctl start farpoint.service mnt-vol0.mount
expect "the file there" "$(<"$work/committed")" "$(inside cat /mnt/vol0/number)"
expect "the volume that is not to come up" down "$(field vol1 .state)"
mounted_since() { ctl show --property=ActiveEnterTimestampMonotonic --value mnt-vol0.mount; }
since=$(mounted_since) restarts=$(property NRestarts)
ctl kill --signal=KILL farpoint.service
wait_for "the daemon to be back" is_again "$restarts"
ctl restart farpoint.service
wait_for "the daemon to be back" in_state vol0 .state normal
expect "the mount" active "$(ctl show --property=ActiveState --value mnt-vol0.mount)"
expect "mounted since" "$since" "$(mounted_since)"
expect "the file there" "$(<"$work/committed")" "$(inside cat /mnt/vol0/number)"
ctl stop mnt-vol0.mount farpoint.service
[[ ! -e $dev ]] || fail "$dev is left though nobody used it"

say "its secondary is away when the daemon starts"
mv "$work/secondary" "$work/away"
ctl start farpoint.service
waits() { in_state vol0 .state waiting && in_state vol0 .reason "*secondary*does not exist*"; }
cannot_start() { [[ $(fp start vol0 2>&1) == *"waits until it can come up"* ]]; }
wait_for "the volume to wait" waits
wait_for "start to be refused" cannot_start
mv "$work/away" "$work/secondary"
wait_for "the volume to come up" in_state vol0 .state normal

say "its metadata is away"
fp down vol0
mv /var/lib/farpoint/vol0.meta /var/lib/farpoint/away
ctl restart farpoint.service
refused "up" 3 "*left out*no metadata*" fp up vol0
refused "monitoring" 2 "CRITICAL*left out*no metadata*" fp status --check
mv /var/lib/farpoint/away /var/lib/farpoint/vol0.meta
wait_for "the volume to come up" in_state vol0 .state normal

say "given up"
fp down vol0
mv "$work/secondary" "$work/away"
ctl restart farpoint.service
wait_for "the volume to wait" waits
wait_for "the volume to be given up" fp down vol0
expect "state after down" down "$(field vol0 .state)"
mv "$work/away" "$work/secondary"
fp set vol0 --autostart no
ctl restart farpoint.service
expect "state without autostart" down "$(field vol0 .state)"
ctl stop farpoint.service
