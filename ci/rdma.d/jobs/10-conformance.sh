# The transport's conformance suite over two devices, and the verbs below it.
# Limit: 200 s.
set -eu
source "$GUEST"
hosts 2
export CATENA_TEST_RDMA=rx1=10.9.0.1,rx2=10.9.0.2
"$TEST_VERBS" --test-threads 1
"$TEST_RDMA" --test-threads 1 one_thread
# With several threads those that are about threads.
"$TEST_RDMA" --test-threads 1 several_threads::many several_threads::a_call_that several_threads::a_late
# IPv6.
export CATENA_TEST_RDMA=rx1=[fd09::1],rx2=fd09::2
"$TEST_RDMA" --test-threads 1 one_thread::many_calls
echo "RESULT $(grep -c ' \.\.\. ok$' "$OUT/10-conformance.log") tests passed"
