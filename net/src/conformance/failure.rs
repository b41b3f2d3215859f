//! Calls that end early, and peers that go.

use super::*;

/// The caller hears in time; the server goes on, its answer is thrown away, and the credit comes back.
pub async fn a_deadline_ends_a_call_and_nothing_else(backend: &dyn Backend) {
    let mut pair = pair(backend, 1, 4 * MAX_BUF).await;
    let call = Call { into: vec![pair.buf(100)], ..Call::new(HOLD, &b"x"[..], Duration::from_millis(50)) };
    let error = pair.call(call).await.expect_err("nobody opened the gate");
    assert!(matches!(error, NetError::TimedOut { .. }) && error.sent(), "{error}");
    assert_eq!(error.status(), Status::TimedOut);
    assert_eq!(pair.begun().await, HOLD);
    // The only credit is with the request that is still held.
    let error = pair.call(Call::new(ECHO, &b""[..], Duration::from_millis(20))).await.expect_err("no credit");
    assert!(matches!(error, NetError::TimedOut { .. }) && !error.sent(), "{error}");
    pair.actor.gate.add_permits(1);
    pair.works().await;
    assert_eq!(pair.actor.ended.load(SeqCst), 2, "the handler ran to its end");
    pair.nothing_is_held().await;
    let hold = pair.connection.stats().method(HOLD);
    assert_eq!((hold.calls, hold.failed, hold.in_flight), (1, 1, 0));
}

/// At whatever point a call is dropped, no buffer and no credit is lost.
pub async fn a_call_that_is_given_up_leaves_no_trace(backend: &dyn Backend) {
    let pair = pair(backend, 4, 4 * MAX_BUF).await;
    let mut state = 3;
    for round in 0..300 {
        let len = [100, 5000, 300_000, 2_000_000][random(&mut state) % 4];
        let call = Call {
            method: if round % 2 == 0 { ECHO } else { HOP },
            body: body(1),
            data: segments([(pair.filled(len, round), 0)]),
            into: vec![pair.buf(len)],
            deadline: LONG,
            ..Call::default()
        };
        let mut future = pair.connection.call(call);
        for _ in 0..random(&mut state) % 30 {
            if poll_once(&mut future).await.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    pair.works().await;
    pair.nothing_is_held().await;
    eventually(|| pair.listener.stats().all.in_flight() == 0).await;
    assert!(!pair.connection.is_closed());
}

/// Buffers of calls that were given up are handed out again at once and never change under their new owners.
pub async fn a_late_reply_never_lands_in_a_buffer_with_a_new_owner(backend: &dyn Backend) {
    let pair = pair(backend, 32, 16 * MAX_BUF).await;
    let mut state = 9;
    for round in 0..40 {
        let len = [4096, 100_000, 1 << 20][round % 3];
        let mut calls = Vec::new();
        for _ in 0..8 {
            let into = vec![pair.buf(len)];
            let mut call = pair.connection.call(Call { into, ..Call::new(FILL, &[0xbb][..], LONG) });
            assert!(poll_once(&mut call).await.is_none());
            calls.push(call);
        }
        // Half of the answers leave while their calls are given up one after the other.
        pair.actor.gate.add_permits(8);
        let mut owned = Vec::new();
        for mut call in calls {
            for _ in 0..random(&mut state) % 6 {
                if let Some(reply) = poll_once(&mut call).await {
                    assert_eq!(reply.expect("an answer").data[0][0], 0xbb);
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(call);
            let mut mine = pair.buf(len);
            mine.fill(0x11);
            owned.push(mine);
        }
        pair.works().await;
        assert!(
            owned.iter().all(|buf| buf.iter().all(|&byte| byte == 0x11)),
            "a reply landed in somebody's buffer"
        );
    }
    pair.works().await;
    pair.nothing_is_held().await;
}

/// Calls under way fail, new ones do not leave.
pub async fn a_server_that_goes_fails_its_calls(backend: &dyn Backend) {
    let mut pair = Pair::of(backend).await;
    let held = tokio::spawn(pair.connection.call(Call::new(HOLD, &b"x"[..], LONG)));
    assert_eq!(pair.begun().await, HOLD);
    let Pair { listener, connection, .. } = pair;
    drop(listener);
    let error = held.await.expect("no panic").expect_err("the server is gone");
    assert!(matches!(error, NetError::Disconnected { .. }) && error.sent(), "{error}");
    assert_eq!(error.status(), Status::Disconnected);
    assert!(connection.is_closed());
    let error = connection.call(Call::new(ECHO, &b""[..], LONG)).await.expect_err("the server is gone");
    assert!(matches!(error, NetError::Disconnected { .. }) && !error.sent(), "{error}");
}

/// What a client asked for is carried out although it is gone.
pub async fn a_client_that_goes_does_not_stop_its_requests(backend: &dyn Backend) {
    let mut pair = Pair::of(backend).await;
    let data = segments([(pair.filled(100_000, 1), 0)]);
    let call = Call { method: HOLD, data, body: body(1), deadline: LONG, ..Call::default() };
    let held = tokio::spawn(pair.connection.call(call));
    assert_eq!(pair.begun().await, HOLD);
    held.abort();
    let _ = held.await;
    let Pair { actor, listener, server, connection, .. } = pair;
    drop(connection);
    eventually(|| listener.stats().open.is_empty()).await;
    assert_eq!(actor.ended.load(SeqCst), 0);
    actor.gate.add_permits(1);
    eventually(|| actor.ended.load(SeqCst) == 1).await;
    eventually(|| server.pool().stats().classes[0].used == 0).await;
    eventually(|| listener.stats().all.in_flight() == 0).await;
}

/// The last reference may go before the last call.
pub async fn a_connection_lives_as_long_as_its_calls(backend: &dyn Backend) {
    let mut pair = Pair::of(backend).await;
    let held = tokio::spawn(pair.connection.call(Call::new(HOLD, &b"x"[..], LONG)));
    assert_eq!(pair.begun().await, HOLD);
    let Pair { actor, listener, connection, .. } = pair;
    drop(connection);
    actor.gate.add_permits(1);
    assert_eq!(held.await.expect("no panic").expect("an answer").status, Status::Ok);
    eventually(|| listener.stats().open.is_empty()).await;
}

/// Another cluster, another token: the caller learns what to do, the server counts it.
pub async fn strangers_are_refused_by_name(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    let address = pair.listener.address();
    let strangers = [
        (Identity { cluster: ClusterId(8), ..identity(CLIENT) }, Status::WrongCluster),
        (Identity { token: Token([8; 32]), ..identity(CLIENT) }, Status::BadToken),
    ];
    for (stranger, expected) in strangers {
        let transport = backend.transport(stranger, pool(MAX_BUF), 8);
        let error = transport.connect(&address, LONG).await.err().expect("it is a stranger");
        assert_eq!(error.status(), expected);
        let NetError::Refused { address: named, .. } = &error else { panic!("{error}") };
        assert_eq!(*named, address);
        assert!(error.to_string().contains("cluster"), "says what to do: {error}");
    }
    eventually(|| pair.listener.stats().refused_cluster + pair.listener.stats().refused_token == 2).await;
    eventually(|| pair.listener.stats().open.len() == 1).await;
    pair.works().await;
}

/// What is under way is answered; what comes later is turned away without harm.
pub async fn a_shutdown_lets_requests_finish(backend: &dyn Backend) {
    let mut pair = Pair::of(backend).await;
    let data = segments([(pair.filled(1 << 20, 4), 0)]);
    let into = vec![pair.buf(1 << 20)];
    let call =
        Call { method: HOLD, body: body(1), data: data.clone(), into, deadline: LONG, ..Call::default() };
    let held = tokio::spawn(pair.connection.call(call));
    assert_eq!(pair.begun().await, HOLD);
    let Pair { actor, listener, client, connection, .. } = pair;
    let address = listener.address();
    let down = tokio::spawn(listener.shutdown(LONG));
    eventually(|| connection.is_closed()).await;
    let error = connection.call(Call::new(ECHO, &b""[..], LONG)).await.expect_err("it is shutting down");
    assert!(!error.sent() && error.to_string().contains("shutting down"), "{error}");
    assert!(!down.is_finished());
    actor.gate.add_permits(1);
    let reply = held.await.expect("no panic").expect("it was under way");
    assert!(reply.status == Status::Ok && reply.data[0][..] == data[0].data[..]);
    down.await.expect("no panic");
    let error = client.connect(&address, LONG).await.err().expect("nobody listens any more");
    assert!(matches!(error, NetError::Connect { .. }), "{error}");
}

/// A wrong address and one in use are told apart from everything else.
pub async fn nobody_listens_nobody_answers(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    let address = pair.listener.address();
    let (other, _) = actor();
    let error = pair.server.listen(&address, other).await.err().expect("it is in use");
    let NetError::Listen { address: named, reason } = &error else { panic!("{error}") };
    assert!(*named == address && reason.contains("in use"), "{error}");
    let Pair { listener, client, .. } = pair;
    drop(listener);
    let error = client.connect(&address, LONG).await.err().expect("nobody listens");
    assert!(matches!(&error, NetError::Connect { address: named, .. } if *named == address), "{error}");
    assert_eq!(error.status(), Status::Disconnected);
}
