# The demo, over RDMA: a file through three replicas, a node killed in mid-write, all replicas identical.
# Limit: 150 s.
set -eu
source "$GUEST"
hosts 4
"$CATENA" demo --transport rdma --rdma-device rx1,rx2,rx3,rx4 --size 64MiB --dir "$DATA" --keep --json > demo.json 2> demo.log || {
  tail -30 demo.log
  # Why is in the services' logs.
  for logs in "$DATA"/catena-demo*/logs; do cp -r "$logs" "$OUT/demo-logs" || true; done
  fail 'the demo'
}
rm -rf "$DATA"/catena-demo*
tail -1 demo.json
for fact in '"ok":true' '"identical_replicas":true' '"killed":"storage-' '"errors_seen_by_client":0' '"resynced_chunks":[1-9]'; do
  tail -1 demo.json | grep -q "$fact" || fail "demo: $fact is missing"
done
