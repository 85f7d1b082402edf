# shellcheck shell=bash
# How a script tells what it does to a person: a title, numbered steps, and lines of figures below them. Colours only if
# FARPOINT_STORY_COLOUR is set; FARPOINT_STORY_STEP is the last step that a calling script told.

story_step=${FARPOINT_STORY_STEP:-0}

# colour CODE TEXT
colour() {
    if [[ -n ${FARPOINT_STORY_COLOUR:-} ]]; then
        printf '\033[%sm%s\033[0m' "$1" "$2"
    else
        printf '%s' "$2"
    fi
}

title() { printf '\n%s\n' "$(colour '1' "$*")"; }

step() {
    story_step=$((story_step + 1))
    printf '\n%s  %s\n' "$(colour '1;36' "$(printf '%2d' "$story_step")")" "$(colour '1' "$*")"
}

tell() { printf '      %s\n' "$*"; }

# show COMMAND...: what a reader would type.
show() { printf '      %s\n' "$(colour '33' "\$ $*")"; }

good() { printf '      %s  %s\n' "$(colour '32' ok)" "$*"; }

# grouped NUMBER: with commas.
grouped() { sed -E -e :a -e 's/([0-9])([0-9]{3})($|,|\.)/\1,\2\3/;ta' <<<"$1"; }

# mib BYTES, ms MICROSECONDS
mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }
ms() { awk -v us="$1" 'BEGIN { printf us < 9950 ? "%.1f ms" : "%.0f ms", us / 1000 }'; }

# seconds_since TIME: TIME is an earlier $EPOCHREALTIME.
seconds_since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", to - from }'; }
