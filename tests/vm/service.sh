#!/bin/bash
# The daemon as systemd runs it, with all that its unit forbids. Runs outside: systemd, in service-inside.sh, gets a guest
# for itself.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
kernel=()
[[ -z ${FARPOINT_KERNEL:-} ]] || kernel=(--kernel "$FARPOINT_KERNEL")
exec "$here/../../scripts/vm" --timeout 720 --memory 1536 "${kernel[@]}" -- "$here/service-inside.sh"
