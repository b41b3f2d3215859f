# What the transport moves, beside perftest on the same devices in the same minutes, in turns. In the guest a process is fast or up to twice
# as slow for all of its life, perftest's as well: so medians of many short ones are compared.
# Limit: 200 s.
set -euo pipefail
source "$GUEST"
hosts 2
# Throughput is taken with events: two ends that poll would take rxe its two processors. Latency is taken polling, as perftest takes its own.
check() { # check NAME BUSY SIZE ROUND_TRIPS: with a server of its own, as perftest has
  local server
  "$CATENA" rdma check --serve 10.9.0.1:7600 --device rx1 --busy-poll-us "$2" 2> serve.log & server=$!
  wait_for 20 listens 7600 || { cat serve.log; fail 'the server of checks does not listen'; }
  "$CATENA" --json rdma check --peer 10.9.0.1:7600 --device rx2 --size "$3" --round-trips "$4" --busy-poll-us "$2" 2> check.log |
    tail -1 | sed "s/^{/{\"tool\":\"$1\",/" | tee -a figures || { cat check.log; fail 'catena rdma check'; }
  kill -INT $server
  wait $server || { cat serve.log; fail 'the server of checks'; }
}
for turn in 1 2 3 4 5 6 7; do
  # On a slow machine fewer have to do; the result says how many.
  [ $turn -le 3 ] || [ $SECONDS -lt 130 ] || break
  perftest ib_write_bw 1048576 48 | tee -a figures
  perftest ib_read_bw 1048576 48 | tee -a figures
  check throughput 0 48MiB 1
  perftest ib_send_lat 4096 400 | tee -a figures
  perftest ib_write_lat 4096 400 | tee -a figures
  check latency 100000 1MiB 400
done
python3 - <<'P'
import json, statistics, sys
figures = [json.loads(line) for line in open("figures")]
of = lambda tool, key: [f[key] for f in figures if f.get("tool") == tool]
ours, small_ours = of("throughput", "figures"), of("latency", "figures")
median = statistics.median
def compare(what, unit, ours, theirs, against, bar):
    print("RESULT %s %.1f %s = %.2f of %s (bar %s); %d turns, %.1f to %.1f beside %.1f to %.1f" % (
        what, median(ours), unit, median(ours) / median(theirs), against, bar, len(ours), min(ours), max(ours), min(theirs), max(theirs)))
compare("1 MiB reads", "MiB/s", [o["read_mib_s"] for o in ours], of("ib_write_bw", "average_mib_s"), "ib_write_bw", "0.9")
compare("1 MiB writes", "MiB/s", [o["write_mib_s"] for o in ours], of("ib_read_bw", "average_mib_s"), "ib_read_bw", "0.9")
both = [s + w for s, w in zip(of("ib_send_lat", "typical_us"), of("ib_write_lat", "typical_us"))]
compare("4 KiB round trip", "us", [o["round_trip_us"] for o in small_ours], both, "ib_send_lat + ib_write_lat", "1.5")
for name, costs in ("read", ours), ("write", ours), ("round_trip", small_ours):
    c = costs[-1][name + "_costs"]
    print("RESULT %s: %.2f ns of CPU per byte, %.2f doorbells and %.2f waits per call, %d bytes copied" % (name, c["cpu_ns_per_byte"], c["doorbells_per_call"], c["waits_per_call"], c["copied_bytes"]))
    if c["copied_bytes"]: sys.exit("bytes were copied")
P
