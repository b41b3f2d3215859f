//! The routing watch.

use std::time::Duration;

use catena_mgmtd_client::{RoutingWatch, WatchOptions};
use catena_proto::ids::RoutingVersion;
use catena_proto::status::Status;
use catena_rt::time::Instant;

use crate::fake::{Fake, Mood, client, routing, settle};

#[tokio::test(start_paused = true)]
async fn news_arrive_as_they_are_published_and_only_then() {
    let fake = Fake::new();
    let watch = RoutingWatch::spawn(client(&[&fake]), WatchOptions::default());
    assert_eq!(watch.version(), RoutingVersion(0));
    fake.publish(1);
    assert_eq!(watch.changed(RoutingVersion(0)).await.version, RoutingVersion(1));
    fake.publish(4);
    assert_eq!(watch.at_least(RoutingVersion(3)).await.version, RoutingVersion(4));
    let polls = fake.calls();
    let none = watch.newer_than(RoutingVersion(4), Instant::now() + Duration::from_secs(25)).await;
    assert!(none.is_none());
    assert!(fake.calls() - polls <= 2, "an idle watch polls only when its wait is over");
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_mgmtd_leaves_the_last_snapshot_in_force() {
    let fake = Fake::new();
    let watch = RoutingWatch::spawn(client(&[&fake]), WatchOptions::default());
    fake.publish(2);
    watch.changed(RoutingVersion(0)).await;
    fake.set_mood(Mood::Refuse(Status::Disconnected));
    fake.publish(3); // ends the poll under way; it is the last that is answered
    watch.changed(RoutingVersion(2)).await;
    fake.publish(4);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(watch.current().version, RoutingVersion(3));
    fake.set_mood(Mood::Answer);
    assert_eq!(watch.changed(RoutingVersion(3)).await.version, RoutingVersion(4));
}

#[tokio::test(start_paused = true)]
async fn the_poll_ends_with_the_last_watch() {
    let fake = Fake::new();
    let watch = RoutingWatch::spawn(client(&[&fake]), WatchOptions::default());
    let other = watch.clone();
    settle().await;
    drop(watch);
    fake.publish(1);
    other.changed(RoutingVersion(0)).await;
    drop(other);
    settle().await;
    let polls = fake.calls();
    fake.publish(2);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fake.calls(), polls);
}

#[tokio::test(start_paused = true)]
async fn versions_never_go_back() {
    let (setter, watch) = RoutingWatch::manual(routing(5));
    assert!(!setter.set(routing(4)) && !setter.set(routing(5)));
    assert!(setter.set(routing(6)));
    assert_eq!(watch.load().version, RoutingVersion(6));
}

#[tokio::test(start_paused = true)]
async fn routing_of_another_cluster_is_refused() {
    let fake = Fake::new();
    let mut foreign = routing(3);
    foreign.cluster.0 += 1;
    fake.routing.send_replace(foreign);
    let watch = RoutingWatch::spawn(client(&[&fake]), WatchOptions::default());
    let seen = watch.newer_than(RoutingVersion(0), Instant::now() + Duration::from_secs(5)).await;
    assert!(seen.is_none());
}

#[tokio::test(start_paused = true)]
async fn figures_are_asked_for_when_wanted_and_kept_for_a_while() {
    let fake = Fake::new();
    fake.publish(3);
    let watch = RoutingWatch::spawn(client(&[&fake]), WatchOptions::default());
    watch.changed(RoutingVersion(0)).await;
    settle().await;
    let calls = fake.calls();
    for _ in 0..5 {
        assert_eq!(watch.figures(Duration::from_secs(1)).await.version, RoutingVersion(3));
    }
    assert_eq!(fake.calls(), calls + 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    watch.figures(Duration::from_secs(1)).await;
    assert_eq!(fake.calls(), calls + 2);
    let (_setter, manual) = RoutingWatch::manual(routing(5));
    assert_eq!(manual.figures(Duration::ZERO).await.version, RoutingVersion(5));
}
