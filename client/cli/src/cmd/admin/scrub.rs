//! `catena admin scrub`: orders to the storage nodes' scrubbers, and how they stand.

use catena_client::Catena;
use catena_proto::frame::{ScrubDamage, ScrubDisk};
use catena_proto::ids::{ChunkId, DiskId, InodeId, NodeId, TargetId};
use catena_proto::pb::{NodeKind, NodeState};
use catena_proto::routing::{RoutingInfo, wide_id};
use catena_proto::status::Status;
use catena_storage_client::{NodeError, Scrub, ScrubReport};
use serde_json::{Value, json};

use crate::args::ClusterArgs;
use crate::args::admin::ScrubCommand;
use crate::connect;
use crate::exit::{Exit, Failure, Result};
use crate::output::Output;
use crate::table::Table;
use crate::units;

use super::unknown;

/// A node's answer.
type Answer = (NodeId, Result<ScrubReport, NodeError>);

/// Runs `catena admin scrub`.
pub async fn run(command: ScrubCommand, cluster: &ClusterArgs, out: Output) -> Result<()> {
    let (node, order) = match command {
        ScrubCommand::Status { node } => (node, Scrub::Status),
        ScrubCommand::Stop { node } => (node, Scrub::Stop),
        ScrubCommand::Start { node, target, rate } => {
            (node, Scrub::Start { target: target.map(TargetId), rate })
        }
    };
    let catena = connect::client(cluster).await?;
    let routing = catena.storage().routing().current();
    let nodes = whom(&routing, node, order)?;
    let answers = ask(&catena, &nodes, order).await;
    catena.close().await;
    show(&routing, &answers, out);
    let failed = answers.into_iter().find_map(|(_, answer)| answer.err());
    match failed {
        None => Ok(()),
        Some(error) => Err(Failure::new(Exit::of(error.status), error.to_string())
            .hint("`catena admin nodes` says which nodes are up")),
    }
}

/// The storage nodes that are meant.
fn whom(routing: &RoutingInfo, node: Option<u32>, order: Scrub) -> Result<Vec<NodeId>> {
    let storage =
        |id: &u32| routing.nodes.values().any(|known| known.id == *id && known.kind() == NodeKind::Storage);
    if let Some(node) = node.filter(|node| !storage(node)) {
        return Err(unknown(format!("storage node {node}"), "catena admin nodes"));
    }
    if let Scrub::Start { target: Some(target), .. } = order {
        let known = routing.targets.get(&target).filter(|known| node.is_none_or(|node| known.node.0 == node));
        let known = known.ok_or_else(|| unknown(format!("target {target}"), "catena admin targets"))?;
        return Ok(vec![known.node]);
    }
    let all = routing.nodes.values().filter(|known| {
        let up = node.is_some() || known.state() == NodeState::Up;
        known.kind() == NodeKind::Storage && up && node.is_none_or(|node| known.id == node)
    });
    Ok(all.map(|known| NodeId(known.id)).collect())
}

async fn ask(catena: &Catena, nodes: &[NodeId], order: Scrub) -> Vec<Answer> {
    let storage = catena.storage();
    let asked =
        nodes.iter().map(|&node| async move { (node, storage.scrub(node, order, storage.deadline()).await) });
    futures_util::future::join_all(asked).await
}

fn path(routing: &RoutingInfo, node: NodeId, disk: DiskId) -> &str {
    let disks = routing.nodes.get(&node).into_iter().flat_map(|node| &node.disks);
    let mut found = disks.filter(|known| wide_id(&known.id) == Some(disk.0));
    found.next().map_or("-", |disk| &disk.path)
}

fn id(disk: &ScrubDisk) -> DiskId {
    DiskId(u128::from_be_bytes(disk.disk))
}

fn state(disk: &ScrubDisk) -> &'static str {
    match disk.state {
        0 => "idle",
        1 => "running",
        _ => "failed",
    }
}

/// Share of the pass that is done; of a disk without data all of it.
fn progress(disk: &ScrubDisk) -> f64 {
    match disk.total.get() {
        0 => 100.0,
        total => (disk.verified.get() as f64 * 100.0 / total as f64).min(100.0),
    }
}

fn when(nanos: u64) -> String {
    i64::try_from(nanos).ok().filter(|&nanos| nanos > 0).map_or("never".into(), units::date)
}

fn disk_json(routing: &RoutingInfo, node: NodeId, disk: &ScrubDisk) -> Value {
    json!({
        "node": node.0, "disk": id(disk).to_string(), "path": path(routing, node, id(disk)), "state": state(disk),
        "rate": disk.rate.get(), "progress": units::round3(progress(disk) / 100.0), "total": disk.total.get(),
        "verified": disk.verified.get(), "found": disk.found.get(), "repaired": disk.repaired.get(),
        "waiting": disk.waiting.get(), "unrepaired": disk.unrepaired.get(), "passes": disk.passes.get(),
        "started": disk.started.get() / 1_000_000_000, "finished": disk.finished.get() / 1_000_000_000,
    })
}

/// The first bad block, unless only the device knows.
fn block(damage: &ScrubDamage) -> Option<u32> {
    Some(damage.block.get()).filter(|&block| block != u32::MAX)
}

fn damage_json(node: NodeId, damage: &ScrubDamage) -> Value {
    json!({
        "node": node.0, "target": damage.target.get(), "inode": damage.inode.get(), "index": damage.index.get(),
        "block": block(damage), "repairable": damage.hopeless == 0,
    })
}

fn show(routing: &RoutingInfo, answers: &[Answer], out: Output) {
    let reports = || answers.iter().filter_map(|(node, answer)| Some((*node, answer.as_ref().ok()?)));
    let disks = || reports().flat_map(|(node, report)| report.disks.iter().map(move |disk| (node, disk)));
    let damages = || reports().flat_map(|(node, report)| report.damages.iter().map(move |one| (node, one)));
    for (node, error) in answers.iter().filter_map(|(node, answer)| Some((node, answer.as_ref().err()?))) {
        if error.status != Status::Ok {
            eprintln!("catena: admin scrub: {node} does not answer: {}", error.status);
        }
    }
    if out.json {
        return out.object(json!({
            "disks": disks().map(|(node, disk)| disk_json(routing, node, disk)).collect::<Vec<_>>(),
            "damaged": damages().map(|(node, damage)| damage_json(node, damage)).collect::<Vec<_>>(),
        }));
    }
    let mut table = Table::new(&[
        "NODE",
        "DISK",
        "STATE",
        ">DONE",
        ">VERIFIED",
        ">RATE",
        ">FOUND",
        ">REPAIRED",
        ">WAITING",
        ">UNREPAIRED",
        "LAST FINISHED",
    ]);
    for (node, disk) in disks() {
        let begun = disk.started.get() > 0;
        let rate = disk.rate.get();
        table.row([
            node.to_string(),
            path(routing, node, id(disk)).into(),
            state(disk).into(),
            if begun { format!("{:.1}%", progress(disk)) } else { "-".into() },
            if begun { units::size(disk.verified.get()) } else { "-".into() },
            if rate == 0 { "no limit".into() } else { format!("{}/s", units::size(rate)) },
            units::count(disk.found.get()),
            units::count(disk.repaired.get()),
            units::count(disk.waiting.get()),
            units::count(disk.unrepaired.get()),
            when(disk.finished.get()),
        ]);
    }
    out.table(&table, "no storage nodes are up");
    let mut table = Table::new(&["DAMAGED CHUNK", "TARGET", "NODE", ">BLOCK", "REPAIR"]);
    for (node, damage) in damages() {
        table.row([
            ChunkId { inode: InodeId(damage.inode.get()), index: damage.index.get() }.to_string(),
            TargetId(damage.target.get()).to_string(),
            node.to_string(),
            block(damage).map_or("unreadable".into(), |block| block.to_string()),
            if damage.hopeless == 0 { "waiting".into() } else { "no other replica can help now".into() },
        ]);
    }
    if !table.is_empty() {
        out.say("");
        out.table(&table, "");
    }
}
