//! Reads: batches by node, replicas that fail or lie, and questions about chunks.

mod fake;

use std::collections::BTreeSet;
use std::time::Duration;

use catena_buf::PoolClass;
use catena_proto::ids::*;
use catena_proto::routing::PublicState;
use catena_proto::status::Status;
use catena_rt::time::Instant;
use catena_storage_client::{Options, ReadOp, ReadOut, Replica};
use fake::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn op(index: u32, offset: u32, length: u32) -> ReadOp {
    ReadOp { chain: CHAIN, chunk: chunk(index), offset, length, into: None }
}

async fn read(cluster: &Cluster, items: Vec<ReadOp>) -> Vec<Result<ReadOut, Status>> {
    let outcomes = cluster.client.read(items, soon()).await;
    outcomes.into_iter().map(|outcome| outcome.map_err(|error| error.status)).collect()
}

async fn read_one(cluster: &Cluster, item: ReadOp) -> Result<Vec<u8>, Status> {
    read(cluster, vec![item]).await.pop().unwrap().map(|out| out.data.to_vec())
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_one_message_a_node_and_answers_in_order() {
    let cluster = Cluster::new().await;
    let bytes = pattern(300_000, 1);
    cluster.fill(0, &bytes);
    let items: Vec<_> = (0..64).map(|n| op(0, n * 4001, 4096)).collect();
    for (n, out) in read(&cluster, items).await.into_iter().enumerate() {
        let out = out.unwrap();
        assert_eq!(out.data[..], bytes[n * 4001..n * 4001 + 4096]);
        assert_eq!((out.version, out.chunk_length), (ChunkVersion(1), 300_000));
    }
    let seen = cluster.seen();
    assert_eq!(seen.len(), 3, "one message a node");
    assert!(seen.iter().all(|message| (20..=23).contains(&message.items)), "evenly: {seen:?}");
    assert_eq!(cluster.client.metrics().read_messages, 3);
}

#[tokio::test(start_paused = true)]
async fn long_batches_are_split_by_items_and_by_bytes() {
    let cluster = Cluster::new().await;
    cluster.fill(0, &pattern(1 << 20, 2));
    let many = (0..5000).map(|n| op(0, n * 8, 8)).collect();
    assert!(read(&cluster, many).await.iter().all(Result::is_ok));
    let large = (0..32).map(|_| op(0, 0, 1 << 20)).collect();
    assert!(read(&cluster, large).await.iter().all(Result::is_ok));
    let seen = cluster.seen();
    assert!(seen.iter().all(|message| message.items <= 1024 && message.bytes <= 4 << 20));
    assert_eq!(seen.iter().map(|message| message.items).sum::<usize>(), 5032);
    assert!(seen.len() <= 6 + 11, "{}", seen.len());
}

#[tokio::test(start_paused = true)]
async fn short_chunks_end_where_they_end_and_missing_ones_are_not_found() {
    let cluster = Cluster::new().await;
    cluster.fill(0, b"0123456789");
    let items = vec![op(0, 8, 100), op(0, 10, 5), op(7, 0, 5), op(0, 0, 10)];
    let outcomes = read(&cluster, items).await;
    assert_eq!(&outcomes[0].as_ref().unwrap().data[..], b"89");
    assert!(outcomes[1].as_ref().unwrap().data.is_empty());
    assert_eq!(*outcomes[2].as_ref().unwrap_err(), Status::NotFound);
    assert_eq!(outcomes[3].as_ref().unwrap().data.len(), 10);
    assert_eq!(cluster.client.metrics().failures, 0, "a hole is no failure");
}

#[tokio::test(start_paused = true)]
async fn damaged_data_is_read_from_another_replica_and_counted() {
    let cluster = Cluster::new().await;
    let bytes = pattern(50_000, 3);
    cluster.fill(0, &bytes);
    // Two of three replicas lie.
    cluster.trick(1, &[Trick::Flip; 9]);
    cluster.trick(2, &[Trick::Items(Status::Corrupt); 9]);
    for _ in 0..4 {
        assert_eq!(read_one(&cluster, op(0, 100, 40_000)).await.unwrap(), bytes[100..40_100]);
    }
    assert!(cluster.client.metrics().corrupt >= 1);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_no_replica_has_intact_are_an_error_and_nothing_else_is() {
    let cluster = Cluster::new().await;
    cluster.fill(0, b"good");
    cluster.everywhere(&[Trick::Flip; 9]);
    let start = Instant::now();
    assert_eq!(read_one(&cluster, op(0, 0, 4)).await.unwrap_err(), Status::Corrupt);
    assert!(start.elapsed() < Duration::from_secs(1), "found out at once");
    let nodes: BTreeSet<_> = cluster.seen().iter().map(|seen| seen.node).collect();
    assert_eq!((nodes.len(), cluster.seen().len()), (3, 3), "each was asked once");
}

#[tokio::test(start_paused = true)]
async fn every_passing_refusal_sends_the_read_elsewhere() {
    use Status::*;
    for status in [NotYet, StaleRouting, NotServing, NoLease, Busy, ShuttingDown, Disconnected, TimedOut] {
        for trick in [Trick::Answer(status), Trick::Items(status)] {
            let cluster = Cluster::new().await;
            cluster.fill(0, b"data");
            cluster.trick(1, &[trick; 50]);
            cluster.trick(2, &[trick; 50]);
            assert_eq!(read_one(&cluster, op(0, 0, 4)).await.unwrap(), b"data", "{trick:?}");
            assert!(cluster.seen().len() <= 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_refuse_in_passing_the_read_waits_and_asks_again() {
    let cluster = Cluster::new().await;
    cluster.fill(0, b"data");
    cluster.everywhere(&[Trick::Answer(Status::NoLease); 4]);
    assert_eq!(read_one(&cluster, op(0, 0, 4)).await.unwrap(), b"data");
    assert!(cluster.client.metrics().refreshes >= 1);
    let deadline = Instant::now() + Duration::from_secs(2);
    cluster.everywhere(&[Trick::Answer(Status::NoLease); 1000]);
    let error = cluster.client.read(vec![op(0, 0, 4)], deadline).await.pop().unwrap().unwrap_err();
    assert_eq!(error.status, Status::TimedOut);
    assert!(error.to_string().contains("lease"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_hangs_costs_one_attempt_and_is_avoided_for_a_while() {
    let options = Options { read_attempt: Duration::from_millis(200), seed: 2, ..Options::default() };
    let cluster = Cluster::with(options).await;
    cluster.fill(0, b"data");
    cluster.trick(2, &[Trick::Hang; 100]);
    let start = Instant::now();
    for _ in 0..50 {
        assert_eq!(read_one(&cluster, op(0, 0, 4)).await.unwrap(), b"data");
    }
    assert!(start.elapsed() < Duration::from_millis(600), "{:?}", start.elapsed());
    let hung = cluster.seen().iter().filter(|seen| seen.node == NodeId(2)).count();
    assert!((1..=2).contains(&hung), "{hung}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_delays_a_read_no_longer_than_the_hedge() {
    let cluster = Cluster::new().await;
    cluster.fill(0, b"data");
    cluster.trick(2, &[Trick::Hang; 100]);
    let mut longest = Duration::ZERO;
    let start = Instant::now();
    for _ in 0..50 {
        let begun = Instant::now();
        assert_eq!(read_one(&cluster, op(0, 0, 4)).await.unwrap(), b"data");
        longest = longest.max(begun.elapsed());
    }
    let hedge = Options::default().read_hedge;
    assert!(longest >= hedge && longest < hedge * 2, "{longest:?}");
    assert!(start.elapsed() < hedge * 3, "the others are not sent there: {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn when_every_replica_is_slow_a_read_waits_for_its_answer() {
    let cluster = Cluster::new().await;
    cluster.fill(0, b"data");
    cluster.everywhere(&[Trick::Hang]);
    let start = Instant::now();
    assert_eq!(read_one(&cluster, op(0, 0, 4)).await.unwrap(), b"data");
    // Three were silent, and each is asked once more only when its attempt is over.
    assert!(start.elapsed() < Options::default().read_attempt * 2, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stays_silent_is_tried_ever_more_rarely_and_taken_back_when_it_answers() {
    let options = Options { read_attempt: Duration::from_millis(200), seed: 2, ..Options::default() };
    let cluster = Cluster::with(options).await;
    cluster.fill(0, b"data");
    cluster.trick(2, &[Trick::Hang; 4]);
    for _ in 0..600 {
        assert_eq!(read_one(&cluster, op(0, 0, 4)).await.unwrap(), b"data");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let asked = cluster.seen().iter().filter(|seen| seen.node == NodeId(2)).count();
    assert!(asked > 40, "taken back: {asked}");
    let metrics = cluster.client.metrics();
    assert_eq!(metrics.retries, 4);
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_makes_no_sense_is_not_believed() {
    let cluster = Cluster::new().await;
    cluster.fill(0, b"data");
    cluster.trick(1, &[Trick::Garble; 9]);
    cluster.trick(3, &[Trick::Garble; 9]);
    assert_eq!(read_one(&cluster, op(0, 0, 4)).await.unwrap(), b"data");
}

#[tokio::test(start_paused = true)]
async fn one_bad_item_does_not_delay_or_spoil_the_others() {
    let cluster = Cluster::new().await;
    cluster.fill(0, b"data");
    let items = vec![op(0, 0, 4), op(0, 0, 0), op(0, 0, (4 << 20) + 1), op(0, u32::MAX, 9), op(0, 1, 3)];
    let outcomes = read(&cluster, items).await;
    assert_eq!(&outcomes[0].as_ref().unwrap().data[..], b"data");
    for bad in &outcomes[1..4] {
        assert_eq!(*bad.as_ref().unwrap_err(), Status::Invalid);
    }
    assert_eq!(&outcomes[4].as_ref().unwrap().data[..], b"ata");
}

#[tokio::test(start_paused = true)]
async fn a_read_into_a_given_buffer_gives_it_back() {
    let cluster = Cluster::new().await;
    cluster.fill(0, b"data");
    let buf = cluster.client.pool().alloc(8192, PoolClass::Client).await.unwrap();
    let place = buf.region_offset();
    let item = ReadOp { into: Some(buf), ..op(0, 0, 8192) };
    let out = read(&cluster, vec![item]).await.pop().unwrap().unwrap();
    assert_eq!((&out.data[..], out.data.region_offset()), (&b"data"[..], place));
    let small = cluster.client.pool().alloc(10, PoolClass::Client).await.unwrap();
    let item = ReadOp { into: Some(small), ..op(0, 0, 8192) };
    assert_eq!(read(&cluster, vec![item]).await.pop().unwrap().unwrap_err(), Status::Invalid);
    drop(out);
    assert_eq!(cluster.client.pool().stats().classes[0].used, 0, "nothing is kept");
}

#[tokio::test(start_paused = true)]
async fn dropped_reads_leave_nothing_behind() {
    let cluster = Cluster::new().await;
    cluster.fill(0, b"data");
    cluster.everywhere(&[Trick::Hang]);
    let items = (0..30).map(|_| op(0, 0, 4)).collect();
    assert!(tokio::time::timeout(Duration::from_millis(10), read(&cluster, items)).await.is_err());
    let items = (0..30).map(|_| op(0, 0, 4)).collect();
    assert!(read(&cluster, items).await.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn reads_go_on_while_routing_moves() {
    let mut cluster = Cluster::new().await;
    cluster.fill(0, b"data");
    cluster.publish(|info| {
        info.targets.get_mut(&TargetId(1)).unwrap().state = PublicState::Syncing;
        info.targets.get_mut(&TargetId(3)).unwrap().state = PublicState::Offline;
    });
    for _ in 0..10 {
        assert_eq!(read_one(&cluster, op(0, 0, 4)).await.unwrap(), b"data");
    }
    assert!(cluster.seen().iter().all(|seen| seen.node == NodeId(2) && seen.chain_version == 5));
}

#[tokio::test(start_paused = true)]
async fn chunks_are_listed_in_pages_by_any_replica_or_a_named_one() {
    let cluster = Cluster::new().await;
    for index in [0, 1, 5, 9] {
        cluster.fill(index, &pattern(100 + index as usize, index));
    }
    let client = &cluster.client;
    let inode = InodeId(9);
    let last = client.last_chunk(CHAIN, inode, soon()).await.unwrap().unwrap();
    assert_eq!((last.index.get(), last.length.get()), (9, 109));
    assert!(client.last_chunk(CHAIN, InodeId(8), soon()).await.unwrap().is_none());

    cluster.trick(1, &[Trick::Answer(Status::NoLease); 9]);
    cluster.trick(2, &[Trick::Answer(Status::NoLease); 9]);
    let list =
        |from, replica| client.list_chunks(CHAIN, inode..=inode, chunk(from), 3, replica, true, soon());
    let page: Vec<u32> = list(0, Replica::Any).await.unwrap().iter().map(|entry| entry.index.get()).collect();
    assert_eq!(page, [0, 1, 5]);
    assert_eq!(list(6, Replica::Any).await.unwrap().len(), 1);
    list(0, Replica::Target(TargetId(3))).await.unwrap();
    let seen = cluster.seen();
    let asked = seen.last().unwrap();
    assert_eq!((asked.node, asked.chain_version), (NodeId(3), 0), "whatever its state");
}
