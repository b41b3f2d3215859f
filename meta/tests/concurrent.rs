//! Calls at the same time: histories must be those of some order, and what need not conflict must not.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::fault::{Fault, Faulty, Hook, Point};
use catena_kv_testing::{database, rounds};
use catena_proto::pb;
use catena_proto::pb::FileType;
use catena_proto::status::Status;
use catena_rt::time::{Instant, sleep};
use common::model::{Answer, Generator, Model, Op, Who, perform};
use common::{World, at};
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Every read and commit takes a random time, so that transactions overlap in every way.
fn delays(seed: u64) -> Hook {
    let mut draws = StdRng::seed_from_u64(seed);
    Box::new(move |point| match point {
        Point::Begin => None,
        _ => Some(Fault::Delay(Duration::from_micros(draws.random_range(0..50)))),
    })
}

async fn slow_world(seed: u64) -> World {
    let db = Faulty::new(database(), delays(seed));
    World::on(Arc::new(db)).await
}

#[derive(Debug)]
struct Event {
    who: Who,
    op: Op,
    answer: Answer,
    began: Instant,
    ended: Instant,
}

/// Link counts of directories in replies of mutations are informal: they are read without conflicts.
fn formal(op: &Op, answer: Answer) -> Answer {
    match (op, answer) {
        (Op::Stat(..), answer) => answer,
        (_, Answer::Node { kind: FileType::Directory, mode, uid, gid, .. }) => {
            Answer::Node { kind: FileType::Directory, mode, uid, gid, nlink: 0 }
        }
        (_, answer) => answer,
    }
}

/// Looks for an order that explains all answers (Wing and Gong, with a memory of what was tried).
fn is_linearizable(events: &[Event], model: &Model, done: u32, tried: &mut BTreeSet<(u32, Model)>) -> bool {
    if done.count_ones() as usize == events.len() {
        return true;
    }
    if !tried.insert((done, model.clone())) {
        return false;
    }
    let open = || events.iter().enumerate().filter(|(nth, _)| done & 1 << nth == 0);
    let first_end = open().map(|(_, event)| event.ended).min().expect("an open event");
    open().filter(|(_, event)| event.began <= first_end).any(|(nth, event)| {
        let mut next = model.clone();
        let answer = formal(&event.op, next.apply(event.who, &event.op));
        answer == event.answer && is_linearizable(events, &next, done | 1 << nth, tried)
    })
}

#[tokio::test(start_paused = true)]
async fn histories_are_linearizable() {
    for seed in 0..rounds(150) {
        let world = slow_world(seed).await;
        let start = Instant::now();
        let clients = (0..4).map(|client| {
            let world = world.another(seed * 10 + client + 2);
            async move {
                let mut random = Generator::new(seed * 4 + client, 2);
                let mut events = Vec::new();
                while events.len() < 6 {
                    let (who, op) = (random.who(), random.op());
                    // Link counts of what a removed tree held settle in the background.
                    if matches!(op, Op::Link(..) | Op::RemoveAll(_)) {
                        continue;
                    }
                    let pause = random.rng().random_range(0..200);
                    sleep(Duration::from_micros(pause)).await;
                    let began = Instant::now();
                    let answer = perform(&world, world.caller(who.0, who.1, &[]), &op).await;
                    let answer = formal(&op, answer);
                    events.push(Event { who, op, answer, began, ended: Instant::now() });
                }
                events
            }
        });
        let mut events: Vec<Event> = join_all(clients).await.into_iter().flatten().collect();
        events.sort_by_key(|event| event.began);
        if !is_linearizable(&events, &Model::default(), 0, &mut BTreeSet::new()) {
            for event in &events {
                let (began, ended) = (event.began - start, event.ended - start);
                println!("{began:>10.1?} {ended:>10.1?} {:?} {:?} = {:?}", event.who, event.op, event.answer);
            }
            panic!("seed {seed}: no order explains these answers");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn creations_in_one_directory_do_not_conflict() {
    let world = slow_world(1).await;
    perform(&world, world.root(), &Op::Mkdir("/d".into(), 0o755)).await;
    // The first creation reserves inode ids.
    perform(&world, world.root(), &Op::Create("/d/first".into(), 0o644, true)).await;
    let before = world.service.metrics().conflicts.get();
    let creations = (0..100).map(|nth| {
        let world = &world;
        async move {
            let path = format!("/d/{nth}");
            let op = match nth % 4 {
                0 => Op::Mkdir(path, 0o755),
                1 => Op::Symlink(path, "x".into()),
                _ => Op::Create(path, 0o644, true),
            };
            let answer = perform(world, world.root(), &op).await;
            assert!(matches!(answer, Answer::Node { .. }), "{answer:?}");
        }
    });
    join_all(creations).await;
    assert_eq!(world.service.metrics().conflicts.get(), before);
    assert_eq!(world.stat("/d").await.unwrap().nlink, 27);
    // Neither do removals.
    let removals = (0..100).map(|nth| {
        let world = &world;
        async move {
            let answer = perform(world, world.root(), &Op::RemoveAll(format!("/d/{nth}"))).await;
            assert_eq!(answer, Answer::Done);
        }
    });
    join_all(removals).await;
    assert_eq!(world.service.metrics().conflicts.get(), before);
    assert_eq!(world.stat("/d").await.unwrap().nlink, 2);
}

#[tokio::test(start_paused = true)]
async fn two_renames_never_make_a_loop() {
    for seed in 0..rounds(50) {
        let world = slow_world(seed).await;
        for path in ["/a", "/b", "/a/x", "/b/y"] {
            perform(&world, world.root(), &Op::Mkdir(path.into(), 0o755)).await;
        }
        let rename = |from: &str, to: &str| {
            let op = Op::Rename(from.into(), to.into(), pb::RenameMode::Replace);
            let world = &world;
            async move { perform(world, world.root(), &op).await }
        };
        let (one, two) = tokio::join!(rename("/a", "/b/y/a"), rename("/b", "/a/x/b"));
        let moved = [&one, &two].iter().filter(|answer| matches!(answer, Answer::Node { .. })).count();
        assert_eq!(moved, 1, "seed {seed}: {one:?} {two:?}");
        assert_eq!(common::model::tree(&world).await.len(), 5, "seed {seed}: nothing is cut off");
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_removed_or_gets_a_file_but_not_both() {
    for seed in 0..rounds(50) {
        let world = slow_world(seed).await;
        perform(&world, world.root(), &Op::Mkdir("/d".into(), 0o755)).await;
        let create = async { perform(&world, world.root(), &Op::Create("/d/f".into(), 0o644, true)).await };
        let remove = async {
            sleep(Duration::from_micros(seed * 7)).await;
            perform(&world, world.root(), &Op::Rmdir("/d".into())).await
        };
        match tokio::join!(create, remove) {
            (Answer::Node { .. }, Answer::Refused(Status::NotEmpty)) => {
                assert!(world.stat("/d/f").await.is_ok());
            }
            (Answer::Refused(Status::NotFound), Answer::Done) => assert_eq!(world.keys("DENT").await, 0),
            other => panic!("seed {seed}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_many_exclusive_creations_wins() {
    for seed in 0..rounds(20) {
        let world = slow_world(seed).await;
        let creations = (0..8).map(|client| {
            let world = world.another(100 + client);
            async move { perform(&world, world.root(), &Op::Create("/f".into(), 0o644, true)).await }
        });
        let answers = join_all(creations).await;
        let made = answers.iter().filter(|answer| matches!(answer, Answer::Node { .. })).count();
        assert_eq!(made, 1, "seed {seed}: {answers:?}");
        assert_eq!(world.statfs().await.files, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn writers_that_close_while_the_file_is_removed_leave_nothing() {
    for seed in 0..rounds(40) {
        let world = slow_world(seed).await;
        let mut closes = Vec::new();
        for writer in 0..3_u8 {
            let inode = world.create("/f", [writer; 16]).await;
            world.write(&inode, u32::from(writer), 100);
            closes.push((inode.id, [writer; 16]));
        }
        let remove = async {
            sleep(Duration::from_micros(seed * 11)).await;
            world.remove("/f", false).await.expect("remove");
        };
        let closes = closes.into_iter().map(|(inode, session)| {
            let world = &world;
            async move {
                let closed = world.sync(inode, session, |request| {
                    request.close = true;
                    request.wrote = true;
                    request.high_water = 100;
                });
                closed.await.expect("close");
            }
        });
        tokio::join!(remove, join_all(closes));
        world.service.reclaim().await.expect("reclaim");
        assert_eq!(world.chunks.count(), 0, "seed {seed}");
        let statfs = world.statfs().await;
        assert_eq!((statfs.files, statfs.sessions, statfs.reclaim_files), (0, 0, 0), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_request_sent_to_two_services_at_once_is_carried_out_once() {
    for seed in 0..rounds(30) {
        let world = slow_world(seed).await;
        perform(&world, world.root(), &Op::Mkdir("/d".into(), 0o755)).await;
        perform(&world, world.root(), &Op::Create("/d/f".into(), 0o644, true)).await;
        let other = world.another(77);
        let caller = world.root();
        let rename = |world: &World| {
            let (service, caller) = (world.service.clone(), caller.clone());
            let mode = pb::RenameMode::Noreplace as i32;
            let request = pb::RenameRequest { caller, from: at("/d/f"), to: at("/d/g"), mode };
            async move { service.rename(request).await }
        };
        let (one, two) = tokio::join!(rename(&world), rename(&other));
        assert_eq!(one.expect("the first"), two.expect("the second"), "seed {seed}");
    }
}
