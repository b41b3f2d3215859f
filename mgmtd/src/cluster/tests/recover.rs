//! A chain whose last target is lost with its disk, and an operator who accepts what that costs (R29).

use catena_proto::ids::*;
use catena_proto::pb::RecoverChainRequest;
use catena_proto::routing::LocalState;
use catena_proto::rpc::Failure;

use super::world::{World, disk};

/// `a` is taken out, then `b`, then `c` with its disk: the chain is down, though `a` and `b` are there.
fn down() -> (World, [u32; 3]) {
    let mut world = World::with_chains(3, 3, 1);
    let order: Vec<u32> = {
        let chain = world.cluster.info.chains.values().next().unwrap();
        chain.targets.iter().map(|id| world.cluster.info.targets[id].node.0).collect()
    };
    let [a, b, c] = order.try_into().unwrap();
    for node in [a, b, c] {
        world.kill(node);
        world.pass(4);
    }
    world.services.get_mut(&c).unwrap().node.disks = vec![disk(77, "/disk")];
    for node in [a, b, c] {
        world.start(node).unwrap();
    }
    world.pass(2);
    let chain = world.chain();
    assert!(chain.starts_with(&format!("{c} lastsrv")) && !chain.contains("serving"), "{chain}");
    (world, [a, b, c])
}

fn target(world: &World, node: u32) -> u64 {
    world.cluster.info.targets.values().find(|target| target.node == NodeId(node)).unwrap().id.0
}

fn recover(world: &mut World, node: u32, accept_data_loss: bool) -> Result<(), Failure> {
    let chain = world.cluster.info.chains.keys().next().unwrap().0;
    let request =
        RecoverChainRequest { chain, target: target(world, node), accept_data_loss, ..Default::default() };
    let (changes, _) = world.cluster.recover_chain(&request)?;
    world.write(changes);
    Ok(())
}

#[test]
fn the_named_target_serves_and_the_others_follow_it() {
    let (mut world, [a, b, c]) = down();
    recover(&mut world, b, true).unwrap();
    assert_eq!(world.chain(), format!("{b} lastsrv, {a} waiting, {c} offline"));
    world.beat(b);
    assert!(world.chain().starts_with(&format!("{b} serving")), "{}", world.chain());
    world.pass(6);
    assert_eq!(world.chain(), format!("{b} serving, {a} serving, {c} offline"));
    let version = world.version();
    recover(&mut world, b, true).unwrap();
    assert_eq!(world.version(), version, "said twice");
}

#[test]
fn what_its_service_said_before_it_knew_does_not_count() {
    let (mut world, [_, b, _]) = down();
    let before = world.report(b);
    recover(&mut world, b, true).unwrap();
    world.send(&before).unwrap();
    assert!(world.chain().starts_with(&format!("{b} lastsrv")), "{}", world.chain());
    // It looks at its contents as those of a lastsrv, and finds a mixture.
    let mut mixture = world.report(b);
    mixture.targets[0].local = LocalState::Offline.into();
    world.send(&mixture).unwrap();
    assert!(world.chain().starts_with(&format!("{b} lastsrv")), "{}", world.chain());
}

#[test]
fn nothing_is_given_up_without_a_word_or_a_need() {
    let (mut world, [a, b, c]) = down();
    let refused = |outcome: Result<(), Failure>, why: &str| {
        let failure = outcome.unwrap_err();
        assert!(failure.message.contains(why), "{failure}");
    };
    refused(recover(&mut world, b, false), "say that you accept that");
    let version = world.version();
    recover(&mut world, c, true).unwrap();
    assert_eq!(world.version(), version, "it is the only lastsrv already");
    recover(&mut world, a, true).unwrap();
    world.beat(a);
    refused(recover(&mut world, b, true), "serves it");
}

#[test]
fn a_target_on_an_empty_disk_is_no_way_back() {
    let (mut world, [a, ..]) = down();
    // `a` loses its disk too, and gets an empty one in its place.
    world.kill(a);
    world.pass(4);
    world.services.get_mut(&a).unwrap().node.disks = vec![disk(78, "/disk")];
    world.start(a).unwrap();
    world.pass(2);
    let failure = recover(&mut world, a, true).unwrap_err();
    assert!(failure.message.contains("its disk was replaced by an empty one"), "{failure}");
}

#[test]
fn a_target_whose_node_is_away_serves_when_that_returns() {
    let (mut world, [a, b, c]) = down();
    world.kill(a);
    world.pass(4);
    recover(&mut world, a, true).unwrap();
    world.pass(2);
    assert_eq!(world.chain(), format!("{a} lastsrv, {b} waiting, {c} offline"));
    world.start(a).unwrap();
    world.pass(8);
    assert_eq!(world.chain(), format!("{a} serving, {b} serving, {c} offline"));
}
