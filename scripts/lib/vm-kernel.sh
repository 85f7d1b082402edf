# shellcheck shell=bash
# Stock Debian cloud kernels for scripts/vm: downloaded by apt into a private state, verified, unpacked, never installed.
#
# Under $vm_cache: apt/ (sources, lists), debs/ (verified packages), kernels/RELEASE/ (vmlinux, lib/modules, SHA256SUMS) and one
# file per kernel choice, current-CHOICE, that names the RELEASE to boot. A kernel directory never changes once it has its
# name, so a running VM keeps its modules while another call fetches a newer kernel.

vm_cache=${FARPOINT_CACHE:-${HOME:-/root}/.cache/farpoint}/vm
vm_kernel_choices=(6.12 newest)
vm_kernel_directory=''

say() { printf 'vm: %s\n' "$*" >&2; }

# 125 is the status of scripts/vm itself failing, as with other tools that run a command.
die() {
    say "$*"
    exit 125
}

suite_of_kernel() {
    case $1 in
        6.12) echo trixie ;;
        newest) echo trixie-backports ;;
        *) die "unknown kernel '$1': use one of: ${vm_kernel_choices[*]}" ;;
    esac
}

# apt parses every form of source entry itself; all that is wanted here is where this machine gets its own release from.
debian_mirror() {
    local codename site
    codename=$(. /etc/os-release && echo "${ID:-}:${VERSION_CODENAME:-}")
    [[ $codename == debian:?* ]] ||
        die "the test kernels are Debian's and their mirror comes from the machine's apt sources; this is not Debian"
    # shellcheck disable=SC2016 # apt fills these in
    site=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v release="${codename#debian:}" '$2 == release && $3 == "main" { print $1; exit }')
    [[ -n $site ]] || die "no apt source for 'deb ... ${codename#debian:} main' on this machine: add one, then try again"
    echo "$site"
}

# The -c file is read last, so it wins over whatever the machine's own apt.conf.d says.
private_apt() { "$1" -c "$vm_cache/apt/apt.conf" "${@:2}"; }

# write_apt_state KEYRING
write_apt_state() {
    local apt=$vm_cache/apt mirror suite
    mirror=$(debian_mirror)
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/none" "$vm_cache/debs"
    : >"$apt/status"
    for suite in trixie trixie-backports; do
        echo "deb [signed-by=$1] $mirror $suite main"
    done >"$apt/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir::State "$apt";
Dir::State::Lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "$apt/none";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "$apt/none";
APT::Sandbox::User "$(id -un)";
APT::Get::AllowUnauthenticated "false";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
CONF
}

keyring_of_machine() {
    local file
    for file in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
        if [[ -r $file ]]; then
            echo "$file"
            return
        fi
    done
    die "the Debian archive keys are missing: apt-get install debian-archive-keyring"
}

# An older machine may not know the newer suite's key. Its own apt does vouch for the current keyring package.
newer_keyring() {
    local dir=$vm_cache/keyring
    rm -rf "$dir" && mkdir -p "$dir"
    say "this machine's Debian keys do not verify the kernel's suite: fetching debian-archive-keyring with its own apt"
    (cd "$dir" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download debian-archive-keyring >&2) || return 1
    dpkg-deb -x "$dir"/debian-archive-keyring_*.deb "$dir"
    find "$dir/usr/share/keyrings" -name 'debian-archive-keyring.[gp]*' | sort | tail -n 1
}

# apt-get update succeeds with a mere warning when a source fails to verify, so any failure is made an error.
update_lists() { private_apt apt-get -qq -o APT::Update::Error-Mode=any update >&2; }

refresh_lists() {
    local keyring errors
    write_apt_state "$(keyring_of_machine)"
    errors=$(update_lists 2>&1) && return
    if grep -qE 'NO_PUBKEY|EXPKEYSIG|not signed|signature' <<<"$errors"; then
        keyring=$(newer_keyring) || die "cannot fetch debian-archive-keyring with this machine's apt (see above)"
        write_apt_state "$keyring"
        errors=$(update_lists 2>&1) && return
    fi
    printf '%s\n' "$errors" >&2
    die "cannot read the lists of Debian's kernel packages (see above); a kernel's first run needs the network"
}

# package_field PACKAGE SUITE FIELD
package_field() {
    private_apt apt-cache -t "$2" show --no-all-versions "$1" | sed -n "s/^$3: //p" | head -n 1
}

# The image package and the kernel packages it depends on, in the same suite: one up to 6.x, four from 7.x.
kernel_packages() {
    local suite=$1 image=$2
    echo "$image"
    package_field "$image" "$suite" Depends | tr ',|' '\n' | awk '{ print $1 }' |
        { grep -E '^linux-(binary|modules|base)-[0-9].*-cloud-amd64$' || true; }
}

# A .deb in the cache is used again only if it still has the hash that the signed index gives.
fetch_package() {
    local suite=$1 package=$2 sum deb dir
    sum=$(package_field "$package" "$suite" SHA256)
    [[ -n $sum ]] || die "the suite $suite has no package $package"
    deb=$vm_cache/debs/${package}_${sum:0:16}.deb
    if ! echo "$sum  $deb" | sha256sum --check --status 2>/dev/null; then
        say "downloading $package"
        dir=$(mktemp -d "$vm_cache/debs/.new.XXXXXX")
        (cd "$dir" && private_apt apt-get -qq -t "$suite" download "$package" >&2) || die "cannot download $package (see above)"
        mv "$dir"/*.deb "$deb"
        rmdir "$dir"
        echo "$sum  $deb" | sha256sum --check --status || die "$package has not the hash of the signed index"
    fi
    echo "$deb"
}

# Booting the uncompressed kernel saves the guest a second of decompression, which emulation makes slow.
extract_vmlinux() {
    local image=$1 out=$2 sectors offset length start
    sectors=$(od -An -tu1 -j497 -N1 "$image")
    offset=$(od -An -tu4 -j584 -N4 "$image")
    length=$(od -An -tu4 -j588 -N4 "$image")
    start=$(((sectors + 1) * 512 + offset))
    # The payload's last four bytes are its unpacked size, which zstd would take for garbage.
    tail -c "+$((start + 1))" "$image" | head -c "$((length - 4))" | zstd -dcq >"$out" 2>/dev/null && [[ -s $out ]]
}

# unpack_kernel RELEASE DEB...: the directory appears under its name only when complete.
unpack_kernel() {
    local release=$1 dir
    shift
    mkdir -p "$vm_cache/kernels"
    dir=$(mktemp -d "$vm_cache/kernels/.new.XXXXXX")
    chmod 755 "$dir"
    local deb
    for deb in "$@"; do dpkg-deb -x "$deb" "$dir/unpacked"; done
    mkdir -p "$dir/lib"
    mv "$dir/unpacked/usr/lib/modules" "$dir/lib/modules" 2>/dev/null || mv "$dir/unpacked/lib/modules" "$dir/lib/modules"
    mv "$dir/unpacked/boot/vmlinuz-$release" "$dir/vmlinuz" 2>/dev/null ||
        mv "$dir/lib/modules/$release/vmlinuz" "$dir/vmlinuz"
    mv "$dir/unpacked/boot/config-$release" "$dir/config" 2>/dev/null || true
    rm -rf "$dir/unpacked"
    extract_vmlinux "$dir/vmlinuz" "$dir/vmlinux" || mv "$dir/vmlinuz" "$dir/vmlinux"
    rm -f "$dir/vmlinuz"
    # Unpacked modules load several times faster in an emulated CPU.
    find "$dir/lib/modules" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 -P "$(nproc)" xz -d
    depmod -b "$dir" "$release"
    (cd "$dir" && find ./* -type f -print0 | sort -z | xargs -0 sha256sum) >"$dir.sums"
    mv "$dir.sums" "$dir/SHA256SUMS"
    rm -rf "${vm_cache:?}/kernels/$release"
    mv "$dir" "$vm_cache/kernels/$release"
}

kernel_is_sound() { [[ -s $1/SHA256SUMS ]] && (cd "$1" && sha256sum --check --status --strict SHA256SUMS 2>/dev/null); }

# newest_image SUITE: the image package that the suite's meta package stands for.
newest_image() {
    package_field linux-image-cloud-amd64 "$1" Depends | tr ',' '\n' | awk '{ print $1 }' | grep '^linux-image-[0-9]'
}

download_kernel() {
    local choice=$1 suite image release packages package deb debs=()
    suite=$(suite_of_kernel "$choice")
    need_programs dpkg-deb:dpkg zstd:zstd xz:xz-utils depmod:kmod sha256sum:coreutils
    # What a call that was cut short left behind.
    rm -rf "$vm_cache"/kernels/.new.* "$vm_cache"/debs/.new.*
    refresh_lists
    image=$(newest_image "$suite") || die "the suite $suite has no cloud kernel"
    release=${image#linux-image-}
    if ! kernel_is_sound "$vm_cache/kernels/$release"; then
        [[ ! -d $vm_cache/kernels/$release ]] || say "the cached kernel $release is damaged: unpacking it again"
        packages=$(kernel_packages "$suite" "$image")
        for package in $packages; do
            deb=$(fetch_package "$suite" "$package")
            debs+=("$deb")
        done
        unpack_kernel "$release" "${debs[@]}"
    fi
    echo "$release" >"$vm_cache/.current-$choice"
    mv "$vm_cache/.current-$choice" "$vm_cache/current-$choice"
}

# cached_kernel CHOICE: finds a kernel that is there and undamaged.
cached_kernel() {
    local release
    release=$(cat "$vm_cache/current-$1" 2>/dev/null) || return 1
    [[ -n $release ]] && kernel_is_sound "$vm_cache/kernels/$release"
}

# prepare_kernel CHOICE [update]: sets vm_kernel_directory; needs the network only if the kernel is not there, or for update.
# Not to be called in a condition, where bash would go on after errors.
prepare_kernel() {
    suite_of_kernel "$1" >/dev/null
    if [[ ${2:-} == update ]] || ! cached_kernel "$1"; then
        mkdir -p "$vm_cache" || die "cannot write $vm_cache: set FARPOINT_CACHE to a directory for downloads"
        (
            flock 9
            # Another call may have fetched it while this one waited.
            if [[ ${2:-} != update ]] && cached_kernel "$1"; then exit 0; fi
            download_kernel "$1"
        ) 9>"$vm_cache/lock"
    fi
    # shellcheck disable=SC2034 # for the caller
    vm_kernel_directory=$vm_cache/kernels/$(cat "$vm_cache/current-$1")
}
