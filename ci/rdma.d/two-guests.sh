# Two machines with a cable between them, and a cluster across both, set up by hand as an operator would. This runs in both at once: HOST
# says in which. The first one has mgmtd, meta and a storage node, the second one a storage node and the client.
# Limit: 420 s.
set -eu
source "$GUEST"

# What one tells the other: files in a directory of both.
both=/mnt/both
mkdir -p $both
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none both $both
trap 'code=$?; [ $code = 0 ] || : > $both/failed' EXIT
tell() { : > "$both/$1"; }
told() { [ -e "$both/$1" ] || [ -e $both/failed ]; }
hear() { wait_for "${2:-60}" told "$1" && [ -e "$both/$1" ] || fail "the other machine did not say '$1'"; }

me=10.9.0.$HOST
ip link set eth0 mtu 4200 up
ip addr add "$me/24" dev eth0
ip addr add "fd09::$HOST/64" dev eth0 nodad
rdma link add rx0 type rxe netdev eth0
wait_for 10 device_active 0 || fail 'rx0 did not become active'
printf -v gid '0000:0000:0000:0000:0000:ffff:0a09:%04x' "$HOST"
has_gid() { cat /sys/class/infiniband/rx0/ports/1/gids/[0-3] | grep -qx "$gid"; }
wait_for 10 has_gid || fail 'rx0 did not take its address as a GID'
tell "up$HOST"
hear "up$((3 - HOST))"

# --- the transport alone, beside perftest ---
if [ "$HOST" = 1 ]; then
  for tool in ib_write_bw ib_read_bw; do
    $tool -d rx0 -x 1 -F -s 1048576 -n 32 > $tool.log 2>&1 & server=$!
    wait_for 10 listens 18515
    tell "$tool"
    wait $server || { cat $tool.log; fail $tool; }
  done
  "$CATENA" rdma check --serve 10.9.0.1:7600 --device rx0 2> serve.log & server=$!
  wait_for 20 listens 7600 || { cat serve.log; fail 'the server of checks does not listen'; }
  tell check
  hear checked
  kill -INT $server
  wait $server || { cat serve.log; fail 'the server of checks'; }
else
  for tool in ib_write_bw ib_read_bw; do
    hear $tool
    $tool -d rx0 -x 1 -F -s 1048576 -n 32 10.9.0.1 > $tool.log 2>&1 || { cat $tool.log; fail $tool; }
    echo "RESULT $tool $(awk '/^ *1048576/ { print $4 }' $tool.log) MiB/s"
  done
  hear check
  "$CATENA" --json rdma check --peer 10.9.0.1:7600 --device rx0 --size 32MiB --round-trips 100 2> check.log > check.json || { cat check.log; fail 'rdma check'; }
  tail -1 check.json | python3 -c 'import json, sys; f = json.load(sys.stdin)["figures"]; print("RESULT transport: reads %.1f MiB/s, writes %.1f MiB/s, 4 KiB round trip %.0f us" % (f["read_mib_s"], f["write_mib_s"], f["round_trip_us"]))'
  tell checked
fi

# --- a cluster, from configuration files ---
shared='cluster = "c0ffee00c0ffee00c0ffee00c0ffee00"
token = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"'
transport='[transport]
kind = "rdma"
devices = ["rx0"]'
cat > mgmtd.toml <<T
$shared
node = 1001
listen = "10.9.0.1:7400"
lease = "4s"
[store]
kind = "embedded"
path = "$DATA/mgmtd"
T
cat > meta.toml <<T
$shared
node = 1002
listen = "10.9.0.1:7401"
mgmtd = ["10.9.0.1:7400"]
$transport
[store]
kind = "embedded"
path = "$DATA/meta"
T
cat > storage.toml <<T
$shared
node = $HOST
listen = "$me:7410"
mgmtd = ["10.9.0.1:7400"]
disks = ["$DATA/disk"]
pool = "128 MiB"
lease = "4s"
$transport
T
cat > cluster.toml <<T
$shared
mgmtd = ["10.9.0.1:7400"]
$transport
T
export CATENA_CLUSTER=$PWD/cluster.toml
mkdir -p "$DATA"/{mgmtd,meta,disk}
serve() { "$CATENA" serve "$1" --config "$1.toml" >> "$OUT/$1.log" 2>&1 & }
logs() { tail -n 5 "$OUT"/{mgmtd,meta,storage}.log 2> /dev/null || true; }

if [ "$HOST" = 1 ]; then
  serve mgmtd
  wait_for 30 listens 7400 || { logs; fail 'mgmtd does not listen'; }
  serve meta
  serve storage; storage=$!
  tell cluster
  hear kill 300
  kill -9 $storage
  sleep 2
  serve storage
  tell killed
  hear lossy 200
  tc qdisc replace dev eth0 root netem limit 20000 loss 1%
  tell lost
  hear done 200
  exit 0
fi

hear cluster
serve storage; storage=$!
two() { [ "$("$CATENA" admin nodes | grep -c '^n[12] .* up .*rdma://')" = 2 ]; }
wait_for 60 two || { logs; "$CATENA" admin nodes; fail 'two storage nodes should be up'; }
"$CATENA" admin tables create --replicas 2 || fail 'a chain table'
sound() { "$CATENA" --json admin chains | tail -1 | python3 -c 'import json,sys; d=str(json.load(sys.stdin)); sys.exit("serving" not in d or any(s in d for s in ("offline","syncing","waiting","lastsrv")))'; }
wait_for 60 sound || { logs; "$CATENA" admin chains; fail 'the chains do not serve'; }
"$CATENA" admin nodes
head -c 24M /dev/urandom > data
same() { [ "$("$CATENA" fs cat "$1" | sha256sum)" = "$(sha256sum < data)" ] || fail "$1 is not what was written"; echo "RESULT $2: read back identical"; }
"$CATENA" fs put data /plain || { logs; fail 'a write'; }
same /plain 'write and read'
"$CATENA" fs put data /killed & put=$!
sleep 1
tell kill
wait $put || fail 'the client saw an error when the other machine lost its storage node'
same /killed 'the other machine loses its storage node in mid-write'
hear killed
wait_for 90 sound || { "$CATENA" admin chains; fail 'the chains did not come back'; }
head -c 4M /dev/urandom > data
tell lossy
hear lost
tc qdisc replace dev eth0 root netem limit 20000 loss 1%
"$CATENA" fs put data /lossy || fail 'a write under 1 % loss each way'
same /lossy '1 % of all packets lost each way'
tell done
