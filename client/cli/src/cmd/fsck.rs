//! `catena admin fsck`.

use catena_client::{Finding, FsckOptions};
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
    let tell = |finding: &Finding| {
        out.say(finding);
        if out.json && kept.len() < KEPT {
            kept.push(row(finding));
        }
    };
    let report = match &args.path {
        None => catena.fsck(options, tell).await?,
        Some(path) => catena.fsck_below(path.as_str(), options, tell).await?,
    };
    catena.close().await;
    if out.json {
        out.object(json!({
            "inodes": report.inodes, "entries": report.entries, "chunks": report.chunks,
            "found": report.findings, "repaired": report.repaired, "left": report.left(), "findings": kept,
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
            Err(if args.repair {
                failure
            } else {
                failure.hint("`catena admin fsck --repair` repairs what is safe")
            })
        }
    }
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
