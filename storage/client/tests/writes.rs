//! Mutations: one tag over all attempts, the head of the moment, and what each refusal means.

mod fake;

use std::time::Duration;

use catena_buf::Buf;
use catena_proto::frame::WriteKind;
use catena_proto::ids::*;
use catena_proto::routing::PublicState;
use catena_proto::status::Status;
use catena_rt::time::Instant;
use catena_storage_client::{Options, Written};
use fake::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

async fn write(cluster: &Cluster, index: u32, offset: u32, bytes: &[u8]) -> Result<Written, Status> {
    let data = Buf::from_vec(bytes.to_vec());
    let written = cluster.client.write(CHAIN, chunk(index), offset, data, CHUNK_SIZE, soon()).await;
    written.map_err(|error| error.status)
}

#[tokio::test(start_paused = true)]
async fn a_write_goes_to_the_head_and_says_what_it_became() {
    let cluster = Cluster::new().await;
    let written = write(&cluster, 0, 10, b"hello").await.unwrap();
    assert_eq!(written.length, 15);
    assert_eq!(written.version, VersionId { version: ChunkVersion(1), assigned: ChainVersion(4) });
    let seen = cluster.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].node, seen[0].chain_version, seen[0].tag.client), (NodeId(1), 4, ClientId(77)));
    assert_eq!(cluster.world.lock().chunks[&chunk(0)].1[10..], *b"hello");
    let metrics = cluster.client.metrics();
    assert_eq!((metrics.writes, metrics.write_bytes, metrics.retries, metrics.connects), (1, 5, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn every_passing_refusal_is_tried_again_under_the_same_tag() {
    use Status::*;
    for status in [NotYet, Busy, Gap, Damaged, Disconnected, Conflict, TimedOut] {
        let cluster = Cluster::new().await;
        cluster.trick(1, &[Trick::Answer(status), Trick::Answer(status)]);
        write(&cluster, 0, 0, b"x").await.unwrap();
        let seen = cluster.seen();
        assert_eq!(seen.len(), 3, "{status:?}");
        assert!(seen.iter().all(|request| request.tag == seen[0].tag), "{status:?}");
        assert_eq!(cluster.client.metrics().retries, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_final_refusal_is_final_and_frees_the_channel() {
    for status in [Status::NoSpace, Status::Invalid, Status::StaleSequence] {
        let cluster = Cluster::new().await;
        cluster.trick(1, &[Trick::Answer(status)]);
        assert_eq!(write(&cluster, 0, 0, b"x").await.unwrap_err(), status);
        assert_eq!(cluster.seen().len(), 1);
        write(&cluster, 0, 0, b"x").await.unwrap();
        let tags: Vec<_> = cluster.seen().iter().map(|seen| (seen.tag.channel, seen.tag.sequence)).collect();
        assert_eq!(tags[0].0, tags[1].0, "the channel is used again");
        assert!(tags[0].1 < tags[1].1);
    }
}

#[tokio::test(start_paused = true)]
async fn old_routing_is_refreshed_before_the_next_attempt() {
    let mut cluster = Cluster::new().await;
    cluster.trick(1, &[Trick::Answer(Status::StaleRouting); 3]);
    let client = cluster.client.clone();
    let data = Buf::from_vec(b"abc".to_vec());
    let task = tokio::spawn(async move { client.write(CHAIN, chunk(0), 0, data, CHUNK_SIZE, soon()).await });
    tokio::time::sleep(Duration::from_millis(2)).await;
    cluster.publish(|info| info.chains.get_mut(&CHAIN).unwrap().targets.rotate_left(1));
    task.await.unwrap().unwrap();
    let seen = cluster.seen();
    let last = seen.last().unwrap();
    assert_eq!((last.node, last.chain_version), (NodeId(2), 5));
    assert_eq!(last.tag, seen[0].tag);
    assert!(cluster.client.metrics().refreshes >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_hangs_is_left_as_soon_as_there_is_a_new_one_and_the_write_is_applied_once() {
    let mut cluster = Cluster::new().await;
    cluster.trick(1, &[Trick::DoAndHang]);
    let client = cluster.client.clone();
    let data = Buf::from_vec(b"abc".to_vec());
    let start = Instant::now();
    let task = tokio::spawn(async move { client.write(CHAIN, chunk(0), 0, data, CHUNK_SIZE, soon()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.publish(|info| info.chains.get_mut(&CHAIN).unwrap().targets.rotate_left(1));
    assert_eq!(task.await.unwrap().unwrap().length, 3);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(cluster.world.lock().applied, 1);
    assert_eq!(cluster.seen().iter().map(|seen| seen.node.0).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_got_lost_does_not_apply_a_write_twice() {
    let cluster = Cluster::new().await;
    cluster.trick(1, &[Trick::DoAndHang, Trick::DoAndHang]);
    write(&cluster, 0, 0, b"x").await.unwrap();
    assert_eq!(cluster.world.lock().applied, 1);
    assert_eq!(cluster.seen().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_chain_without_a_serving_replica_is_waited_for() {
    let mut cluster = Cluster::new().await;
    cluster.publish(|info| {
        info.targets.values_mut().for_each(|target| target.state = PublicState::Lastsrv);
    });
    let client = cluster.client.clone();
    let data = Buf::from_vec(b"abc".to_vec());
    let task = tokio::spawn(async move { client.write(CHAIN, chunk(0), 0, data, CHUNK_SIZE, soon()).await });
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(cluster.seen().is_empty());
    cluster.publish(|info| {
        info.targets.get_mut(&TargetId(3)).unwrap().state = PublicState::Serving;
    });
    task.await.unwrap().unwrap();
    assert_eq!(cluster.seen()[0].node, NodeId(3));
}

#[tokio::test(start_paused = true)]
async fn a_head_whose_disk_failed_is_replaced_before_the_next_attempt() {
    let mut cluster = Cluster::new().await;
    cluster.trick(1, &[Trick::Answer(Status::DiskFailed); 100]);
    let client = cluster.client.clone();
    let data = Buf::from_vec(b"abc".to_vec());
    let task = tokio::spawn(async move { client.write(CHAIN, chunk(0), 0, data, CHUNK_SIZE, soon()).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.publish(|info| info.targets.get_mut(&TargetId(1)).unwrap().state = PublicState::Offline);
    task.await.unwrap().unwrap();
    assert_eq!(cluster.seen().last().unwrap().node, NodeId(2));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_whatever_happens_and_the_last_answer_is_told() {
    let cluster = Cluster::new().await;
    cluster.trick(1, &[Trick::Answer(Status::NotYet); 1000]);
    let start = Instant::now();
    let deadline = start + Duration::from_secs(3);
    let data = Buf::from_vec(b"abc".to_vec());
    let error = cluster.client.write(CHAIN, chunk(0), 0, data, CHUNK_SIZE, deadline).await.unwrap_err();
    assert_eq!(error.status, Status::TimedOut);
    assert!(error.to_string().contains("has not adopted"), "{error}");
    assert_eq!((error.target, error.node), (Some(TargetId(1)), Some(NodeId(1))));
    assert!(start.elapsed() <= Duration::from_millis(3010));
    assert!(cluster.seen().len() < 30, "pauses grow");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_write_lets_its_channel_rest() {
    let cluster = Cluster::new().await;
    cluster.trick(1, &[Trick::DoAndHang]);
    let lost = tokio::time::timeout(Duration::from_millis(50), write(&cluster, 0, 0, b"lost")).await;
    assert!(lost.is_err());
    write(&cluster, 0, 0, b"kept").await.unwrap();
    let seen = cluster.seen();
    assert_ne!(seen[0].tag.channel, seen[1].tag.channel);
}

#[tokio::test(start_paused = true)]
async fn many_writes_at_once_never_share_a_channel() {
    let cluster = Cluster::with(Options { channels: 8, seed: 1, ..Options::default() }).await;
    let writes = (0..100).map(|index| write(&cluster, index, 0, b"data"));
    let outcomes = futures_util::future::join_all(writes).await;
    assert!(outcomes.iter().all(Result::is_ok));
    let world = cluster.world.lock();
    assert_eq!((world.crowded, world.applied), (1, 100));
    let channels: std::collections::BTreeSet<_> = world.seen.iter().map(|seen| seen.tag.channel).collect();
    assert_eq!(channels.len(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_is_written_to_when_it_is_back() {
    let mut cluster = Cluster::new().await;
    write(&cluster, 0, 0, b"before").await.unwrap();
    cluster.stop(NodeId(1));
    let client = cluster.client.clone();
    let data = Buf::from_vec(b"after!".to_vec());
    let task = tokio::spawn(async move { client.write(CHAIN, chunk(0), 0, data, CHUNK_SIZE, soon()).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.start(NodeId(1)).await;
    task.await.unwrap().unwrap();
    assert_eq!(cluster.world.lock().chunks[&chunk(0)].1, b"after!");
}

#[tokio::test(start_paused = true)]
async fn lengths_are_cut_raised_and_chunks_removed() {
    let cluster = Cluster::new().await;
    write(&cluster, 3, 0, b"0123456789").await.unwrap();
    let mutate = |kind, length| cluster.client.mutate(CHAIN, chunk(3), kind, length, CHUNK_SIZE, soon());
    assert_eq!(mutate(WriteKind::Truncate, 4).await.unwrap().length, 4);
    assert_eq!(mutate(WriteKind::Extend, 2).await.unwrap().length, 4);
    assert_eq!(mutate(WriteKind::Extend, 8).await.unwrap().length, 8);
    assert_eq!(mutate(WriteKind::Remove, 0).await.unwrap().length, 0);
    assert!(cluster.world.lock().chunks.is_empty());
    assert_eq!(mutate(WriteKind::Write, 0).await.unwrap_err().status, Status::Invalid);
    assert_eq!(mutate(WriteKind::Extend, CHUNK_SIZE + 1).await.unwrap_err().status, Status::Invalid);
}

#[tokio::test(start_paused = true)]
async fn ranges_outside_a_chunk_are_refused_without_asking_anyone() {
    let cluster = Cluster::new().await;
    assert_eq!(write(&cluster, 0, 0, b"").await.unwrap_err(), Status::Invalid);
    assert_eq!(write(&cluster, 0, CHUNK_SIZE - 1, b"xy").await.unwrap_err(), Status::Invalid);
    assert_eq!(write(&cluster, 0, u32::MAX, b"xy").await.unwrap_err(), Status::Invalid);
    assert!(cluster.seen().is_empty());
}
