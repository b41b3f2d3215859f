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

"$CATENA" fs put data /killed & put=$!
sleep 1
kill -9 "$(cat "$DATA/cluster/run/storage-2.pid")"
wait $put || fail 'the client saw an error when a node was killed'
same /killed 'node killed in mid-write'
back() { "$CATENA" --json admin chains | tail -1 | python3 -c 'import json,sys; d=json.load(sys.stdin); sys.exit("serving" not in str(d) or any(s in str(d) for s in ("offline","syncing","waiting","lastsrv")))'; }
wait_for 60 back || { "$CATENA" admin chains; fail 'the chains did not come back'; }

"$CATENA" fs put data /unplugged & put=$!
sleep 1
link_down 3; sleep 6; link_up 3
wait $put || fail 'the client saw an error when a link was down for six seconds'
same /unplugged 'link down and up'
wait_for 60 back || { "$CATENA" admin chains; fail 'the chains did not come back after the link'; }

loss 2
"$CATENA" fs put data /lossy || fail 'a write under 2 % loss'
same /lossy '2 % of all packets lost'
no_loss
kill -INT $dev; wait $dev || true
