//! What is refused, and in which words.

use catena_proto::pb::{self, CreateTableRequest};
use catena_proto::routing::NodeKind;
use catena_proto::status::Status;

use super::world::{World, disk, storage};

fn refused(world: &mut World, node: pb::Node) -> (Status, String) {
    let failure = world.cluster.register(world.now, node).map(|_| ()).unwrap_err();
    (failure.status, failure.message)
}

#[test]
fn a_node_number_that_is_in_use_is_refused_by_name() {
    let mut world = World::with_chains(3, 3, 1);
    let mut other = storage(2);
    other.incarnation = 99;
    other.data_address = "tcp://10.0.0.9:7500".into();
    other.disks = vec![disk(900, "/disk")];
    let (status, message) = refused(&mut world, other);
    assert_eq!(status, Status::Exists);
    assert_eq!(
        message,
        "node n2 is in use by another process at tcp://10.0.0.2:7500 (pid 0): give this one another number. If that process has just ended, its lease runs out in 8.0s"
    );
    world.assert_full_strength();
}

#[test]
fn a_number_is_free_again_when_its_lease_ran_out() {
    let mut world = World::with_chains(3, 3, 1);
    world.kill(2);
    let service = world.services.get_mut(&2).unwrap();
    service.node.data_address = "tcp://10.0.0.9:7500".into();
    service.node.disks = vec![disk(900, "/other")];
    assert_eq!(world.start(2).unwrap_err().status, Status::Exists);
    world.pass(4);
    world.start(2).unwrap();
    assert!(world.is_up(2));
}

#[test]
fn a_node_that_comes_back_without_a_serving_disk_waits_for_its_old_lease() {
    let mut world = World::with_chains(3, 3, 1);
    world.kill(2);
    world.services.get_mut(&2).unwrap().node.disks = vec![disk(900, "/disk")];
    let failure = world.start(2).unwrap_err();
    assert_eq!(failure.status, Status::Busy);
    assert!(failure.message.starts_with("node n2 comes back without disk 000"), "{failure}");
    world.assert_full_strength();
}

#[test]
fn a_disk_that_belongs_to_another_node_is_refused_by_name() {
    let mut world = World::with_chains(3, 3, 1);
    let mut thief = storage(4);
    thief.incarnation = 99;
    thief.disks = vec![disk(2, "/mnt/copy")];
    let (status, message) = refused(&mut world, thief.clone());
    assert_eq!(status, Status::Exists);
    assert_eq!(
        message,
        "disk 00000000000000000000000000000002 belongs to node n2 (tcp://10.0.0.2:7500), which is up: it was seen there at /disk; use it with that node, or format it for node n4"
    );
    thief.disks = vec![disk(900, "/a"), disk(900, "/b")];
    let (status, message) = refused(&mut world, thief);
    assert_eq!(status, Status::Exists);
    assert!(message.contains("is there twice, also at /b"), "{message}");
}

#[test]
fn a_number_of_another_kind_of_service_is_refused() {
    let mut world = World::with_chains(3, 3, 1);
    let meta = pb::Node {
        id: 2,
        kind: NodeKind::Meta.into(),
        control_address: "10.0.0.2:7400".into(),
        incarnation: 99,
        ..Default::default()
    };
    let (status, message) = refused(&mut world, meta);
    assert_eq!(
        (status, message.as_str()),
        (Status::Exists, "node n2 is a storage service; give this meta service another number")
    );
}

#[test]
fn registrations_that_say_too_little_are_refused() {
    let mut world = World::new();
    let cases: [fn(&mut pb::Node); 5] = [
        |node| node.id = 0,
        |node| node.incarnation = 0,
        |node| node.kind = NodeKind::Mgmtd.into(),
        |node| node.data_address.clear(),
        |node| node.disks[0].id = vec![0; 16].into(),
    ];
    for change in cases {
        let mut node = storage(1);
        node.incarnation = 5;
        change(&mut node);
        assert_eq!(refused(&mut world, node).0, Status::Invalid);
    }
}

#[test]
fn tables_need_nodes_and_are_made_once() {
    let mut world = World::new();
    for node in 1..=2 {
        world.start(node).unwrap();
    }
    let mut request =
        CreateTableRequest { replicas: 3, min_nodes: 3, request: vec![7; 16].into(), ..Default::default() };
    let refused = |world: &World, request: &CreateTableRequest| {
        let failure = world.cluster.create_table(world.now, request).map(|_| ()).unwrap_err();
        (failure.status, failure.message)
    };
    let (status, message) = refused(&world, &request);
    assert_eq!(status, Status::Busy);
    assert_eq!(message, "2 storage nodes are up (2 known), 3 are asked for: start the others, or wait");
    request.min_nodes = 0;
    let (status, message) = refused(&world, &request);
    assert_eq!(status, Status::Invalid);
    assert!(
        message
            .starts_with("3 replicas need 3 failure domains, but there are 2 with a working disk (n1, n2)")
    );

    world.start(3).unwrap();
    let (changes, made) = world.cluster.create_table(world.now, &request).unwrap();
    assert_eq!((changes.chains.len(), changes.targets.len()), (6, 18));
    world.write(changes);
    let (again, same) = world.cluster.create_table(world.now, &request).unwrap();
    assert!(again.is_empty());
    assert_eq!((same, world.cluster.table_reply(same).table.unwrap().chains.len()), (made, 6));
    request.request = vec![8; 16].into();
    let (second, _) = world.cluster.create_table(world.now, &request).unwrap();
    assert_eq!(second.tables[0].id.0, 2);
    assert!(second.targets.keys().all(|id| id.0 > 18), "ids are not used again");
    let named = CreateTableRequest { table: 1, ..request };
    assert_eq!(refused(&world, &named).0, Status::Exists);
}

#[test]
fn a_new_primary_places_nothing_on_nodes_it_has_not_heard() {
    let mut world = World::new();
    for node in 1..=3 {
        world.start(node).unwrap();
    }
    world.restart_mgmtd();
    let request = CreateTableRequest { replicas: 3, ..Default::default() };
    assert!(world.cluster.create_table(world.now, &request).is_err());
    world.beat_all();
    assert!(world.cluster.create_table(world.now, &request).is_ok());
}
