//! `catena admin fsck`.

use catena_client::{Finding, FsckOptions};
use catena_proto::ids::ChainId;
use catena_proto::routing::{PublicState, RoutingInfo};
use serde_json::{Value, json};

use crate::args::ClusterArgs;
use crate::args::admin::FsckArgs;
use crate::connect;
use crate::exit::{Exit, Failure, Result};
use crate::output::Output;

/// Findings kept for `--json`; all are counted, and told as they are made.
const KEPT: usize = 10_000;

/// Runs it.
pub async fn run(args: FsckArgs, cluster: &ClusterArgs, out: Output) -> Result<()> {
    let catena = connect::client(cluster).await?;
    let options = FsckOptions {
        repair: args.repair,
        checksums: !args.quick,
        grace: args.grace,
        ..FsckOptions::default()
    };
    let mut kept = Vec::new();
    let mut repairable = false;
    let tell = |finding: &Finding| {
        out.say(finding);
        repairable |= !finding.repaired && finding.kind.remedy().is_some();
        if out.json && kept.len() < KEPT {
            kept.push(row(finding));
        }
    };
    let report = match &args.path {
        None => catena.fsck(options, tell).await?,
        Some(path) => catena.fsck_below(path.as_str(), options, tell).await?,
    };
    // Only serving replicas are compared: who reads that nothing was found has to know what was not looked at.
    let routing = catena.routing().current();
    let degraded = degraded(&routing);
    catena.close().await;
    if degraded > 0 {
        eprintln!(
            "catena: admin fsck: {degraded} of {} chains are not at full strength, and only replicas that serve are checked; check again once `catena admin resync` shows none",
            routing.chains.len()
        );
    }
    if out.json {
        out.object(json!({
            "inodes": report.inodes, "entries": report.entries, "chunks": report.chunks,
            "found": report.findings, "repaired": report.repaired, "left": report.left(), "degraded_chains": degraded,
            "findings": kept,
        }));
    } else {
        out.say(format_args!(
            "checked {} inodes, {} names, {} chunks: {} found, {} repaired, {} left",
            report.inodes,
            report.entries,
            report.chunks,
            report.findings,
            report.repaired,
            report.left()
        ));
    }
    match report.left() {
        0 => Ok(()),
        left => {
            let failure = Failure::new(Exit::Failed, format!("{left} findings are left")).told();
            Err(match repairable && !args.repair {
                true => failure.hint("`catena admin fsck --repair` repairs what is safe"),
                false => failure,
            })
        }
    }
}

/// Chains with a replica that does not serve.
fn degraded(routing: &RoutingInfo) -> usize {
    let whole = |chain: &&ChainId| routing.targets_in(**chain, PublicState::Serving).count();
    let all = |chain: &ChainId| routing.chains.get(chain).map_or(0, |chain| chain.targets.len());
    routing.chains.keys().filter(|chain| whole(chain) < all(chain)).count()
}

fn row(finding: &Finding) -> Value {
    let targets = finding.targets.iter().map(|(target, node)| json!({"target": target.0, "node": node.0}));
    json!({
        "kind": finding.kind.name(), "name": finding.name, "parent": finding.parent.map(|parent| parent.0),
        "inode": finding.inode.map(|inode| inode.0), "chunk": finding.chunk, "chain": finding.chain.map(|chain| chain.0),
        "targets": targets.collect::<Vec<_>>(), "detail": finding.detail, "repair": finding.kind.remedy(),
        "repaired": finding.repaired,
    })
}
