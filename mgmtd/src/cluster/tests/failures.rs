//! Services that die, return, are cut off, or all lose power; disks that fail or are exchanged.

use catena_proto::ids::*;
use catena_proto::routing::{LocalState, PublicState};

use super::world::{TERM, World, disk};
use crate::changes::Event;
use crate::cluster::Registration;

/// Three nodes, one chain over all of them, in some order.
fn three() -> (World, [u32; 3]) {
    let world = World::with_chains(3, 3, 1);
    let chain = world.cluster.info.chains.values().next().unwrap();
    let order: Vec<u32> = chain.targets.iter().map(|id| world.cluster.info.targets[id].node.0).collect();
    (world, order.try_into().unwrap())
}

#[test]
fn a_quiet_cluster_changes_nothing() {
    let mut world = World::with_chains(5, 3, 6);
    let version = world.version();
    world.events.clear();
    world.pass(20);
    assert_eq!((world.version(), world.events.len()), (version, 0));
    assert_eq!(world.beat(1).len(), 6, "every target is renewed by name");
}

#[test]
fn the_death_of_each_member_in_turn_is_survived() {
    for place in 0..3 {
        let (mut world, order) = three();
        let dead = order[place];
        let left: Vec<u32> = order.iter().copied().filter(|&node| node != dead).collect();
        world.kill(dead);
        world.pass(3);
        assert!(world.is_up(dead), "not before its lease has run out");
        world.pass(1);
        assert_eq!(world.chain(), format!("{} serving, {} serving, {dead} offline", left[0], left[1]));
        assert!(!world.is_up(dead));
        world.start(dead).unwrap();
        world.pass(1);
        assert_eq!(world.chain(), format!("{} serving, {} serving, {dead} syncing", left[0], left[1]));
        world.pass(1);
        assert_eq!(world.chain(), format!("{} serving, {} serving, {dead} serving", left[0], left[1]));
    }
}

#[test]
fn a_fast_restart_goes_through_resync_although_nobody_missed_it() {
    let (mut world, [a, b, c]) = three();
    world.services.get_mut(&a).unwrap().syncs = false;
    assert_eq!(world.start(a), Ok(Registration::Done));
    assert_eq!(world.chain(), format!("{b} serving, {c} serving, {a} offline"));
    assert!(world.beat(a).is_empty() || world.chain().contains("syncing"));
    assert_eq!(world.chain(), format!("{b} serving, {c} serving, {a} syncing"));
    world.services.get_mut(&a).unwrap().syncs = true;
    world.pass(1);
    world.assert_full_strength();
}

#[test]
fn nothing_of_an_earlier_start_is_believed() {
    let (mut world, [a, ..]) = three();
    let stale = world.report(a);
    world.start(a).unwrap();
    let failure = world.send(&stale).unwrap_err();
    assert_eq!(failure.status, catena_proto::status::Status::StaleHandle);
    assert!(failure.message.contains("another start"), "{failure}");
}

#[test]
fn an_overtaken_heartbeat_renews_nothing_and_changes_nothing() {
    let (mut world, [a, ..]) = three();
    let mut late = world.report(a);
    late.targets[0].local = LocalState::Offline.into();
    assert_eq!(world.beat(a).len(), 1);
    let version = world.version();
    let reply = world.send(&late).unwrap();
    assert!(reply.renewed.is_empty() && !reply.service_renewed);
    assert_eq!(world.version(), version);
    let newest = world.report(a);
    assert!(world.send(&newest).unwrap().service_renewed);
}

#[test]
fn a_lease_is_renewed_only_for_a_membership_that_the_service_knows() {
    let (mut world, [a, ..]) = three();
    let before = world.report(a);
    // Cut off until it is declared failed; then it is heard again and its target returns at once as a newcomer.
    world.services.get_mut(&a).unwrap().syncs = false;
    world.kill(a);
    world.pass(4);
    world.services.get_mut(&a).unwrap().alive = true;
    world.pass(1);
    assert!(world.chain().ends_with(&format!("{a} syncing")));
    // The service still believes in its old membership.
    let mut old = world.report(a);
    old.targets[0].known_version = before.targets[0].known_version;
    assert!(world.send(&old).unwrap().renewed.is_empty());
    assert_eq!(world.beat(a).len(), 1, "once it knows the new one it is renewed");
    // A version that this primary has not given out is not known to it.
    let mut future = world.report(a);
    future.targets[0].known_version += 10;
    assert!(world.send(&future).unwrap().renewed.is_empty());
}

#[test]
fn a_clean_stop_takes_the_targets_out_at_once() {
    let (mut world, [a, b, c]) = three();
    let mut last = world.report(a);
    last.stopping = true;
    assert!(world.send(&last).unwrap().renewed.is_empty());
    world.kill(a);
    assert_eq!(world.chain(), format!("{b} serving, {c} serving, {a} offline"));
    last.sequence += 1;
    assert!(world.send(&last).is_err(), "nothing follows a stop");
    world.start(a).unwrap();
    world.pass(2);
    world.assert_full_strength();
}

#[test]
fn all_killed_and_started_again_at_once() {
    let (mut world, _) = three();
    world.now = world.now + TERM / 8;
    for node in 1..=3 {
        world.kill(node);
    }
    for node in 1..=3 {
        assert_eq!(world.start(node), Ok(Registration::Done));
    }
    world.pass(4);
    world.assert_full_strength();
}

#[test]
fn a_power_cut_with_mgmtd_and_one_machine_that_never_returns() {
    let (mut world, [a, b, c]) = three();
    for node in [a, b, c] {
        world.kill(node);
    }
    world.restart_mgmtd();
    assert!(
        matches!(world.start(a), Ok(Registration::Held { .. })),
        "b and c may still serve, as far as it knows"
    );
    assert!(matches!(world.start(b), Ok(Registration::Held { .. })));
    assert_eq!(world.chain(), format!("{a} serving, {b} serving, {c} serving"), "held as it is");
    world.pass(4);
    assert_eq!(world.chain(), format!("{a} lastsrv, {b} lastsrv, {c} lastsrv"), "lost together");
    assert_eq!(world.register(a), Ok(Registration::Done));
    assert_eq!(world.register(b), Ok(Registration::Done));
    world.beat(b);
    world.pass(2);
    assert_eq!(
        world.chain(),
        format!("{b} serving, {a} serving, {c} offline"),
        "the first that returned serves"
    );
}

#[test]
fn a_power_cut_from_which_all_return_does_not_wait_for_leases() {
    let (mut world, [a, b, c]) = three();
    for node in [a, b, c] {
        world.kill(node);
    }
    world.restart_mgmtd();
    assert!(matches!(world.start(a), Ok(Registration::Held { .. })));
    assert!(matches!(world.start(b), Ok(Registration::Held { .. })));
    assert_eq!(world.start(c), Ok(Registration::Done));
    assert_eq!(world.register(a), Ok(Registration::Done));
    assert_eq!(world.register(b), Ok(Registration::Done));
    assert_eq!(world.chain(), format!("{a} lastsrv, {b} lastsrv, {c} lastsrv"));
    world.pass(3);
    world.assert_full_strength();
}

#[test]
fn all_leases_that_run_out_one_after_the_other_count_as_lost_together() {
    let (mut world, order) = three();
    // The last heartbeats are a little apart, as they always are.
    for node in order {
        world.now = world.now + TERM / 16;
        world.beat(node);
        world.kill(node);
    }
    for _ in 0..24 {
        world.now = world.now + TERM / 16;
        world.tick();
    }
    let [a, b, c] = order;
    assert_eq!(world.chain(), format!("{a} lastsrv, {b} lastsrv, {c} lastsrv"));
}

#[test]
fn a_cut_off_cluster_that_returns_in_time_has_lost_nothing() {
    let (mut world, [a, b, c]) = three();
    // `a` was heard a little earlier than the others, so its lease runs out first.
    world.now = world.now + TERM / 16;
    world.beat(b);
    world.beat(c);
    let version = world.cluster.info.chains.values().next().unwrap().version;
    world.now = world.now + TERM * 15 / 16;
    world.tick();
    assert!(!world.is_up(a));
    assert_eq!(world.chain(), format!("{a} serving, {b} serving, {c} serving"), "held");
    assert_eq!(world.beat(a).len(), 1, "heard again; its membership was never broken");
    world.beat_all();
    assert_eq!(world.cluster.info.chains.values().next().unwrap().version, version);
    world.assert_full_strength();
}

#[test]
fn a_new_primary_grants_everyone_a_full_lease() {
    let (mut world, [a, ..]) = three();
    world.pass(1);
    world.kill(a);
    world.pass(3);
    world.restart_mgmtd();
    let restarted = world.now;
    while world.is_up(a) {
        world.pass(1);
    }
    assert_eq!(world.now.since(restarted), TERM);
    assert!(world.chain().ends_with(&format!("{a} offline")));
}

#[test]
fn a_mgmtd_that_stood_still_fails_nobody() {
    let (mut world, _) = three();
    world.tick();
    world.now = world.now + TERM * 5;
    world.tick();
    world.beat_all();
    world.assert_full_strength();
    assert!(world.is_up(1) && world.is_up(2) && world.is_up(3));
}

#[test]
fn a_failed_disk_takes_only_its_targets_out() {
    let (mut world, [a, b, c]) = three();
    let mut report = world.report(a);
    report.disks[0].failed = true;
    assert!(world.send(&report).unwrap().renewed.is_empty());
    assert_eq!(world.chain(), format!("{b} serving, {c} serving, {a} offline"));
    assert!(world.is_up(a));
    assert!(world.events.iter().any(|event| matches!(event, Event::Disk { failed: true, .. })));
}

#[test]
fn a_disk_that_was_exchanged_is_rebuilt() {
    let (mut world, [a, b, c]) = three();
    world.kill(a);
    world.pass(4);
    world.services.get_mut(&a).unwrap().node.disks = vec![disk(77, "/disk")];
    world.start(a).unwrap();
    assert!(world.events.iter().any(|event| matches!(event, Event::Moved { disk: DiskId(77), .. })));
    world.pass(2);
    assert_eq!(world.chain(), format!("{b} serving, {c} serving, {a} serving"));
}

#[test]
fn an_exchanged_disk_never_serves_from_lastsrv() {
    let (mut world, [a, b, c]) = three();
    for node in [a, b, c] {
        world.kill(node);
    }
    world.now = world.now + TERM;
    world.tick();
    assert_eq!(world.chain(), format!("{a} lastsrv, {b} lastsrv, {c} lastsrv"));
    world.services.get_mut(&a).unwrap().node.disks = vec![disk(77, "/disk")];
    world.start(a).unwrap();
    world.pass(2);
    assert_eq!(world.chain(), format!("{b} lastsrv, {c} lastsrv, {a} waiting"));
    world.start(c).unwrap();
    world.pass(3);
    assert_eq!(world.chain(), format!("{c} serving, {a} serving, {b} offline"));
}

#[test]
fn the_only_lastsrv_keeps_its_disk() {
    let (mut world, [a, b, c]) = three();
    for node in [a, b, c] {
        world.kill(node);
        world.pass(4);
    }
    assert_eq!(world.chain(), format!("{c} lastsrv, {a} offline, {b} offline"));
    let original = world.services[&c].node.disks.clone();
    world.services.get_mut(&c).unwrap().node.disks = vec![disk(77, "/disk")];
    world.start(c).unwrap();
    world.pass(2);
    assert_eq!(
        world.chain(),
        format!("{c} lastsrv, {a} offline, {b} offline"),
        "down until the disk is found"
    );
    world.services.get_mut(&c).unwrap().node.disks = original;
    world.start(c).unwrap();
    world.pass(1);
    assert_eq!(world.chain(), format!("{c} serving, {a} offline, {b} offline"));
}

#[test]
fn a_disk_formatted_again_with_its_old_identity_is_not_the_original() {
    let (mut world, [a, b, c]) = three();
    for node in [a, b, c] {
        world.kill(node);
        world.pass(4);
    }
    world.services.get_mut(&c).unwrap().node.disks[0].fresh = true;
    world.start(c).unwrap();
    // The service goes on saying that it was formatted in this start.
    world.services.get_mut(&c).unwrap().node.disks[0].fresh = true;
    world.pass(2);
    assert_eq!(world.chain(), format!("{c} lastsrv, {a} offline, {b} offline"));
}

#[test]
fn a_target_without_its_disk_waits_for_it() {
    let (mut world, [a, b, c]) = three();
    world.kill(a);
    world.pass(4);
    let original = std::mem::take(&mut world.services.get_mut(&a).unwrap().node.disks);
    world.start(a).unwrap();
    world.pass(2);
    assert_eq!(world.chain(), format!("{b} serving, {c} serving, {a} offline"));
    world.services.get_mut(&a).unwrap().node.disks = original;
    world.start(a).unwrap();
    world.pass(2);
    world.assert_full_strength();
}

#[test]
fn many_chains_return_to_full_strength_after_a_rolling_restart() {
    let mut world = World::with_chains(7, 3, 6);
    for node in 1..=7 {
        world.kill(node);
        world.start(node).unwrap();
        world.pass(8);
        world.assert_full_strength();
    }
    let states: Vec<_> = world.cluster.info.targets.values().map(|target| target.state).collect();
    assert!(states.iter().all(|&state| state == PublicState::Serving));
}

#[test]
fn a_change_that_could_not_be_written_is_made_with_the_next_event() {
    let (mut world, [a, b, c]) = three();
    world.kill(a);
    world.pass(3);
    world.now = world.now + TERM / 4;
    world.beat_all();
    let lost = world.cluster.tick(world.now);
    assert!(!lost.is_empty());
    world.cluster.not_written(&lost);
    world.tick();
    assert_eq!(world.chain(), format!("{b} serving, {c} serving, {a} offline"));
}
