//! What a check reads, and repairs: damage made on purpose is seen, healed, and not seen again.

mod common;

use bytes::Bytes;
use catena_meta::schema::{Inode, decode, encode, key};
use catena_proto::ids::InodeId;
use catena_proto::pb;
use catena_proto::pb::RepairKind;
use catena_proto::status::Status;
use common::{World, at};

async fn change(world: &World, key: Bytes, value: Option<Bytes>) {
    let tx = world.db.begin(Default::default()).expect("begin");
    match value {
        Some(value) => tx.set(&key, &value).expect("set"),
        None => tx.clear(&key).expect("clear"),
    }
    tx.commit().await.expect("commit");
}

async fn damage(world: &World, id: u64, change_it: impl FnOnce(&mut Inode)) {
    let key = key::inode(InodeId(id));
    let tx = world.db.begin(Default::default()).expect("begin");
    let value = tx.get(&key, catena_kv::Isolation::Snapshot).await.expect("get").expect("an inode");
    let mut inode: Inode = decode("an inode", &value).expect("an inode");
    change_it(&mut inode);
    change(world, key, Some(encode(&inode))).await;
}

async fn mkdir(world: &World, path: &str) -> u64 {
    let request = pb::MkdirRequest { caller: world.root(), at: at(path), mode: 0o755, ..Default::default() };
    world.service.mkdir(request).await.expect("mkdir").inode.expect("an inode").id
}

async fn see(world: &World, id: u64) -> pb::CheckedInode {
    let request = pb::CheckInodesRequest { caller: world.root(), inodes: vec![id], ..Default::default() };
    world.service.check_inodes(request).await.expect("check").inodes.remove(0)
}

/// Looks, repairs, looks again.
async fn heals(world: &World, request: pb::RepairRequest) {
    let ask = |apply| pb::RepairRequest { caller: world.root(), apply, ..request.clone() };
    for (apply, holds) in [(false, true), (true, true), (false, false), (true, false)] {
        let reply = world.service.repair(ask(apply)).await.expect("repair");
        assert_eq!(reply.holds, holds, "{:?}, apply {apply}", request.kind());
    }
}

fn entry(parent: u64, name: &'static str, inode: u64, kind: pb::FileType) -> pb::CheckedEntry {
    pb::CheckedEntry { parent, name: name.into(), inode, r#type: kind as i32 }
}

#[tokio::test(start_paused = true)]
async fn pages_hold_every_inode_and_every_entry_once() {
    let world = World::new().await;
    for nth in 0..25 {
        mkdir(&world, &format!("/{nth}")).await;
        world.create(&format!("/{nth}/f"), [nth; 16]).await;
    }
    let (mut inodes, mut after) = (Vec::new(), 0);
    loop {
        let request = pb::CheckInodesRequest { caller: world.root(), after, limit: 7, ..Default::default() };
        let page = world.service.check_inodes(request).await.expect("a page");
        after = page.inodes.last().map_or(0, |seen| seen.id);
        inodes.extend(page.inodes.iter().map(|seen| (seen.id, seen.open)));
        if !page.more {
            break;
        }
    }
    inodes.sort_unstable();
    inodes.dedup();
    assert_eq!(inodes.len(), 51);
    assert_eq!(inodes.iter().filter(|(_, open)| *open).count(), 25);
    let (mut entries, mut after) = (Vec::new(), None);
    loop {
        let request = pb::CheckEntriesRequest { caller: world.root(), after, limit: 7 };
        let page = world.service.check_entries(request).await.expect("a page");
        after = page.entries.last().cloned();
        entries.extend(page.entries.into_iter().map(|entry| (entry.parent, entry.name, entry.inode)));
        if !page.more {
            break;
        }
    }
    entries.sort_unstable();
    entries.dedup();
    assert_eq!(entries.len(), 50);
    let user = pb::CheckEntriesRequest { caller: world.caller(5, 5, &[]), ..Default::default() };
    assert_eq!(world.service.check_entries(user).await.unwrap_err().status, Status::NotPermitted);
}

#[tokio::test(start_paused = true)]
async fn a_name_without_inode_goes_and_a_new_one_in_its_place_stays() {
    let world = World::new().await;
    let dir = mkdir(&world, "/d").await;
    let file = world.create("/d/f", [1; 16]).await.id;
    let dangling = pb::RepairRequest {
        kind: RepairKind::DanglingEntry as i32,
        entry: Some(entry(dir, "f", file, pb::FileType::File)),
        ..Default::default()
    };
    let ask = pb::RepairRequest { caller: world.root(), apply: true, ..dangling.clone() };
    assert!(!world.service.repair(ask).await.expect("repair").holds, "it is sound");
    change(&world, key::inode(InodeId(file)), None).await;
    heals(&world, dangling.clone()).await;
    world.create("/d/f", [2; 16]).await;
    let ask = pb::RepairRequest { caller: world.root(), apply: true, ..dangling };
    assert!(!world.service.repair(ask).await.expect("repair").holds);
    world.stat("/d/f").await.expect("the new one");
}

#[tokio::test(start_paused = true)]
async fn what_has_no_name_any_more_gets_one() {
    let world = World::new().await;
    let dir = mkdir(&world, "/d").await;
    let file = world.create("/d/f", [1; 16]).await.id;
    change(&world, key::inode(InodeId(dir)), None).await;
    let kind = RepairKind::LostEntry as i32;
    let entry = Some(entry(dir, "f", file, pb::FileType::File));
    heals(&world, pb::RepairRequest { kind, entry, ..Default::default() }).await;
    assert_eq!(world.stat(&format!("/lost+found/#{file}")).await.unwrap().nlink, 1);

    let other = mkdir(&world, "/other").await;
    change(&world, key::entry(InodeId(1), b"other"), None).await;
    let seen = Some(see(&world, other).await);
    let kind = RepairKind::Unreachable as i32;
    let request = pb::RepairRequest { kind, seen, ..Default::default() };
    heals(&world, request).await;
    let found = world.stat("/lost+found").await.expect("made");
    assert_eq!(world.stat(&format!("/lost+found/#{other}")).await.unwrap().parent, found.id);
    mkdir(&world, &format!("/lost+found/#{other}/below")).await;
}

#[tokio::test(start_paused = true)]
async fn counts_and_parents_are_set_right_unless_names_changed_meanwhile() {
    let world = World::new().await;
    let (one, two) = (mkdir(&world, "/one").await, mkdir(&world, "/one/two").await);
    damage(&world, two, |inode| inode.parent = 1).await;
    let request = pb::RepairRequest {
        kind: RepairKind::WrongParent as i32,
        entry: Some(entry(one, "two", two, pb::FileType::Directory)),
        seen: Some(see(&world, two).await),
        ..Default::default()
    };
    heals(&world, request).await;
    assert_eq!(world.stat("/one/two").await.unwrap().parent, one);

    let file = world.create("/f", [1; 16]).await.id;
    damage(&world, file, |inode| inode.nlink = 5).await;
    let request = pb::RepairRequest {
        kind: RepairKind::WrongNlink as i32,
        seen: Some(see(&world, file).await),
        names: 1,
        ..Default::default()
    };
    heals(&world, request.clone()).await;
    assert_eq!(world.stat("/f").await.unwrap().nlink, 1);
    // A name that came after the entries were read.
    let seen = Some(see(&world, file).await);
    let link = pb::LinkRequest { caller: world.root(), from: at("/f"), to: at("/g"), ..Default::default() };
    world.service.link(link).await.expect("link");
    let stale = pb::RepairRequest { caller: world.root(), seen, names: 3, apply: true, ..request };
    assert!(!world.service.repair(stale).await.expect("repair").holds);
    assert_eq!(world.stat("/f").await.unwrap().nlink, 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_forgotten_is_removed_and_lengths_are_settled() {
    let world = World::new().await;
    let file = world.create("/f", [1; 16]).await;
    world.write(&file, 3, 77);
    let length = pb::RepairRequest {
        kind: RepairKind::WrongLength as i32,
        seen: Some(see(&world, file.id).await),
        ..Default::default()
    };
    let ask = pb::RepairRequest { caller: world.root(), apply: true, ..length.clone() };
    assert!(!world.service.repair(ask).await.expect("repair").holds, "its writer settles it");
    change(&world, key::session(InodeId(file.id), &[1; 16]), None).await;
    heals(&world, length).await;
    assert_eq!(world.stat("/f").await.unwrap().length, (3 << 20) + 77);

    damage(&world, file.id, |inode| inode.nlink = 0).await;
    change(&world, key::entry(InodeId(1), b"f"), None).await;
    let seen = Some(see(&world, file.id).await);
    let kind = RepairKind::Forgotten as i32;
    heals(&world, pb::RepairRequest { kind, seen, ..Default::default() }).await;
    assert!(see(&world, file.id).await.queued);
    world.service.reclaim().await.expect("reclaim");
    assert_eq!(world.chunks.count(), 0);
    assert!(!see(&world, file.id).await.queued);
}
