//! Backpressure: credits, pools, and turns.

use super::*;
use futures_util::future::join_all;

/// A client cannot make a server hold more than was granted.
pub async fn credits_bound_what_a_server_holds(backend: &dyn Backend) {
    let mut pair = pair(backend, 3, 4 * MAX_BUF).await;
    let calls: Vec<_> = (0..10)
        .map(|number| tokio::spawn(pair.connection.call(Call::new(HOLD, body(number), LONG))))
        .collect();
    for _ in 0..3 {
        assert_eq!(pair.begun().await, HOLD);
    }
    eventually(|| pair.connection.stats().waiting == 7).await;
    assert_eq!(pair.actor.begun.load(SeqCst), 3);
    pair.actor.gate.add_permits(10);
    for call in calls {
        assert_eq!(call.await.expect("no panic").expect("an answer").status, Status::Ok);
    }
    assert_eq!(pair.actor.peak.load(SeqCst), 3);
    assert_eq!(pair.connection.stats().waiting, 0);
}

/// A call that never left says so: it can be sent elsewhere without a thought.
pub async fn who_finds_no_credit_in_time_has_sent_nothing(backend: &dyn Backend) {
    let mut pair = pair(backend, 1, 4 * MAX_BUF).await;
    let held = tokio::spawn(pair.connection.call(Call::new(HOLD, &b"x"[..], LONG)));
    assert_eq!(pair.begun().await, HOLD);
    let late = pair.call(Call::new(ECHO, &b"y"[..], Duration::from_millis(30))).await.expect_err("no credit");
    assert!(matches!(late, NetError::TimedOut { .. }) && !late.sent(), "{late}");
    // One who leaves the line lets the next one through.
    let mut gone = pair.connection.call(Call::new(ECHO, &b"z"[..], LONG));
    assert!(poll_once(&mut gone).await.is_none());
    drop(gone);
    pair.actor.gate.add_permits(1);
    assert_eq!(held.await.expect("no panic").expect("an answer").status, Status::Ok);
    pair.works().await;
    assert_eq!(*pair.actor.order.lock(), b"xs");
}

/// A request that finds no buffer waits aside; its connection goes on, for other classes and for messages without data.
pub async fn a_full_pool_holds_up_only_those_who_need_it(backend: &dyn Backend) {
    let pair = pair(backend, 16, MAX_BUF).await;
    let all = pair.server.pool().try_alloc(MAX_BUF, PoolClass::Hop1).expect("it is empty");
    let data = pair.filled(700_000, 6);
    let call = |method| Call {
        method,
        body: body(method as u8),
        data: segments([(data.clone(), 5), (data.slice(1..5000), 0)]),
        into: vec![pair.buf(700_005), pair.buf(5000)],
        deadline: LONG,
        ..Call::default()
    };
    let parked: Vec<_> = (0..3).map(|_| tokio::spawn(pair.connection.call(call(HOP)))).collect();
    eventually(|| pair.parked() == 3).await;
    for _ in 0..3 {
        pair.works().await;
        let reply = pair.call(call(ECHO)).await.expect("another class");
        assert!(reply.data[0][5..] == data[..]);
    }
    assert_eq!(pair.actor.begun.load(SeqCst), 6, "none of the parked ones");
    drop(all);
    for parked in parked {
        let reply = parked.await.expect("no panic").expect("an answer");
        assert!(
            reply.status == Status::Ok
                && reply.data[0][5..] == data[..]
                && reply.data[1][..] == data[1..5000]
        );
    }
    assert_eq!(pair.listener.stats().all.parked, 3);
    // And it all works without waiting again.
    let reply = pair.call(call(HOP)).await.expect("an answer");
    assert!(reply.data[0][5..] == data[..]);
    drop((reply, data));
    pair.nothing_is_held().await;
}

/// Requests that are given up while they wait for buffers.
pub async fn who_leaves_the_line_for_buffers_leaves_nothing_behind(backend: &dyn Backend) {
    let pair = pair(backend, 16, MAX_BUF).await;
    let data = pair.filled(600_000, 6);
    let call = |deadline| Call {
        method: HOP,
        body: body(1),
        data: segments([(data.clone(), 0)]),
        into: vec![pair.buf(600_000)],
        deadline,
        ..Call::default()
    };
    for round in 0..20 {
        let all = pair.server.pool().try_alloc(MAX_BUF, PoolClass::Hop1).expect("it is empty");
        let given_up: Vec<_> = (0..4).map(|_| tokio::spawn(pair.connection.call(call(LONG)))).collect();
        let stays = tokio::spawn(pair.connection.call(call(LONG)));
        if round % 2 == 0 {
            eventually(|| pair.parked() == 5).await;
        }
        if round % 4 == 0 {
            let late = pair.call(call(Duration::from_millis(5))).await.expect_err("there are no buffers");
            assert!(matches!(late, NetError::TimedOut { .. }), "{late}");
        }
        given_up[..2].iter().for_each(|task| task.abort());
        drop(all);
        given_up[2..].iter().for_each(|task| task.abort());
        for task in given_up {
            let _ = task.await;
        }
        let reply = stays.await.expect("no panic").expect("an answer");
        assert!(reply.status == Status::Ok && reply.data[0][..] == data[..]);
        drop(reply);
        let hop = || pair.server.pool().stats().classes[PoolClass::Hop1 as usize];
        eventually(|| hop().used + hop().waiting == 0).await;
    }
    assert!(!pair.connection.is_closed());
    drop(data);
    pair.nothing_is_held().await;
}

/// No two requests hold halves of what the other one needs.
pub async fn batches_that_each_need_the_whole_pool_take_turns(backend: &dyn Backend) {
    let pair = pair(backend, 16, MAX_BUF).await;
    let quarter = pair.filled(MAX_BUF / 4, 2);
    let calls = (0..12).map(|_| {
        let data = segments((0..4).map(|_| (quarter.clone(), 0)));
        let call = Call { method: ECHO, body: body(1), data, deadline: LONG, ..Call::default() };
        // No room: the answer is an error, and the data is dropped at once.
        pair.connection.call(call)
    });
    for reply in join_all(calls.collect::<Vec<_>>()).await {
        assert_eq!(reply.expect("an answer").status, Status::Internal);
    }
    assert_eq!(pair.actor.begun.load(SeqCst), 12);
    drop(quarter);
    pair.nothing_is_held().await;
}

/// A request that could never get its buffers is told so.
pub async fn more_than_the_server_can_hold_is_refused(backend: &dyn Backend) {
    let pair = pair(backend, 16, MAX_BUF).await;
    let half = pair.filled(MAX_BUF / 2 + 1, 2);
    let data = segments([(half.clone(), 0), (half.clone(), 0)]);
    let reply =
        pair.call(Call { method: ECHO, data, deadline: LONG, ..Call::default() }).await.expect("an answer");
    assert_eq!(reply.status, Status::Invalid);
    assert!(!reply.body.is_empty(), "says why");
    assert_eq!(pair.actor.begun.load(SeqCst), 0);
    pair.works().await;
    drop(half);
    pair.nothing_is_held().await;
}

/// While large messages fill the connection both ways, small ones do not wait for their end.
pub async fn small_calls_pass_between_large_ones(backend: &dyn Backend) {
    let pair = pair(backend, 32, 16 * MAX_BUF).await;
    let stop = Arc::new(AtomicUsize::new(0));
    let large = pair.filled(MAX_BUF, 1);
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let (connection, stop, data) = (pair.connection.clone(), stop.clone(), large.clone());
            let mut into = Some(pair.buf(MAX_BUF));
            tokio::spawn(async move {
                let mut calls = 0;
                while stop.load(SeqCst) == 0 {
                    let call = Call {
                        method: ECHO,
                        body: body(1),
                        data: segments([(data.clone(), 0)]),
                        into: into.take().into_iter().collect(),
                        deadline: LONG,
                        ..Call::default()
                    };
                    into = connection.call(call).await.expect("an answer").data.pop();
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    eventually(|| pair.actor.begun.load(SeqCst) >= 6).await;
    let before = pair.actor.begun.load(SeqCst);
    // As a task like the others: what a test's own function does may have to wait for the runtime.
    let (connection, actor) = (pair.connection.clone(), pair.actor.clone());
    let small = tokio::spawn(async move {
        for _ in 0..50 {
            connection.call(Call::new(ECHO, &b"small"[..], LONG)).await.expect("an answer");
        }
        actor.begun.load(SeqCst)
    });
    let during = small.await.expect("no panic") - before;
    stop.store(1, SeqCst);
    for task in tasks {
        assert!(task.await.expect("no panic") > 0);
    }
    // In line behind all that are queued it would be six each way.
    assert!(during < 50 + 50 * 12, "{} large calls began while 50 small ones were made", during - 50);
}
