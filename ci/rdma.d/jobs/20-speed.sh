# What the transport moves, beside perftest on the same devices in the same minute, in turns; medians of the ratios.
# Limit: 170 s.
set -eu
source "$GUEST"
hosts 2
"$CATENA" rdma check --serve 10.9.0.1:7600 --device rx1 --busy-poll-us 100000 2> serve.log & server=$!
wait_for 20 listens 7600 || { cat serve.log; fail 'the server of checks does not listen'; }
for turn in 1 2 3; do
  perftest ib_write_bw 1048576 64 | tee -a figures
  perftest ib_read_bw 1048576 64 | tee -a figures
  perftest ib_send_lat 4096 400 | tee -a figures
  perftest ib_write_lat 4096 400 | tee -a figures
  "$CATENA" --json rdma check --peer 10.9.0.1:7600 --device rx2 --size 64MiB --round-trips 400 --busy-poll-us 100000 2> check.log | tail -1 | tee -a figures ||
    { cat check.log; fail 'catena rdma check'; }
done
python3 - <<'P'
import json, statistics, sys
figures = [json.loads(line) for line in open("figures")]
of = lambda tool, key: [f[key] for f in figures if f.get("tool") == tool]
ours = [f["figures"] for f in figures if "figures" in f]
median = statistics.median
read = [o["read_mib_s"] / w for o, w in zip(ours, of("ib_write_bw", "average_mib_s"))]
write = [o["write_mib_s"] / r for o, r in zip(ours, of("ib_read_bw", "average_mib_s"))]
small = [o["round_trip_us"] / (s + w) for o, s, w in zip(ours, of("ib_send_lat", "typical_us"), of("ib_write_lat", "typical_us"))]
cost = ours[-1]
print("RESULT 1 MiB reads %.1f MiB/s = %.2f of ib_write_bw (bar 0.9)" % (median(o["read_mib_s"] for o in ours), median(read)))
print("RESULT 1 MiB writes %.1f MiB/s = %.2f of ib_read_bw (bar 0.9)" % (median(o["write_mib_s"] for o in ours), median(write)))
print("RESULT 4 KiB round trip %.1f us = %.2f of ib_send_lat + ib_write_lat (bar 1.5)" % (median(o["round_trip_us"] for o in ours), median(small)))
for name in ("read", "write", "round_trip"):
    c = cost[name + "_costs"]
    print("RESULT %s: %.2f ns of CPU per byte, %.2f doorbells and %.2f waits per call, %d bytes copied" % (name, c["cpu_ns_per_byte"], c["doorbells_per_call"], c["waits_per_call"], c["copied_bytes"]))
    if c["copied_bytes"]: sys.exit("bytes were copied")
P
kill -INT $server; wait $server || true; tail -1 serve.log
