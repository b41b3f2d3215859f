# What jobs in the guest can do: `source "$GUEST"`.
#   hosts N [MTU]        rx1..rxN, each on an Ethernet of its own on one bridge, with 10.9.0.i and fd09::i
#   loss PERCENT, no_loss           of what reaches every host
#   link_down I, link_up I          the cable of host I
#   wait_for SECONDS COMMAND...     until the command succeeds
#   fail MESSAGE
# $OUT is kept on the host, $DATA an ext4 that takes O_DIRECT and io_uring; what ci/rdma.d/binaries names is in the environment.

fail() { echo "FAILED: $1" >&2; exit 1; }

wait_for() {
  local until=$((${EPOCHREALTIME/./} + $1 * 1000000)); shift
  until "$@" > /dev/null 2>&1; do
    [ "${EPOCHREALTIME/./}" -lt "$until" ] || { echo "waited in vain for: $*" >&2; return 1; }
    sleep 0.05
  done
}

device_active() { [[ $(< "/sys/class/infiniband/rx$1/ports/1/state") == 4:* ]]; }
# Its addresses are in the GID table's first places; IPv4 is shown as ::ffff:10.9.0.i.
device_has_gids() {
  local gids= gid v4 v6 place
  for place in 0 1 2 3; do read -r gid < "/sys/class/infiniband/rx$1/ports/1/gids/$place" && gids+="$gid "; done
  printf -v v4 '0000:0000:0000:0000:0000:ffff:0a09:%04x' "$1"
  printf -v v6 'fd09:0000:0000:0000:0000:0000:0000:%04x' "$1"
  [[ $gids == *$v4* && $gids == *$v6* ]]
}

# Network namespaces would be the way to have many hosts, but rxe works in the first one only. So all addresses are local to this kernel,
# and rules make what goes from one host's address to another's leave by its own Ethernet, and come in, as if the other were elsewhere.
# MTU 4200 lets RDMA use 4096 a packet, 1500 gives 1024.
hosts() {
  local count=$1 mtu=${2:-4200} i c
  no_hosts
  for c in all default; do echo 0 > /proc/sys/net/ipv4/conf/$c/rp_filter; done
  # One process for many commands: starting one takes a twentieth of a second here.
  {
    echo "link add br0 mtu $mtu type bridge"
    for ((i = 1; i <= count; i++)); do echo "link add h$i mtu $mtu type veth peer name p$i mtu $mtu"; done
  } | ip -batch -
  echo 1 > /proc/sys/net/ipv6/conf/br0/disable_ipv6
  for ((i = 1; i <= count; i++)); do
    echo 1 > "/proc/sys/net/ipv6/conf/p$i/disable_ipv6"
    c=/proc/sys/net/ipv4/conf/h$i
    echo 1 > $c/accept_local; echo 0 > $c/rp_filter; echo 1 > $c/arp_ignore; echo 2 > $c/arp_announce
  done
  {
    echo "link set br0 up"
    echo "rule add pref 100 lookup local"
    for ((i = 1; i <= count; i++)); do
      echo "link set p$i master br0 up"
      echo "addr add 10.9.0.$i/24 dev h$i"
      echo "link set h$i up"
      echo "rule add pref 10 iif h$i lookup local"
      echo "rule add pref 20 from 10.9.0.$i to 10.9.0.0/24 lookup $((1000 + i))"
      echo "route add 10.9.0.0/24 dev h$i src 10.9.0.$i table $((1000 + i))"
      echo "route add local 10.9.0.$i dev h$i src 10.9.0.$i table $((1000 + i))"
    done
    echo "rule del pref 0"
  } | ip -batch -
  {
    echo "rule add pref 100 lookup local"
    for ((i = 1; i <= count; i++)); do
      echo "addr add fd09::$i/64 dev h$i nodad"
      echo "rule add pref 10 iif h$i lookup local"
      echo "rule add pref 20 from fd09::$i to fd09::/64 lookup $((1000 + i))"
      echo "route add fd09::/64 dev h$i src fd09::$i table $((1000 + i))"
      echo "route add local fd09::$i dev h$i table $((1000 + i))"
    done
    echo "rule del pref 0"
  } | ip -6 -batch -
  for ((i = 1; i <= count; i++)); do echo "link add rx$i type rxe netdev h$i"; done | rdma -b -
  for ((i = 1; i <= count; i++)); do
    wait_for 10 device_active "$i" || fail "rx$i did not become active"
    wait_for 10 device_has_gids "$i" || fail "rx$i did not take its addresses as GIDs"
  done
}

no_hosts() {
  local link family rule
  [ -e /sys/class/net/br0 ] || return 0
  for link in /sys/class/infiniband/rx*; do [ ! -e "$link" ] || echo "link del ${link##*/}"; done | rdma -b -
  for link in /sys/class/net/h[0-9]* /sys/class/net/br0; do echo "link del ${link##*/}"; done | ip -batch -
  for family in -4 -6; do
    ip $family rule | cut -d: -f1 | grep -vxE '32766|32767' | sed 's/^/rule del pref /' | ip $family -batch -
    ip $family rule add pref 0 lookup local
  done
}

# On the bridge's side of each host: what is dropped is what goes to it.
loss() { local port; for port in /sys/class/net/p[0-9]*; do tc qdisc replace dev "${port##*/}" root netem limit 20000 loss "$1%"; done; }
no_loss() { local port; for port in /sys/class/net/p[0-9]*; do tc qdisc del dev "${port##*/}" root 2>/dev/null || true; done; }
link_down() { ip link set "p$1" down; }
link_up() { ip link set "p$1" up; }

# perftest TOOL SIZE COUNT [OPTION...]: between rx1 (server) and rx2 (client); one line of JSON. Throughputs in MiB/s, latencies in us.
perftest() {
  local tool=$1 size=$2 count=$3 server line fields; shift 3
  "$tool" -d rx1 -x 1 -F -s "$size" -n "$count" "$@" > "$tool.server" 2>&1 & server=$!
  wait_for 10 listens 18515 || { cat "$tool.server"; fail "$tool: its server does not listen"; }
  "$tool" -d rx2 -x 1 -F -s "$size" -n "$count" "$@" 10.9.0.1 > "$tool.client" 2>&1 || { cat "$tool.client"; fail "$tool between rx1 and rx2"; }
  wait "$server" || { cat "$tool.server"; fail "$tool: its server"; }
  line=$(grep -E "^ *$size +[0-9]" "$tool.client" | tail -1)
  read -ra fields <<< "$line"
  case $tool in
    *_bw) printf '{"tool":"%s","bytes":%d,"count":%d,"average_mib_s":%s,"peak_mib_s":%s}\n' "$tool" "$size" "$count" "${fields[3]}" "${fields[2]}" ;;
    *) printf '{"tool":"%s","bytes":%d,"count":%d,"typical_us":%s,"average_us":%s,"p99_us":%s}\n' "$tool" "$size" "$count" "${fields[4]}" "${fields[5]}" "${fields[7]}" ;;
  esac
}
# A TCP port (IPv4 or IPv6) in state LISTEN.
listens() { local port; printf -v port '%04X' "$1"; grep -qE "^ *[0-9]+: [0-9A-F]+:$port [0-9A-F]+:0000 0A" /proc/net/tcp /proc/net/tcp6; }
