#!/bin/bash
# The rules of opening a primary and a secondary that need a machine of its own, with farpoint as the server of the ublk
# devices (H24, H27); the cases are in open.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

# open.sh asks for a server of a device with a number of its choice: volumes are made until it is there.
cat >"$work/server" <<'SERVER'
#!/bin/bash
set -euo pipefail
wanted=/dev/ublkb$2
serve=$(mktemp -d)
mkdir "$serve/etc"
printf 'run_dir = "%s/run"\nstate_dir = "%s/state"\n' "$serve" "$serve" >"$serve/etc/farpoint.toml"
fp() { "$FARPOINT" --config-dir "$serve/etc" "$@"; }
make_volumes() {
    local number=0
    until [[ -S $serve/run/control.sock ]]; do sleep 0.1; done
    until [[ -b $wanted ]]; do
        truncate --size=32M "$serve/primary$number" "$serve/secondary$number"
        fp create "v$number" --primary "$serve/primary$number" --secondary "$serve/secondary$number"
        fp up "v$number"
        number=$((number + 1))
    done
}
make_volumes &
exec "$FARPOINT" --config-dir "$serve/etc" daemon
SERVER
chmod +x "$work/server"
[[ -x ${FARPOINT_STORAGE_BIN:-} ]] || skip "the program of tests/storage.rs is not built (FARPOINT_STORAGE_BIN)"
rmmod brd
export FARPOINT_UBLK_SERVER=$work/server
status=0
TMPDIR=$work "${BASH_SOURCE[0]%/*}/open.sh" "$FARPOINT_STORAGE_BIN" || status=$?
# Whatever open.sh left mounted or served is in the way of the next test.
{ umount --recursive --lazy "$work"/*/* || true; } 2>/dev/null
# Its servers were killed, and their devices wait for them.
for each in "$work"/tmp.*/etc; do
    [[ -d $each/volumes.d ]] || continue
    printf 'run_dir = "%s/run"\nstate_dir = "%s/state"\n' "$work" "${each%/etc}" >"$work/etc/farpoint.toml"
    cp -r "$each/volumes.d" "$work/etc"
    start_daemon
    for name in "$work/etc/volumes.d/"*.toml; do
        name=${name##*/} name=${name%.toml}
        in_state "$name" .state down || wait_for "$name to go down" fp down "$name" --force --yes
    done
    stop_daemon
    rm -r "$work/etc/volumes.d"
done
rmmod brd && modprobe brd rd_nr=4 rd_size=131072 max_part=0
exit "$status"
