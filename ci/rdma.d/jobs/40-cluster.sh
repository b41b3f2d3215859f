# A whole cluster, each storage node with a device of its own, under faults: every byte that was acknowledged is there.
# Limit: 300 s.
set -eu
source "$GUEST"
hosts 4
"$CATENA" dev --dir "$DATA/cluster" --transport rdma --rdma-device rx1,rx2,rx3,rx4 --lease 4s > dev.log 2>&1 & dev=$!
export CATENA_CLUSTER=$DATA/cluster/cluster.toml
wait_for 60 grep -q 'Cluster made\|Ctrl-C stops' dev.log || { cat dev.log "$DATA"/cluster/logs/*.log | tail -40; fail 'the cluster did not start'; }
"$CATENA" admin nodes
"$CATENA" admin nodes | grep -c 'rdma://' | grep -qx 3 || fail 'three storage nodes should offer RDMA'
head -c 48M /dev/urandom > data
sum() { "$CATENA" fs cat "$1" | sha256sum; }
same() { [ "$(sum "$1")" = "$(sha256sum < data)" ] || fail "$1 is not what was written"; echo "RESULT $2: read back identical"; }

"$CATENA" fs put data /plain
same /plain 'write and read'
# A client without RDMA, of the same cluster.
sed '/^\[transport\]/,$d' "$CATENA_CLUSTER" > tcp.toml
[ "$("$CATENA" --cluster tcp.toml fs cat /plain | sha256sum)" = "$(sha256sum < data)" ] || fail 'a TCP client reads something else'
"$CATENA" --cluster tcp.toml fs put data /tcp
same /tcp 'written over TCP'

# Reads through the whole cluster beside the transport alone, in turns: the client's host is the fourth, a storage node's the first.
"$CATENA" rdma check --serve 10.9.0.1:7700 --device rx1 2> serve.log & server=$!
wait_for 20 listens 7700 || { cat serve.log; fail 'the server of checks does not listen'; }
for turn in 1 2 3; do
  "$CATENA" --json bench read --size 32MiB --block-size 1MiB --depth 4 --keep 2> /dev/null | tail -1 >> reads
  "$CATENA" --json rdma check --peer 10.9.0.1:7700 --device rx4 --size 32MiB --depth 4 --round-trips 1 2> /dev/null | tail -1 >> alone
done
kill -INT $server; wait $server || fail 'the server of checks'
python3 - <<'P' || fail 'the figures of whole-cluster reads'
import json, statistics
of = lambda name, figure: statistics.median(figure(json.loads(line)) for line in open(name))
whole, alone = of("reads", lambda f: f["mib_s"]), of("alone", lambda f: f["figures"]["read_mib_s"])
print("RESULT reads through the cluster %.1f MiB/s = %.2f of the transport's own %.1f (bar 0.7)" % (whole, whole / alone, alone))
P

"$CATENA" fs put data /killed & put=$!
sleep 1
kill -9 "$(cat "$DATA/cluster/run/storage-2.pid")"
wait $put || fail 'the client saw an error when a node was killed'
same /killed 'node killed in mid-write'
back() { "$CATENA" --json admin chains | tail -1 | python3 -c 'import json,sys; d=json.load(sys.stdin); sys.exit("serving" not in str(d) or any(s in str(d) for s in ("offline","syncing","waiting","lastsrv")))'; }
wait_for 60 back || { "$CATENA" admin chains; fail 'the chains did not come back'; }

"$CATENA" fs put data /unplugged & put=$!
sleep 1
# A node that nobody reaches over RDMA is given up by the cluster, although mgmtd could still hear it, and comes back with its link.
node_3() { "$CATENA" admin nodes | grep -E "^n3 .* $1 " > /dev/null; }
link_down 3
wait_for 20 node_3 down || { "$CATENA" admin nodes; fail 'a node whose only port is down keeps its place'; }
link_up 3
wait $put || fail 'the client saw an error when a link was down'
same /unplugged 'link down and up'
wait_for 60 back || { "$CATENA" admin chains; fail 'the chains did not come back after the link'; }

# Less data: queue pairs go back to what was lost and send again all that came behind it. Twice: the second write has whatever the first one
# left behind beside it.
head -c 8M /dev/urandom > data
loss 2
begun=${EPOCHREALTIME/./}
"$CATENA" fs put data /lossy || fail 'a write under 2 % loss'
"$CATENA" fs put data /lossy2 || fail 'a second write under 2 % loss'
echo "RESULT 2 writes of 8 MiB under 2 % loss: $(((${EPOCHREALTIME/./} - begun) / 1000000)) s"
same /lossy '2 % of all packets lost'
same /lossy2 '2 % of all packets lost, again'
no_loss
kill -INT $dev; wait $dev || true
