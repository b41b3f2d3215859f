//! Calls without bulk data, and what both ends say of them.

use super::*;
use crate::limits;

/// Body, status, method and identity arrive.
pub async fn a_call_is_answered(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    assert_eq!(pair.connection.peer(), SERVER);
    assert!(!pair.connection.is_closed());
    for len in [0, 1, 1000, limits::BODY] {
        let mut body = vec![0; len];
        pattern(len as u64, &mut body);
        let reply = pair.call(Call::new(ECHO, body.clone(), LONG)).await.expect("an answer");
        assert_eq!(reply.status, Status::Ok);
        assert!(reply.body == body, "{len} bytes");
        assert!(reply.data.is_empty());
    }
    let reply = pair.call(Call::new(999, &b""[..], LONG)).await.expect("an answer");
    assert_eq!((reply.status, &reply.body[..]), (Status::UnknownMethod, &b"what?"[..]));
    let open = pair.listener.stats().open;
    assert_eq!(open.iter().map(|peer| peer.peer).collect::<Vec<_>>(), [CLIENT]);
}

/// Answers find their callers whatever order they come in.
pub async fn many_calls_run_side_by_side(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    let tasks = (0..16_u64).map(|task| {
        let (connection, pool) = (pair.connection.clone(), pair.client.pool().clone());
        tokio::spawn(async move {
            let mut state = task;
            for call in 0..40 {
                let seed = task << 32 | call;
                let len = [0, 10, 4096, 5000, 70_000][random(&mut state) % 5];
                let align = random(&mut state) % 4096;
                let mut data = pool.alloc(len, PoolClass::Local).await.expect("a buffer");
                pattern(seed, &mut data);
                let data = data.freeze();
                let call = Call {
                    method: ECHO,
                    body: Bytes::copy_from_slice(&seed.to_le_bytes()),
                    data: segments([(data.clone(), align as u16)]),
                    // The echo has the alignment's bytes in front.
                    into: vec![pool.alloc(align + len, PoolClass::Client).await.expect("a buffer")],
                    deadline: LONG,
                    ..Call::default()
                };
                let reply = connection.call(call).await.expect("an answer");
                assert_eq!(reply.body[..], seed.to_le_bytes());
                assert!(reply.data[0][align..] == data[..], "task {task}, {len} bytes at {align}");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no task fails");
    }
    pair.nothing_is_held().await;
}

/// What no server would take is refused here, and costs nothing.
pub async fn a_call_beyond_the_limits_is_not_sent(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    let segment = |align| Segment { data: Buf::from_vec(vec![1]), align };
    let bulk = pair.filled(MAX_BUF, 1);
    let over = vec![Segment { data: bulk, align: 0 }; limits::BULK / MAX_BUF + 1];
    let bad = [
        Call { body: vec![0; limits::BODY + 1].into(), ..Call::default() },
        Call { data: vec![segment(0); limits::SEGMENTS + 1], ..Call::default() },
        Call { data: vec![segment(4096)], ..Call::default() },
        Call { data: over, ..Call::default() },
        Call { into: vec![pair.buf(10)], into_align: vec![11], ..Call::default() },
        Call { into: vec![pair.buf(10)], into_align: vec![0, 0], ..Call::default() },
    ];
    for (index, call) in bad.into_iter().enumerate() {
        let error = pair.call(call).await.expect_err("it cannot be sent");
        assert!(matches!(error, NetError::Invalid(_)), "{index}: {error}");
        assert!(!error.sent());
    }
    assert_eq!(pair.actor.begun.load(SeqCst), 0);
    pair.works().await;
}

/// No caller waits for a handler that will never answer, and one bad request does not cost the others their connection.
pub async fn a_handler_that_panics_or_forgets_is_answered_for(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    for method in [PANIC, PANIC_LATER, FORGET] {
        let reply = pair.call(Call::new(method, &b"x"[..], LONG)).await.expect("an answer");
        assert_eq!(reply.status, Status::Internal, "method {method}");
    }
    pair.works().await;
    pair.nothing_is_held().await;
}

/// The caller's buffers are safe from a service that answers with more than was asked for.
pub async fn an_answer_that_does_not_fit_is_an_error_of_the_server(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    for into in [vec![], vec![pair.buf(99)]] {
        let call = Call { method: BOAST, into, deadline: LONG, ..Call::default() };
        assert_eq!(pair.call(call).await.expect("an answer").status, Status::Internal);
    }
    let call = Call { method: BOAST, into: vec![pair.buf(100)], deadline: LONG, ..Call::default() };
    assert_eq!(pair.call(call).await.expect("an answer").status, Status::Ok);
    pair.works().await;
}

/// Messages of one kind begin in the order in which their calls were first polled.
pub async fn requests_begin_in_the_order_sent(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    for len in [0, 300_000] {
        let data = pair.filled(len.max(1), 3);
        let calls = (0..50).map(|number| Call {
            method: ECHO,
            body: body(number),
            // Longer and shorter ones in turn.
            data: if len == 0 { vec![] } else { segments([(data.slice(0..len >> (number % 3 * 5)), 9)]) },
            into: if len == 0 { vec![] } else { vec![pair.buf(len + 9)] },
            deadline: LONG,
            ..Call::default()
        });
        let calls: Vec<_> = calls.collect();
        let mut futures: Vec<_> = calls.into_iter().map(|call| pair.connection.call(call)).collect();
        let mut early = Vec::new();
        for future in &mut futures {
            early.push(poll_once(future).await);
        }
        for (future, early) in futures.into_iter().zip(early) {
            let reply = match early {
                Some(reply) => reply,
                None => future.await,
            };
            assert_eq!(reply.expect("an answer").status, Status::Ok);
        }
        assert_eq!(std::mem::take(&mut *pair.actor.order.lock()), (0..50).collect::<Vec<u8>>());
    }
}

/// Calls, bytes and failures by method, the same at both ends.
pub async fn both_ends_count_the_same(backend: &dyn Backend) {
    let mut pair = Pair::of(backend).await;
    for _ in 0..3 {
        let data = segments([(pair.filled(5000, 1), 0), (pair.filled(70, 2), 0)]);
        let into = vec![pair.buf(5000), pair.buf(70)];
        let call = Call { method: ECHO, body: body(1), data, into, deadline: LONG, ..Call::default() };
        pair.call(call).await.expect("an answer");
    }
    pair.call(Call::new(FORGET, &b"abc"[..], LONG)).await.expect("an answer");
    let held = tokio::spawn(pair.connection.call(Call::new(HOLD, &b"h"[..], LONG)));
    assert_eq!([pair.begun().await, pair.begun().await, pair.begun().await], [ECHO; 3]);
    assert_eq!([pair.begun().await, pair.begun().await], [FORGET, HOLD]);
    let (here, there) = (pair.connection.stats(), pair.listener.stats().all);
    let echo = here.method(ECHO);
    assert_eq!((echo.calls, echo.failed, echo.in_flight), (3, 0, 0));
    assert_eq!((echo.sent, echo.received), (3 * 5071, 3 * 5071));
    assert_eq!(echo.latency.iter().sum::<u64>(), 3);
    assert_eq!(
        (here.method(FORGET).failed, here.method(FORGET).sent, here.method(FORGET).received),
        (1, 3, 0)
    );
    assert_eq!((here.method(HOLD).in_flight, here.in_flight(), here.waiting), (1, 1, 0));
    for method in [ECHO, FORGET, HOLD] {
        let (mine, theirs) = (here.method(method), there.method(method));
        assert_eq!(
            (mine.calls, mine.failed, mine.in_flight, mine.sent, mine.received),
            (theirs.calls, theirs.failed, theirs.in_flight, theirs.received, theirs.sent),
            "method {method}"
        );
    }
    assert!(here.wire_sent >= 3 * 5071 && there.wire_received >= 3 * 5071);
    pair.actor.gate.add_permits(1);
    held.await.expect("no panic").expect("an answer");
    eventually(|| pair.listener.stats().all.in_flight() == 0).await;
}
