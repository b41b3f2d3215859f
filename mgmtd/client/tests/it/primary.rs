//! Finding the primary.

use std::time::Duration;

use catena_mgmtd_client::CallOptions;
use catena_proto::pb::CreateTableRequest;
use catena_proto::status::Status;
use catena_rt::time::Instant;

use crate::fake::{Fake, Mood, client};

#[tokio::test(start_paused = true)]
async fn a_stand_by_is_passed_over_and_the_primary_remembered() {
    let (standby, primary) = (Fake::new(), Fake::new());
    standby.set_mood(Mood::Refuse(Status::NoPrimary));
    let client = client(&[&standby, &primary]);
    client.list_clients().await.unwrap();
    client.clone().list_clients().await.unwrap();
    assert_eq!((standby.calls(), primary.calls()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_mgmtd_that_does_not_answer_is_left_for_the_next() {
    let (stopped, primary) = (Fake::new(), Fake::new());
    stopped.set_mood(Mood::Silent);
    let client = client(&[&stopped, &primary]);
    let begin = Instant::now();
    client.list_clients().await.unwrap();
    assert_eq!(begin.elapsed(), CallOptions::default().attempt);
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_an_election_ends_with_the_deadline_and_names_the_peer() {
    let fake = Fake::new();
    fake.set_mood(Mood::Refuse(Status::NoPrimary));
    let begin = Instant::now();
    let failure = client(&[&fake]).list_clients().await.unwrap_err();
    assert_eq!(failure.status, Status::NoPrimary);
    assert!(failure.message.contains("m0"), "{failure}");
    assert!(begin.elapsed() <= CallOptions::default().deadline);
}

#[tokio::test(start_paused = true)]
async fn an_election_that_ends_in_time_is_ridden_over() {
    let fake = Fake::new();
    fake.script([Mood::Refuse(Status::NoPrimary), Mood::Refuse(Status::Disconnected)]);
    client(&[&fake]).list_clients().await.unwrap();
    assert_eq!(fake.calls(), 3);
}

/// What a command line wants: soon an answer that nobody is there, but not while somebody says that it is being sorted out.
#[tokio::test(start_paused = true)]
async fn an_election_is_waited_for_longer_than_a_cluster_that_is_down() {
    let second = Duration::from_secs(1);
    let options = CallOptions { deadline: 5 * second, election: 25 * second, attempt: 2 * second };
    let (dead, standby) = (Fake::new(), Fake::new());
    for mood in [Mood::Refuse(Status::Disconnected), Mood::Silent] {
        dead.set_mood(mood);
        let begin = Instant::now();
        client(&[&dead]).with_options(options).list_clients().await.unwrap_err();
        assert!(begin.elapsed() <= options.deadline, "nobody is there: {:?}", begin.elapsed());
    }

    standby.set_mood(Mood::Redirect("m0"));
    let patient = client(&[&dead, &standby]).with_options(options);
    let begin = Instant::now();
    patient.list_clients().await.unwrap_err();
    let waited = begin.elapsed();
    assert!(waited > 22 * second && waited <= options.election, "{waited:?}");

    let waiting = tokio::spawn(async move { patient.list_clients().await });
    tokio::time::sleep(20 * second).await;
    standby.set_mood(Mood::Answer);
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_request_itself_is_not_repeated() {
    let (first, second) = (Fake::new(), Fake::new());
    first.set_mood(Mood::Refuse(Status::Invalid));
    let failure = client(&[&first, &second]).list_clients().await.unwrap_err();
    assert_eq!(failure.status, Status::Invalid);
    assert_eq!((first.calls(), second.calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_table_is_not_asked_for_twice_unless_the_request_can_be_told_again() {
    let fake = Fake::new();
    fake.script([Mood::Refuse(Status::Disconnected)]);
    let failure = client(&[&fake]).create_table(CreateTableRequest::default()).await.unwrap_err();
    assert_eq!((failure.status, fake.calls()), (Status::Disconnected, 1));

    fake.script([Mood::Refuse(Status::Disconnected)]);
    let named = CreateTableRequest { request: vec![1; 16].into(), ..Default::default() };
    client(&[&fake]).create_table(named).await.unwrap();
    assert_eq!(fake.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_may_last_longer_than_other_calls() {
    let fake = Fake::new();
    let wait = Duration::from_secs(30);
    let reply = client(&[&fake]).get_routing(0, wait).await.unwrap();
    assert!(reply.routing.is_none());
    assert_eq!(fake.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stand_by_is_believed_about_who_is_primary() {
    let (first, second, primary) = (Fake::new(), Fake::new(), Fake::new());
    first.set_mood(Mood::Redirect("m2"));
    second.set_mood(Mood::Silent);
    client(&[&first, &second, &primary]).list_clients().await.unwrap();
    assert_eq!((first.calls(), second.calls(), primary.calls()), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn stand_bys_that_point_to_a_dead_primary_are_asked_in_turn() {
    let (dead, first, second) = (Fake::new(), Fake::new(), Fake::new());
    dead.set_mood(Mood::Silent);
    first.set_mood(Mood::Redirect("m0"));
    second.set_mood(Mood::Redirect("m0"));
    let client = client(&[&dead, &first, &second]);
    let waiting = tokio::spawn(async move { client.list_clients().await });
    tokio::time::sleep(Duration::from_secs(12)).await;
    second.set_mood(Mood::Answer);
    let begin = Instant::now();
    waiting.await.unwrap().unwrap();
    assert!(begin.elapsed() <= CallOptions::default().attempt + Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn a_short_deadline_is_not_spent_on_one_who_does_not_answer_again_and_again() {
    let (stopped, primary) = (Fake::new(), Fake::new());
    stopped.set_mood(Mood::Silent);
    let attempt = Duration::from_millis(100);
    let client = client(&[&stopped, &primary]).with_options(CallOptions::within(attempt, attempt));
    client.list_clients().await.unwrap_err();
    client.list_clients().await.unwrap();
    assert_eq!((stopped.calls(), primary.calls()), (1, 1));
}
