# shellcheck shell=bash
# shellcheck disable=SC2154 # vm_scripts, vm_arguments and the options' variables are set in scripts/vm.
# The host's side of scripts/vm: the programs it needs, the file server, QEMU, and the end of all of them.

vm_dir='' vm_server='' vm_pids=() vm_qemu_version=''

# install_packages PACKAGE...
install_packages() {
    local root=()
    [[ $(id -u) == 0 ]] || root=(sudo)
    say "installing with apt: $*"
    local install=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600
        --no-install-recommends install "$@")
    "${install[@]}" >/dev/null 2>&1 && return
    "${root[@]}" apt-get -qq update >&2 || true
    "${install[@]}" >&2 || die "cannot install $*: install them, then try again"
}

# need_programs PROGRAM:PACKAGE...
need_programs() {
    local pair packages=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
    done
    ((${#packages[@]} == 0)) || install_packages "${packages[@]}"
}

find_virtiofsd() {
    local file
    for file in /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd; do
        if [[ -x $file ]]; then
            echo "$file"
            return
        fi
    done
    return 1
}

need_machine() {
    [[ $(uname -m) == x86_64 ]] || die "the test machine is x86-64 only, this is $(uname -m)"
    need_programs qemu-system-x86_64:qemu-system-x86 setpriv:util-linux modprobe:kmod ip:iproute2
    find_virtiofsd >/dev/null && return
    # Part of QEMU in Debian 12, a package of its own from 13.
    if apt-cache show virtiofsd >/dev/null 2>&1; then
        install_packages virtiofsd
    else
        install_packages qemu-system-common
    fi
    find_virtiofsd >/dev/null || die "no virtiofsd, which serves this machine's files to the guest: install package virtiofsd"
}

# The file server has to read every file of this machine as the guest's root would, hence root here too.
become_root() {
    [[ $(id -u) != 0 ]] || return 0
    command -v sudo >/dev/null || die "the guest shares this machine's root file system, which needs root: use root, or install sudo"
    local passed=("FARPOINT_CACHE=${FARPOINT_CACHE:-$HOME/.cache/farpoint}") name
    for name in $(passed_names); do passed+=("$name=${!name}"); done
    exec sudo -- env "${passed[@]}" "$vm_scripts/vm" "$@"
}

passed_names() {
    local name
    for name in PATH HOME USER LANG LC_ALL TERM CI "${!FARPOINT_@}" "${!RUST@}" "${!CARGO@}" "${env_names[@]}"; do
        [[ ! -v $name ]] || echo "$name"
    done | sort -u
}

# The tree around a directory, so that results written anywhere in a checkout are kept.
tree_of() { git -C "$1" -c safe.directory='*' rev-parse --show-toplevel 2>/dev/null || (cd "$1" && pwd -P); }

shared_directories() {
    local dir path built=()
    # cargo makes it when it first builds.
    [[ ! -d ${CARGO_TARGET_DIR:-} ]] || built=("$CARGO_TARGET_DIR")
    for dir in "$(tree_of "$vm_scripts")" "$(tree_of "$PWD")" "$PWD" "${shares[@]}" "${built[@]}"; do
        path=$(realpath -e "$dir/." 2>/dev/null) || die "cannot share $dir: no such directory"
        case $path/ in
            # The root is what is shared copy on write; the others are the guest's own.
            / | // | /proc/* | /sys/* | /dev/* | /run/*) [[ $path == / ]] || say "$path is not shared with the guest" ;;
            *) echo "$path" ;;
        esac
    done | sort -u
}

# Files there would not exist in the guest, which is better said than found out.
warn_hidden() {
    local word dir
    for word in "${command[@]}"; do
        [[ $word =~ ^/(tmp|run)/ && -e $word ]] || continue
        for dir in "${vm_shares[@]}"; do [[ $word != "$dir"/* && $word != "$dir" ]] || continue 2; done
        say "$word is not seen in the guest, whose /tmp and /run are empty; --share its directory"
    done
}

# Read by the guest's first process.
write_command() {
    local name list
    local vm_cwd=$PWD vm_kernel=$1 vm_timeout=$timeout vm_one_stream='' vm_shares vm_env=() vm_command=("${command[@]}")
    local vm_modules=(ublk_drv loop dm-mod configfs "${modules[@]}")
    ((${#disks[@]} == 0)) || vm_modules+=(virtio_blk)
    list=$(shared_directories)
    mapfile -t vm_shares <<<"$list"
    for name in $(passed_names); do vm_env+=("$name=${!name}"); done
    # Two streams that are one here stay one, so that their lines keep their order.
    [[ ! /proc/self/fd/1 -ef /proc/self/fd/2 ]] || vm_one_stream=yes
    warn_hidden
    declare -p vm_cwd vm_kernel vm_timeout vm_one_stream vm_shares vm_env vm_command vm_modules | sed 's/^declare -[-a]* //' \
        >"$vm_dir/command"
}

# start PROGRAM...: in the background, to die with this script however it ends.
start() {
    setpriv --pdeathsig KILL "$@" &
    vm_pids+=($!)
}

# The file server of Debian 12 is written in C, that of 13 in Rust. An overlay refuses a lower layer that announces its mount
# points. With the default, cache auto, the guest forgets a file's pages at each open and programs start half as fast; the price
# is that a file changed here while the guest runs may look old in the guest. What the guest writes is seen here at once.
file_server_options() {
    if "$1" --help 2>&1 | grep -q -e --no-announce-submounts; then
        printf '%s\n' --shared-dir "$vm_dir/root" --cache always --no-announce-submounts
    else
        printf '%s\n' -o "source=$vm_dir/root" -o cache=always
    fi
}

# The root is served from another mount point, in a mount namespace of its own, because the sandbox of virtiofsd cannot
# pivot from / to /. What is under proc, sys and run there is this machine itself: a guest that failed to mount its own would
# set this machine's parameters, so they are covered.
# shellcheck disable=SC2016 # for the shell that runs it
serve_root='
    mount --rbind / "$1"
    for dir in proc sys run; do mount -t tmpfs -o ro,size=0 none "$1/$dir"; done
    shift
    exec "$@"'

start_file_server() {
    local options
    mapfile -t options < <(file_server_options "$1")
    start unshare --mount sh -e -c "$serve_root" sh "$vm_dir/root" \
        "$1" --socket-path="$vm_dir/files" "${options[@]}" >"$vm_dir/files.log" 2>&1 </dev/null
    vm_server=${vm_pids[-1]}
    local tries=500
    until [[ -S $vm_dir/files ]]; do
        if ((tries-- == 0)) || [[ ! -d /proc/$vm_server ]]; then
            fail_start "virtiofsd did not start" "$vm_dir/files.log"
        fi
        sleep 0.02
    done
}

# Only the two hardware modules count: others offer a /dev/kvm that does not run this guest.
kvm_works() { [[ -d /sys/module/kvm_intel || -d /sys/module/kvm_amd ]] && [[ -r /dev/kvm && -w /dev/kvm ]]; }

# 12's QEMU is 7.2, 13's is 10.0; both faults that matter here were mended between them.
qemu_is_old() {
    [[ -n $vm_qemu_version ]] || vm_qemu_version=$(qemu-system-x86_64 --version | sed -n 's/.* version \([0-9]*\).*/\1/p')
    ((vm_qemu_version < 9))
}

# An emulated CPU moves memory byte by byte for erms and fsrm, and leaves its fast path for smap and five-level pages: without
# them programs start twice as fast. It computes the crc32 of sse4.2 bit by bit, slower than programs do without.
accelerator() {
    local cpu=max,-erms,-fsrm,-smap,-la57,-sse4.2
    if kvm_works; then
        printf '%s\n' -accel kvm -cpu host
        return
    fi
    # QEMU 7.2 leaves garbage in the flags after cmpxchg16b: an interrupt then is a double fault, once in a few boots.
    ! qemu_is_old || cpu+=,-cx16
    printf '%s\n' -accel tcg,thread=multi -cpu "$cpu"
}

kernel_arguments() {
    local level=5
    [[ -z $console ]] || level=7
    echo "console=ttyS0 loglevel=$level root=root rootfstype=virtiofs rw init=$vm_dir/init vm_dir=$vm_dir panic=-1 oops=panic" \
        "nokaslr rcupdate.rcu_cpu_stall_timeout=120 watchdog_thresh=60"
    # What protects a real machine only costs time in an emulated one. init_on_alloc must stay: virtiofsd fills pages behind
    # the back of the emulator, which would run its old translation of a page's code if the guest had not written to it first.
    kvm_works || echo "mitigations=off init_on_alloc=1 lsm= audit=0 tsc=reliable no_timer_check cryptomgr.notests lpj=10000000"
    # QEMU before 8.1 may keep a translation of code that another CPU patches, which the kernel does often as it boots.
    kvm_works || ! qemu_is_old || echo maxcpus=1
    echo "$append"
}

qemu_drives() {
    local disk file options i=0
    for disk in "${disks[@]}"; do
        file=${disk%%,*} options=''
        [[ $disk != *,* ]] || options=,${disk#*,}
        [[ $file == nbd:* || -r $file ]] || die "no disk file $file"
        [[ $options == *,format=* ]] || options+=,format=raw
        printf '%s\n' -drive "file=$file,if=none,id=disk$i$options" -device "virtio-blk-pci,drive=disk$i,serial=disk$i"
        i=$((i + 1))
    done
}

start_qemu() {
    local options drives
    mapfile -t options < <(accelerator)
    drives=$(qemu_drives) || exit 125
    [[ -z $drives ]] || mapfile -t -O "${#options[@]}" options <<<"$drives"
    # shellcheck disable=SC2054 # the commas are QEMU's
    options+=(
        -M q35,memory-backend=memory -m "$memory" -smp "${cpus:-$(default_cpus)}"
        -object "memory-backend-memfd,id=memory,share=on,size=${memory}M"
        -nodefaults -no-user-config -display none -no-reboot
        -chardev "socket,id=files,path=$vm_dir/files" -device vhost-user-fs-pci,queue-size=1024,chardev=files,tag=root
        -device virtio-serial-pci
        -chardev "pipe,id=out,path=$vm_dir/out" -device virtserialport,nr=1,chardev=out,name=out
        -chardev "pipe,id=err,path=$vm_dir/err" -device virtserialport,nr=2,chardev=err,name=err
        -serial "file:${console:-$vm_dir/console}"
        -kernel "$1/vmlinux" -append "$(kernel_arguments | tr '\n' ' ')"
    )
    start qemu-system-x86_64 "${options[@]}" </dev/null >"$vm_dir/qemu.log" 2>&1
}

default_cpus() {
    local n
    n=$(nproc)
    echo $((n < 4 ? n : 4))
}

# fail_start MESSAGE LOG
fail_start() {
    say "$1"
    [[ ! -s $2 ]] || tail -n 20 "$2" >&2
    exit 125
}

# virtiofsd, which has a child of its own, ends by itself after QEMU; it is killed only if it does not.
release() {
    local pid tries=50
    for pid in "${vm_pids[@]}"; do [[ $pid == "$vm_server" ]] || kill -KILL "$pid" || true; done
    while [[ -n $vm_server && -d /proc/$vm_server ]] && ((tries-- > 0)); do sleep 0.02; done
    [[ -z $vm_server ]] || kill -KILL "$vm_server" || true
    wait || true
    [[ -z $vm_dir ]] || rm -rf "$vm_dir"
}

clean_up() {
    local status=$?
    trap - EXIT
    # bash tells of each process that it sees killed.
    release 2>/dev/null
    exit "$status"
}

# A killed script cannot remove its directory; the next one does.
remove_stale() {
    local dir pid
    for dir in /tmp/farpoint-vm.*; do
        pid=$(cat "$dir/pid" 2>/dev/null) && [[ -n $pid && ! -d /proc/$pid ]] && rm -rf "$dir"
    done
    return 0
}

make_runtime() {
    remove_stale
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    vm_dir=$(mktemp -d /tmp/farpoint-vm.XXXXXX)
    echo $$ >"$vm_dir/pid"
    mkdir "$vm_dir/root" "$vm_dir/guest" "$vm_dir/dev"
    printf '%s\n' "proc /proc proc defaults 0 0" "sys /sys sysfs defaults 0 0" \
        "guest $vm_dir/guest tmpfs mode=0755 0 0" >"$vm_dir/fstab"
    # The links that udev would make; the guest copies them all at once.
    ln -s /proc/self/fd "$vm_dir/dev/fd"
    ln -s fd/0 "$vm_dir/dev/stdin"
    ln -s fd/1 "$vm_dir/dev/stdout"
    ln -s fd/2 "$vm_dir/dev/stderr"
    # A copy, because the one in the tree may be edited, or have a path that the kernel's command line cannot hold.
    cp "$vm_scripts/vm-init" "$vm_dir/init"
    mkfifo "$vm_dir/out.in" "$vm_dir/out.out" "$vm_dir/err.in" "$vm_dir/err.out"
}

run_guest() {
    local qemu streams=() ended=''
    need_machine
    prepare_kernel "${kernel:-6.12}"
    make_runtime
    write_command "$vm_kernel_directory"
    start_file_server "$(find_virtiofsd)"
    start cat "$vm_dir/out.out" && streams+=("${vm_pids[-1]}")
    start cat "$vm_dir/err.out" >&2 && streams+=("${vm_pids[-1]}")
    start_qemu "$vm_kernel_directory"
    qemu=${vm_pids[-1]}
    start sleep $((timeout + 30))
    wait -n -p ended "$qemu" "${vm_pids[-1]}" "${streams[@]}" || true
    if [[ $ended == "${vm_pids[-1]}" ]]; then
        report_failure 124 "time-out: the guest still ran after $timeout seconds"
    elif [[ $ended != "$qemu" ]] && stays_running "$qemu"; then
        # Nobody reads the output any more: the same end as that of a command here, by SIGPIPE.
        exit 141
    fi
    finish "$qemu" "${streams[@]}"
}

# The streams end just before QEMU does when all is well.
stays_running() {
    local tries=100
    while [[ -d /proc/$1 && $(cat "/proc/$1/stat" 2>/dev/null) != *") Z "* ]]; do
        ((tries-- > 0)) || return 0
        sleep 0.02
    done
    return 1
}

# report_failure STATUS MESSAGE
report_failure() {
    say "$2; the end of its console:"
    tail -n 40 "${console:-$vm_dir/console}" 2>/dev/null | tr -d '\r' >&2
    cat "$vm_dir/qemu.log" >&2
    exit "$1"
}

# An emulated guest may stumble as it boots. The command has not begun then, so one more try does no harm.
start_again() {
    local log=${console:-$vm_dir/console}
    [[ -s $log && -z ${VM_SECOND_TRY:-} ]] || return 0
    kvm_works && return
    say "the guest stopped as it booted: $(grep -a -m 1 -E 'Oops|panic|BUG' "$log" || echo 'no message'); once more"
    trap - EXIT
    release 2>/dev/null
    VM_SECOND_TRY=yes exec "$vm_scripts/vm" "${vm_arguments[@]}"
}

# The guest tells its status in a file and resets; what is left of its output is still in the pipes then.
finish() {
    local status
    wait "$1" || true
    wait "${@:2}" || true
    status=$(cat "$vm_dir/status" 2>/dev/null) || true
    if [[ $status == timeout ]]; then
        report_failure 124 "time-out after $timeout seconds"
    elif [[ $status =~ ^[0-9]+$ ]]; then
        exit "$status"
    elif [[ -e $vm_dir/started ]]; then
        report_failure 123 "the guest stopped before the command ended (panic, oops or reset)"
    else
        start_again
        report_failure 125 "the guest did not get as far as the command"
    fi
}
