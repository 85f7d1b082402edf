# shellcheck shell=bash
# shellcheck disable=SC2154 # script_name and tree are set by the caller
# Messages, packages and the build, for scripts that a person runs on a bare Debian machine. The caller sets script_name and
# tree, the root of the source tree.

say() { printf '%s: %s\n' "$script_name" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# as_root COMMAND...
as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "this needs root: $*; use root, or install sudo"
    fi
}

# install_packages PACKAGE...: the lists are only fetched if the ones that are there do not do.
install_packages() {
    command -v apt-get >/dev/null || die "these Debian packages are missing, and there is no apt-get here to install them: $*"
    say "installing with apt: $*"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600
        --no-install-recommends install "$@")
    as_root "${install[@]}" >/dev/null 2>&1 && return
    as_root apt-get -qq update >&2 || true
    as_root "${install[@]}" >&2 || die "cannot install $*: see above; install them, then try again"
}

# missing_packages PROGRAM:PACKAGE...: the packages of the programs that are not there. Those of administrators are not in
# everybody's PATH.
missing_packages() {
    local pair
    for pair in "$@"; do
        PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    done
}

# The C library's headers and libclang are for bindgen, which writes the bindings of ublk's structures at build time.
missing_build_packages() {
    missing_packages cc:gcc
    [[ -e /usr/include/stdio.h ]] || echo libc6-dev
    [[ -e /usr/include/linux/ublk_cmd.h ]] || echo linux-libc-dev
    [[ -n ${LIBCLANG_PATH:-} ]] || has_libclang || echo libclang-dev
}

# libclang-cpp is another library, which machines may have without this one.
has_libclang() { compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null || compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' >/dev/null; }

# install_missing PROGRAM:PACKAGE...: these and what the build needs.
install_missing() {
    local packages
    mapfile -t packages < <({
        missing_packages "$@"
        missing_build_packages
    } | sort -u)
    ((${#packages[@]} == 0)) || install_packages "${packages[@]}"
}

need_rust() {
    command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
    command -v cargo >/dev/null ||
        die "there is no Rust toolchain here: install one (rustup, or Debian's packages rustc and cargo where they are new" \
            "enough: $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$tree/Cargo.toml") or later), then try again"
}

# build_release: builds farpoint and sets farpoint_binary. Cargo's own progress is for a terminal.
build_release() {
    local quiet=(--quiet) target
    [[ ! -t 2 ]] || quiet=()
    cargo build --release --locked "${quiet[@]}" --manifest-path "$tree/Cargo.toml" >&2 || die "the build failed: see above"
    target=$(cargo metadata --no-deps --format-version 1 --manifest-path "$tree/Cargo.toml" |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    # shellcheck disable=SC2034 # for the caller
    farpoint_binary=$target/release/farpoint
}
