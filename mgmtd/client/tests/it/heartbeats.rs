//! Registration, heartbeats, the lease, and client sessions.

use std::sync::Arc;
use std::time::Duration;

use catena_mgmtd_client::{ClientSession, HeartbeatOptions, Heartbeats, Report};
use catena_proto::clock::Clock;
use catena_proto::ids::{ClientId, RoutingVersion, TargetId};
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep};
use parking_lot::Mutex;
use tokio::time::advance;

use crate::fake::{Fake, LEASE, Mood, TokioClock, client, settle};

async fn start(fake: &Arc<Fake>, clock: &Arc<TokioClock>) -> Result<Heartbeats, Failure> {
    let node = pb::Node { id: 3, incarnation: 11, ..Default::default() };
    Heartbeats::start(client(&[fake]), node, clock.clone(), Report::default, HeartbeatOptions::default())
        .await
}

#[tokio::test(start_paused = true)]
async fn heartbeats_come_every_quarter_and_keep_the_lease() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    fake.renewed.lock().push(9);
    let beats = start(&fake, &clock).await.unwrap();
    assert_eq!(beats.registered_at(), RoutingVersion(5));
    let target = beats.lease().target(TargetId(9));
    assert!(!target.valid(clock.monotonic()), "nothing is renewed before the first answer");
    settle().await;
    for _ in 0..20 {
        assert!(target.valid(clock.monotonic()) && beats.lease().valid(clock.monotonic()));
        assert!(!beats.lease().target(TargetId(8)).valid(clock.monotonic()));
        sleep(LEASE / 4).await;
        settle().await;
    }
    let sent: Vec<_> = fake.heartbeats.lock().iter().map(|(at, request)| (*at, request.sequence)).collect();
    assert!(sent.windows(2).all(|pair| pair[1].0 - pair[0].0 == LEASE / 4 && pair[1].1 == pair[0].1 + 1));
}

#[tokio::test(start_paused = true)]
async fn the_lease_ends_half_a_term_after_the_last_answered_heartbeat_was_sent() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    let beats = start(&fake, &clock).await.unwrap();
    settle().await;
    let sent = fake.heartbeats.lock()[0].0;
    fake.set_mood(Mood::Silent);
    sleep(LEASE / 2 - Duration::from_millis(1) - sent.elapsed()).await;
    assert!(beats.lease().valid(clock.monotonic()));
    advance(Duration::from_millis(1)).await;
    assert!(!beats.lease().valid(clock.monotonic()));
    fake.set_mood(Mood::Answer);
    sleep(LEASE / 2).await;
    assert!(beats.lease().valid(clock.monotonic()), "an answer after all brings it back");
}

#[tokio::test(start_paused = true)]
async fn a_failed_heartbeat_is_repeated_soon() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    let beats = start(&fake, &clock).await.unwrap();
    settle().await;
    fake.script([Mood::Refuse(Status::Internal), Mood::Refuse(Status::Internal)]);
    let before = fake.heartbeats.lock().len();
    sleep(LEASE / 4 + 2 * LEASE / 16).await;
    settle().await;
    assert_eq!(fake.heartbeats.lock().len(), before + 3);
    assert!(beats.lease().valid(clock.monotonic()));
}

/// A network with a second of backlog: each answer comes after the next heartbeat had to leave.
#[tokio::test(start_paused = true)]
async fn answers_that_come_late_keep_the_lease() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    let beats = start(&fake, &clock).await.unwrap();
    settle().await;
    fake.heartbeats.lock().clear();
    let late = LEASE / 4 - Duration::from_millis(10);
    fake.set_mood(Mood::Late(late));
    for _ in 0..160 {
        sleep(LEASE / 32).await;
        assert!(beats.lease().valid(clock.monotonic()));
    }
    let sent: Vec<_> = fake.heartbeats.lock().iter().map(|(at, _)| *at).collect();
    assert!(sent.windows(2).all(|pair| pair[1] - pair[0] == LEASE / 4), "none was repeated, none waited");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_renewed_nothing_leaves_the_lease_as_it_is() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    let beats = start(&fake, &clock).await.unwrap();
    settle().await;
    let sent = fake.heartbeats.lock()[0].0;
    *fake.renews_nothing.lock() = true;
    sleep(LEASE / 2 - sent.elapsed()).await;
    assert!(fake.heartbeats.lock().len() > 1 && !beats.lease().valid(clock.monotonic()));
}

/// mgmtd hears the service, nobody else does: it must lose its place.
#[tokio::test(start_paused = true)]
async fn a_service_that_others_cannot_reach_sends_no_heartbeats() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    let outage = Arc::new(Mutex::new(None));
    let seen = outage.clone();
    let report = move || Report { outage: seen.lock().clone(), ..Report::default() };
    let node = pb::Node { id: 3, incarnation: 11, ..Default::default() };
    let options = HeartbeatOptions::default();
    let beats = Heartbeats::start(client(&[&fake]), node, clock.clone(), report, options).await.unwrap();
    settle().await;
    *outage.lock() = Some("mlx5_0:1 is DOWN".to_owned());
    let before = fake.heartbeats.lock().len();
    sleep(LEASE).await;
    assert_eq!(fake.heartbeats.lock().len(), before);
    assert!(!beats.lease().valid(clock.monotonic()), "nor does it serve itself");
    *outage.lock() = None;
    sleep(LEASE / 8).await;
    settle().await;
    assert!(beats.lease().valid(clock.monotonic()), "it is looked for often while it lasts");
}

#[tokio::test(start_paused = true)]
async fn a_kick_sends_a_heartbeat_at_once() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    let beats = start(&fake, &clock).await.unwrap();
    settle().await;
    let now = Instant::now();
    beats.kick();
    settle().await;
    assert_eq!(fake.heartbeats.lock().last().unwrap().0, now);
    assert_eq!(fake.heartbeats.lock().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn registration_waits_for_the_lease_of_a_predecessor() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    fake.script([Mood::Refuse(Status::Exists), Mood::Refuse(Status::Busy), Mood::Refuse(Status::Exists)]);
    start(&fake, &clock).await.unwrap();
    assert_eq!(fake.registrations.lock().len(), 1);

    fake.set_mood(Mood::Refuse(Status::Exists));
    let begin = Instant::now();
    let failure = start(&fake, &clock).await.err().unwrap();
    assert_eq!(failure.status, Status::Exists);
    assert!(begin.elapsed() <= HeartbeatOptions::default().patience);
}

#[tokio::test(start_paused = true)]
async fn a_mgmtd_that_has_forgotten_the_service_is_told_again() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    let beats = start(&fake, &clock).await.unwrap();
    settle().await;
    fake.script([Mood::Refuse(Status::NotFound)]);
    beats.kick();
    settle().await;
    let registered = fake.registrations.lock().clone();
    assert_eq!(registered.len(), 2);
    assert_eq!(registered[0].incarnation, registered[1].incarnation);
    assert_eq!(fake.heartbeats.lock().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_superseded_incarnation_learns_that_it_is_over() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    let beats = start(&fake, &clock).await.unwrap();
    fake.set_mood(Mood::Refuse(Status::StaleHandle));
    beats.kick();
    assert_eq!(beats.failed().await.status, Status::StaleHandle);
    let before = fake.heartbeats.lock().len();
    sleep(LEASE * 4).await;
    assert_eq!(fake.heartbeats.lock().len(), before);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_announced_and_nothing_follows_it() {
    let (fake, clock) = (Fake::new(), TokioClock::shared());
    let beats = start(&fake, &clock).await.unwrap();
    settle().await;
    beats.stop(Duration::from_secs(1)).await;
    sleep(LEASE).await;
    let heartbeats = fake.heartbeats.lock();
    assert_eq!(heartbeats.len(), 2);
    assert!(heartbeats[1].1.stopping && heartbeats[1].1.sequence > heartbeats[0].1.sequence);
}

#[tokio::test(start_paused = true)]
async fn a_client_session_is_extended_until_it_is_closed() {
    let fake = Fake::new();
    let session = ClientSession::start(client(&[&fake]), ClientId(5), "test".into()).await.unwrap();
    assert_eq!(session.id(), ClientId(5));
    sleep(LEASE + LEASE / 8).await;
    session.close(Duration::from_secs(1)).await;
    sleep(LEASE).await;
    let calls = fake.sessions.lock();
    assert_eq!(calls.len(), 6);
    assert!(calls[5].close && calls[..5].iter().all(|call| !call.close && call.client == 5));
}
