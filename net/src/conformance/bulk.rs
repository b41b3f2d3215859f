//! Bulk data both ways.

use super::*;
use crate::limits;

/// Segments of any length land at any alignment, on both sides, and nothing beside them is touched.
pub async fn a_batch_carries_data_both_ways_at_any_alignment(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    let mut state = 5;
    for round in 0..20 {
        let count = 1 + random(&mut state) % 40;
        let mut call = Call { method: ECHO, body: body(1), deadline: LONG, ..Call::default() };
        let mut sent = Vec::new();
        for index in 0..count {
            let len = [0, 1, 100, 4095, 4096, 4097, 30_000][random(&mut state) % 7];
            let (align, land) = (random(&mut state) % 4096, random(&mut state) % 4096);
            let data = pair.filled(len, round << 16 | index as u64);
            call.data.push(Segment { data: data.clone(), align: align as u16 });
            // The echo begins with the alignment's bytes.
            let mut into = pair.buf(land + align + len + 50);
            into.fill(0xee);
            call.into.push(into);
            call.into_align.push(land as u16);
            sent.push((data, align, land));
        }
        let reply = pair.call(call).await.expect("an answer");
        assert_eq!((reply.status, reply.data.len()), (Status::Ok, count));
        for ((data, align, land), mut got) in sent.into_iter().zip(reply.data) {
            assert_eq!(got.len(), land + align + data.len(), "alignment + what came");
            assert!(got[land + align..] == data[..], "{} bytes at {align}", data.len());
            let end = got.len();
            let whole = got.whole_mut();
            assert!(whole[..land].iter().all(|&byte| byte == 0xee), "before the data");
            assert!(whole[end..end + 50].iter().all(|&byte| byte == 0xee), "behind it");
        }
    }
    // Fewer segments than there is room for.
    let into = vec![pair.buf(10), pair.buf(20), pair.buf(30)];
    let data = segments([(pair.filled(0, 1), 0), (pair.filled(20, 1), 0)]);
    let call =
        Call { method: ECHO, data, into, into_align: vec![0, 0, 7], deadline: LONG, ..Call::default() };
    let reply = pair.call(call).await.expect("an answer");
    assert_eq!(reply.data.iter().map(|buf| buf.len()).collect::<Vec<_>>(), [0, 20, 7]);
    drop(reply);
    pair.nothing_is_held().await;
}

/// Memory that the program registered is sent from and received into in place.
pub async fn registered_memory_is_used_in_place(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    let own = BufPool::for_claims(4 << 20).expect("memory for a test");
    pair.client.register(&own).expect("it can be locked");
    let copied = pair.connection.stats().copied;
    for round in 0..3_u64 {
        let mut data = own.claim(8192..8192 + 300_000).expect("within it").expect("nobody uses it");
        data.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at as u64 * 7 + round) as u8);
        let into = own.claim(1 << 20..(1 << 20) + 300_000).expect("within it").expect("nobody uses it");
        let data = segments([(data.freeze(), 0)]);
        let call =
            Call { method: ECHO, body: body(1), data, into: vec![into], deadline: LONG, ..Call::default() };
        let reply = pair.call(call).await.expect("an answer");
        let back = &reply.data[0];
        assert!(own.owns(back) && back.region_offset() == 1 << 20 && back.len() == 300_000);
        assert!(back.iter().enumerate().all(|(at, &byte)| byte == (at as u64 * 7 + round) as u8));
    }
    let copied = pair.connection.stats().copied - copied;
    // A TCP reader copies what comes along with a header.
    assert!(copied < 300_000, "{copied} bytes of 1.8 MB were copied");
    pair.nothing_is_held().await;
}

/// As much as one message may carry, in few segments and in many.
pub async fn the_largest_message_goes_through(backend: &dyn Backend) {
    let pair = Pair::of(backend).await;
    for (count, len) in
        [(limits::BULK / MAX_BUF, MAX_BUF), (limits::SEGMENTS, limits::BULK / limits::SEGMENTS)]
    {
        let mut call = Call { method: ECHO, deadline: LONG, ..Call::default() };
        for index in 0..count {
            call.data.push(Segment { data: pair.filled(len, index as u64), align: 0 });
            call.into.push(pair.buf(len));
        }
        let data = call.data.clone();
        let reply = pair.call(call).await.expect("an answer");
        assert_eq!(reply.status, Status::Ok, "{}", String::from_utf8_lossy(&reply.body));
        assert!(reply.data.iter().zip(&data).all(|(got, sent)| got[..] == sent.data[..]), "{count} segments");
    }
    pair.nothing_is_held().await;
}

/// Whole pages can go to disk from where data arrived: they hold nothing of other owners.
pub async fn what_surrounds_data_in_its_pages_is_zero(backend: &dyn Backend) {
    struct Pages;
    impl Service for Pages {
        fn class(&self, _: u16, _: &[u8]) -> PoolClass {
            PoolClass::Client
        }
        fn call(self: Arc<Self>, mut request: Incoming) -> BoxFuture<'static, ()> {
            Box::pin(async move {
                let data = request.take_data().remove(0).freeze();
                let pages = data.pages().expect("it lies in the pool");
                request.responder().send(Status::Ok, Bytes::new(), vec![pages]);
            })
        }
    }
    let server = backend.transport(identity(SERVER), pool(MAX_BUF), 8);
    let client = backend.transport(identity(CLIENT), pool(4 * MAX_BUF), 8);
    // Traces of an earlier owner everywhere.
    let mut before = server.pool().try_alloc(MAX_BUF, PoolClass::Client).expect("it is empty");
    before.whole_mut().fill(0xdd);
    drop(before);
    let listener = server.listen(&backend.address(), Arc::new(Pages)).await.expect("a free address");
    let connection = client.connect(&listener.address(), LONG).await.expect("a connection");
    for (align, len) in [(0, 4096), (1, 1), (4095, 1), (4095, 2), (100, 9000), (7, 200_000)] {
        let data = segments([(Buf::from_vec(vec![0xaa; len]), align as u16)]);
        let into = vec![client.pool().try_alloc(align + len + 4096, PoolClass::Client).expect("room")];
        let reply =
            connection.call(Call { data, into, deadline: LONG, ..Call::default() }).await.expect("an answer");
        let pages = &reply.data[0];
        assert_eq!(pages.len(), (align + len).next_multiple_of(4096));
        assert!(pages[..align].iter().all(|&byte| byte == 0), "{len} bytes at {align}");
        assert!(pages[align..align + len].iter().all(|&byte| byte == 0xaa), "{len} bytes at {align}");
        assert!(pages[align + len..].iter().all(|&byte| byte == 0), "{len} bytes at {align}");
    }
}
