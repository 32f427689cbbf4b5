#!/usr/bin/env bash
# A vhost-user-net back-end for side-by-side benchmarks, on documented options of `vvu net`.
# usage: backend-vvu.sh MODE CPU SIZE SOCK[,SOCK2]
#   MODE rxonly  take the front-end's packets and drop them
#        txonly  make SIZE-byte frames and give them to the front-end
#        io      send every packet back, untouched
#        macswap send it back with the MAC addresses exchanged
#        switch  two sockets, a learning switch between them
# It listens on SOCK, stays in the foreground, runs on CPU only and ends on SIGTERM.
# VVU names the program; default: the release build of this tree.
set -eu
mode=$1 cpu=$2 size=$3 socks=$4
root=$(cd "$(dirname "$0")/../.." && pwd)
vvu=${VVU:-$root/target/$(rustc -vV | sed -n 's/^host: //p')/release/vvu}
ports=()
for sock in ${socks//,/ }; do
    rm -f "$sock"
    ports+=(--port "unix:$sock")
done
case $mode in
rxonly) ports+=(--port null:) ;;
txonly) ports+=(--port "gen:size=$size") ;;
io) ports+=(--port echo:) ;;
macswap) ports+=(--port echo:swap) ;;
switch) ;;
*) echo "backend-vvu.sh: no mode $mode" >&2; exit 2 ;;
esac
exec "$vvu" --quiet net --cores "$cpu" "${ports[@]}"
