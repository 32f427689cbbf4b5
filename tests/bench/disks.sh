#!/usr/bin/env bash
# Disks side by side: two back-ends in alternation behind the same front-end, on one processor each
# for back-end and front-end, medians of five rounds with their spread.
# usage: disks.sh [DISK...] [-- FRONT-END...]
#   DISK       null, or a path: a file of 1 GiB, made if it is not there, read and written past the
#              page cache. Default: null
#   FRONT-END  a command that measures and prints iops=N and p50_us=N; {socket}, {depth}, {size},
#              {writes} (per cent) and {seconds} in it are replaced. Default: `vvu guest`
# PAIR=qsd,vvu says who is compared: of qsd, vvu (`vvu blk`) and scsi (`vvu scsi`).
# VVU names the program, default the release build of this tree. CELLS has what is measured, as
# depth:size:writes; SECONDS_EACH how long; ROUNDS how often; CPUS=BACK-END,FRONT-END where.
# Nothing else may run on the machine.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
vvu=${VVU:-$root/target/$(rustc -vV | sed -n 's/^host: //p')/release/vvu}
cells=${CELLS:-1:4096:0 64:4096:0 64:4096:100 8:131072:0}
seconds=${SECONDS_EACH:-3} rounds=${ROUNDS:-5}
IFS=, read -r back front <<<"${CPUS:-0,1}"
IFS=, read -r peer ours <<<"${PAIR:-qsd,vvu}"
bytes=$((1 << 30))
poll=${POLL:-always}

disks=() command=()
while (($#)); do
    if [ "$1" = -- ]; then
        shift
        command=("$@")
        break
    fi
    disks+=("$1")
    shift
done
[ ${#disks[@]} -gt 0 ] || disks=(null)
command -v qemu-storage-daemon >/dev/null || { echo "disks.sh: there is no qemu-storage-daemon (package qemu-utils)" >&2; exit 1; }
scratch=$(mktemp -d)
server=
trap 'end; rm -rf "$scratch"' EXIT

end() {
    [ -z "$server" ] || { kill "$server" && wait "$server" || true; } 2>/dev/null
    server=
}

# begin BACK-END DISK SOCKET
begin() {
    local node disk options
    rm -f "$3"
    case $1 in
    qsd)
        node="driver=null-co,node-name=d,size=$bytes,read-zeroes=off"
        [ "$2" = null ] || node="driver=file,node-name=d,filename=$2,cache.direct=on,aio=io_uring"
        options=
        [ "$poll" != always ] || options=,poll-max-ns=32768
        taskset -c "$back" qemu-storage-daemon --object "iothread,id=t$options" --blockdev "$node" \
            --export "type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=$3,writable=on,iothread=t" \
            >"$scratch/log" 2>&1 &
        ;;
    vvu | scsi)
        disk="null:$bytes"
        [ "$2" = null ] || disk="file:$2,direct"
        disk=(blk --disk "$disk")
        [ "$1" = vvu ] || disk=(scsi --lun "0:0=${disk[2]}")
        taskset -c "$back" "$vvu" -q "${disk[@]}" --cores "$back" --poll "$poll" --port "unix:$3" \
            >"$scratch/log" 2>&1 &
        ;;
    *)
        echo "disks.sh: PAIR names two of qsd, vvu and scsi, not $1" >&2
        exit 1
        ;;
    esac
    server=$!
    for _ in $(seq 200); do
        [ ! -S "$3" ] || return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    cat "$scratch/log" >&2
    echo "disks.sh: $1 does not serve $2" >&2
    exit 1
}

# measure BACK-END SOCKET DEPTH SIZE WRITES: iops and p50 in microseconds
measure() {
    local words=() word kind=read device=blk
    [ "$1" != scsi ] || device=scsi
    shift
    if [ ${#command[@]} -gt 0 ]; then
        for word in "${command[@]}"; do
            word=${word//\{socket\}/$1} word=${word//\{depth\}/$2} word=${word//\{size\}/$3}
            word=${word//\{writes\}/$4} word=${word//\{seconds\}/$seconds}
            words+=("$word")
        done
        taskset -c "$front" "${words[@]}" |
            sed -nE 's/.*iops=([0-9.]+).*p50_us=([0-9.]+).*/\1 \2/p'
        return
    fi
    case $4 in
    0) ;;
    100) kind=write ;;
    *) echo "disks.sh: vvu guest either reads or writes; $4 % writes need another front-end" >&2; exit 1 ;;
    esac
    taskset -c "$front" "$vvu" -q guest --socket "$1" --json "$device" "$kind" --depth "$2" --size "$3" --seconds "$seconds" |
        sed -nE 's/.*"requests":([0-9]+).*"load_seconds":([0-9.]+).*"p50":([0-9]+).*/\1 \2 \3/p' |
        awk '{ printf "%.0f %.1f\n", $1 / $2, $3 / 1000 }'
}

# The median, the least and the most of the numbers that come in.
spread() {
    sort -g | awk '{ all[NR] = $1 } END { printf "%g %g %g", all[int((NR + 1) / 2)], all[1], all[NR] }'
}

printf '%-24s %6s %7s %7s  %-30s %-30s %6s  %s\n' \
    disk depth size writes "$peer iops (least-most)" "$ours iops (least-most)" ratio "p50 us, $peer and $ours"
for disk in "${disks[@]}"; do
    if [ "$disk" != null ] && [ ! -e "$disk" ]; then
        # Written once, so that nobody reads holes.
        dd if=/dev/urandom of="$disk" bs=1M count=$((bytes >> 20)) status=none
    fi
    for cell in $cells; do
        IFS=: read -r depth size writes <<<"$cell"
        : >"$scratch/$peer" >"$scratch/$ours"
        for _ in $(seq "$rounds"); do
            for one in "$peer" "$ours"; do
                begin "$one" "$disk" "$scratch/sock"
                measure "$one" "$scratch/sock" "$depth" "$size" "$writes" >>"$scratch/$one"
                end
            done
        done
        read -r a a_least a_most < <(cut -d' ' -f1 "$scratch/$peer" | spread; echo)
        read -r b b_least b_most < <(cut -d' ' -f1 "$scratch/$ours" | spread; echo)
        read -r a_p50 _ < <(cut -d' ' -f2 "$scratch/$peer" | spread; echo)
        read -r b_p50 _ < <(cut -d' ' -f2 "$scratch/$ours" | spread; echo)
        printf '%-24s %6s %7s %7s  %-30s %-30s %6s  %s\n' "${disk##*/}" "$depth" "$size" "$writes" \
            "$a ($a_least-$a_most)" "$b ($b_least-$b_most)" \
            "$(awk -v a="$a" -v b="$b" 'BEGIN { printf "%.2f", b / (a ? a : 1) }')" "$a_p50 $b_p50"
    done
done
