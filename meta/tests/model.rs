//! Random calls against the reference tree: every answer, and the whole tree at the end, must be the same.

mod common;

use std::sync::Arc;

use catena_kv::Database;
use catena_kv::fault::{Chances, Faulty, random};
use catena_kv_testing::{database, rounds};
use common::World;
use common::model::{Answer, Generator, Model, Op, perform, tree};
use rand::Rng;

/// What must hold of the store whatever happened: counters, link counts, no remains.
async fn check_store(world: &World) {
    world.service.reclaim().await.expect("reclaim");
    let nodes = tree(world).await;
    let is_dir =
        |node: &Answer| matches!(node, Answer::Node { kind: catena_proto::pb::FileType::Directory, .. });
    let dirs = nodes.values().filter(|node| is_dir(node)).count() as u64;
    let names = nodes.len() - 1;
    let statfs = world.statfs().await;
    assert_eq!(statfs.directories, dirs, "directories are counted");
    assert_eq!(world.keys("DENT").await, names, "every entry is in the tree");
    assert_eq!(world.keys("TRSH").await + world.keys("RECL").await + world.keys("TRNC").await, 0);
    // Inodes without their companions (times and counts of directories).
    let inodes =
        world.dump().await.iter().filter(|(key, _)| key.starts_with(b"INOD") && key.len() == 12).count();
    assert_eq!(inodes as u64, statfs.files + statfs.directories, "no inode is left over");
}

async fn run(seed: u64, steps: usize, db: Arc<dyn Database>, calm: impl Fn()) {
    let world = World::on(db).await;
    let mut model = Model::default();
    let mut random = Generator::new(seed, 4);
    for step in 0..steps {
        let (who, op) = (random.who(), random.op());
        let caller = world.caller(who.0, who.1, &[]);
        let got = perform(&world, caller.clone(), &op).await;
        let expected = model.apply(who, &op);
        assert_eq!(got, expected, "seed {seed}, step {step}: {who:?} {op:?}");
        if matches!((&op, &got), (Op::RemoveAll(_), Answer::Done)) {
            // Other names of files in the removed tree lose their links when the tree is taken apart.
            world.service.reclaim().await.expect("reclaim");
        }
        // A client that did not hear the answer sends the request again.
        let mutates = !matches!(op, Op::Stat(..) | Op::List(_));
        if mutates && !matches!(got, Answer::Refused(_)) && random.rng().random_ratio(1, 3) {
            let repeated = perform(&world, caller, &op).await;
            assert_eq!(repeated, got, "seed {seed}, step {step}: {who:?} {op:?} again");
        }
    }
    calm();
    assert_eq!(tree(&world).await, model.tree(), "seed {seed}: the tree at the end");
    check_store(&world).await;
}

#[tokio::test(start_paused = true)]
async fn every_answer_is_the_reference_s() {
    for seed in 0..rounds(60) {
        run(seed, 400, database(), || ()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_half_of_the_time_changes_no_answer() {
    for seed in 0..rounds(40) {
        let chances =
            Chances { conflict: 100, unknown_applied: 150, unknown_lost: 100, too_old: 20, unavailable: 20 };
        let db = Arc::new(Faulty::new(database(), random(seed, chances)));
        run(seed, 150, db.clone(), || db.set_hook(Box::new(|_| None))).await;
    }
}
