//! `df` and `du`: where the space is.

use catena_client::Catena;
use serde_json::{Value, json};

use crate::args::fs::{DfArgs, DuArgs};
use crate::cmd::fs::path::Remote;
use crate::cmd::fs::show::size;
use crate::cmd::fs::walk::{Filter, Visit, Walk};
use crate::exit::{Failures, Result};
use crate::output::Output;
use crate::table::Table;
use crate::units;

/// `catena fs df`.
pub async fn df(fs: &Catena, args: DfArgs, out: Output) -> Result<()> {
    let stat = fs.statfs().await?;
    let free = stat.capacity.saturating_sub(stat.used);
    if out.json {
        out.object(json!({
            "capacity": stat.capacity, "used": stat.used, "free": free, "files": stat.files, "directories": stat.directories,
            "reclaim_files": stat.reclaim_files, "reclaim_bytes": stat.reclaim_bytes, "sessions": stat.sessions,
        }));
        return Ok(());
    }
    let exact = args.units.bytes;
    let mut table =
        Table::new(&[">SIZE", ">USED", ">FREE", ">FULL", ">FILES", ">DIRECTORIES", ">BEING FREED"]);
    let full = if stat.capacity == 0 { 0.0 } else { stat.used as f64 * 100.0 / stat.capacity as f64 };
    table.row([
        size(stat.capacity, exact),
        size(stat.used, exact),
        size(free, exact),
        format!("{full:.1}%"),
        units::count(stat.files),
        units::count(stat.directories),
        size(stat.reclaim_bytes, exact),
    ]);
    out.table(&table, "");
    Ok(())
}

/// `catena fs du`.
pub async fn du(fs: &Catena, args: DuArgs, out: Output) -> Result<()> {
    let mut failures = Failures::of("fs du");
    let mut rows: Vec<Value> = Vec::new();
    let mut row = |bytes: u64, path: &Remote| {
        if out.json {
            rows.push(json!({"path": path.to_string(), "bytes": bytes}));
        } else {
            out.say(format_args!("{:>9}  {path}", size(bytes, args.units.bytes)));
        }
    };
    for path in &args.paths {
        let path = match Remote::new(path) {
            Ok(path) => path,
            Err(failure) => {
                failures.note(failure);
                continue;
            }
        };
        if args.summarize {
            if let Some(usage) = failures.check(fs.usage(&path).await.map_err(Into::into)) {
                row(usage.bytes, &path);
            }
            continue;
        }
        let Some(stat) = failures.check(fs.lstat(&path).await.map_err(Into::into)) else { continue };
        if !stat.is_dir() {
            row(stat.length, &path);
            continue;
        }
        // Bytes of every directory that is open on the way down. A file with several names counts at each.
        let mut sums: Vec<u64> = Vec::new();
        let shown = |depth: usize| args.max_depth.is_none_or(|deepest| depth <= deepest);
        let mut walk = Walk::new(fs, path, stat, usize::MAX, Filter::default());
        while let Some(step) = walk.next().await {
            match failures.check(step) {
                Some(Visit::Enter { inode, .. }) if inode.is_dir() => sums.push(0),
                Some(Visit::Enter { path, inode, depth, .. }) => {
                    if let Some(sum) = sums.last_mut() {
                        *sum += inode.length;
                    }
                    if args.all && shown(depth) {
                        row(inode.length, &path);
                    }
                }
                Some(Visit::Leave { path, depth }) => {
                    let sum = sums.pop().unwrap_or(0);
                    if let Some(above) = sums.last_mut() {
                        *above += sum;
                    }
                    if shown(depth) {
                        row(sum, &path);
                    }
                }
                None => {}
            }
        }
    }
    if out.json {
        out.object(Value::Array(rows));
    }
    failures.end()
}
