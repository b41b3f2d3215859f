# What an operator sees: devices, a device that is misspelt, a limit that is too low, a port that is down.
# Limit: 60 s.
set -u
source "$GUEST"
hosts 2
"$CATENA" rdma check --size 16MiB --round-trips 100 || fail 'rdma check'
says() { # says TEXT COMMAND...: the command fails and its words have the text
  local text=$1 words; shift
  words=$("$@" 2>&1) && fail "$* should have failed"
  grep -qF -- "$text" <<< "$words" || fail "$* does not say '$text': $words"
}
says 'there is no RDMA device `mlx9`' "$CATENA" rdma check --device mlx9
says 'ulimit -l' setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock bash -c "ulimit -l 1024; exec setpriv --reuid 65534 --clear-groups '$CATENA' rdma check"
link_down 1; wait_for 10 bash -c '! grep -q ^4 /sys/class/infiniband/rx1/ports/1/state'
says 'no RDMA device: rx1:1 is DOWN' "$CATENA" rdma check --device rx1
