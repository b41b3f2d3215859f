//! `layout`: where a file's chunks are, and what new files get.

use catena_client::{Catena, LayoutChoice, Stat};
use catena_proto::ids::TargetId;
use catena_proto::routing::PublicState;
use serde_json::{Value, json};

use crate::args::fs::{LayoutArgs, LayoutCommand};
use crate::cmd::admin::public_state;
use crate::cmd::fs::path::Remote;
use crate::cmd::fs::show::layout_line;
use crate::exit::{Failure, Result};
use crate::output::Output;
use crate::replicas;
use crate::table::Table;
use crate::units;

/// `catena fs layout`.
pub async fn layout(fs: &Catena, args: LayoutArgs, out: Output) -> Result<()> {
    if let Some(LayoutCommand::Set { path, table, chunk_size, stripe, inherit }) = args.command {
        let path = Remote::new(&path)?;
        if table.or(chunk_size).or(stripe).is_none() && !inherit {
            return Err(
                Failure::usage("nothing to set").hint("use --table, --chunk-size, --stripe or --inherit")
            );
        }
        // What is not named stays as it was set before.
        let before = if inherit { LayoutChoice::default() } else { fs.layout(&path).await? };
        let choice = LayoutChoice {
            table: table.or(before.table),
            chunk_size: chunk_size.or(before.chunk_size),
            stripe: stripe.or(before.stripe),
        };
        return directory(&path, &fs.set_layout(&path, choice).await?, out);
    }
    let path = Remote::new(args.path.as_deref().unwrap_or(std::path::Path::new("/")))?;
    let stat = fs.stat(&path).await?;
    let name = path.to_string();
    if stat.is_dir() {
        return directory(&path, &stat, out);
    }
    let (layout, chains) = replicas::chains(fs, &name, &stat)?;
    let chunks = stat.length.div_ceil(u64::from(layout.chunk_size));
    let shown = chunks.min(args.limit);
    let end = u32::try_from(shown).unwrap_or(u32::MAX);
    let surveyed =
        if args.checksums { Some(replicas::survey(fs, &name, &stat, end, true).await?) } else { None };
    let routing = fs.routing().current();
    let mut rows: Vec<Value> = Vec::new();
    let mut table = match surveyed {
        Some(_) => Table::new(&[
            ">CHUNK",
            ">OFFSET",
            ">LENGTH",
            "CHAIN",
            ">VERSION",
            "REPLICAS (target@node checksum)",
        ]),
        None => Table::new(&[">CHUNK", ">OFFSET", ">LENGTH", "CHAIN", "REPLICAS (target@node, head first)"]),
    };
    for index in 0..end {
        let offset = u64::from(index) * u64::from(layout.chunk_size);
        let length = u64::from(layout.chunk_size).min(stat.length - offset);
        let chain = chains[index as usize % chains.len()];
        let targets: Vec<TargetId> =
            routing.chains.get(&chain).map(|chain| chain.targets.clone()).unwrap_or_default();
        let targets = targets.iter().filter_map(|id| routing.targets.get(id));
        let mut cells = vec![index.to_string(), units::size(offset), units::size(length), chain.to_string()];
        let mut row = json!({"index": index, "offset": offset, "length": length, "chain": chain.0});
        let state = |state| {
            if state == PublicState::Serving { String::new() } else { format!(" ({})", public_state(state)) }
        };
        match surveyed.as_ref().and_then(|shares| shares.iter().find(|share| share.chain == chain)) {
            None => {
                let places: Vec<_> =
                    targets.clone().map(|t| format!("{}@{}{}", t.id, t.node, state(t.state))).collect();
                cells.push(places.join("  "));
                row["replicas"] = targets
                    .map(|t| json!({"target": t.id.0, "node": t.node.0, "state": public_state(t.state)}))
                    .collect();
            }
            Some(share) => {
                let held = |member: &replicas::Member| {
                    member.chunks.iter().find(|entry| entry.index.get() == index).copied()
                };
                let version =
                    share.members.iter().find_map(held).map_or("-".into(), |entry| entry.version.to_string());
                let places = share.members.iter().map(|member| {
                    let sum = held(member).map_or("hole".into(), |entry| format!("{:08x}", entry.checksum));
                    format!("{}@{}{} {sum}", member.target, member.node, state(member.state))
                });
                cells.extend([version, places.collect::<Vec<_>>().join("  ")]);
                let places = share.members.iter().map(|member| {
                    let entry = held(member);
                    json!({
                        "target": member.target.0, "node": member.node.0, "state": public_state(member.state),
                        "version": entry.map(|e| e.version.get()), "length": entry.map(|e| e.length.get()),
                        "checksum": entry.map(|e| format!("{:08x}", e.checksum)),
                    })
                });
                row["replicas"] = places.collect();
            }
        }
        rows.push(row);
        table.row(cells);
    }
    if out.json {
        out.object(json!({
            "path": name, "length": stat.length, "table": layout.table.0, "table_version": layout.table_version,
            "chunk_size": layout.chunk_size, "stripe": layout.stripe, "seed": layout.seed,
            "chains": chains.iter().map(|chain| chain.0).collect::<Vec<_>>(), "chunks": rows,
        }));
    } else {
        out.say(format_args!("{name}: {}, {}\n", units::size(stat.length), layout_line(&layout)));
        out.table(&table, "no chunks");
        if shown < chunks {
            eprintln!("… and {} more chunks; --limit shows more", chunks - shown);
        }
    }
    if let Some(shares) = surveyed {
        match shares.iter().find_map(replicas::first_difference) {
            None => eprintln!("all serving replicas hold the same"),
            Some(difference) => {
                return Err(Failure::new(
                    crate::exit::Exit::Corrupt,
                    format!("{name}: replicas differ: {difference}"),
                )
                .hint("a chunk that is being written differs for a moment; ask again"));
            }
        }
    }
    Ok(())
}

/// What is created below a directory gets what was set there, and the rest from above.
fn directory(path: &Remote, stat: &Stat, out: Output) -> Result<()> {
    let LayoutChoice { table, chunk_size, stripe } = stat.choice;
    if out.json {
        out.object(json!({
            "path": path.to_string(), "table": table, "chunk_size": chunk_size, "stripe": stripe,
        }));
        return Ok(());
    }
    let parts: Vec<String> = [
        table.map(|table| format!("chain table {table}")),
        chunk_size.map(|bytes| format!("chunks of {}", units::size(u64::from(bytes)))),
        stripe.map(|chains| format!("a stripe of {chains} chains")),
    ]
    .into_iter()
    .flatten()
    .collect();
    let own = parts.join(", ");
    let above = if path.name().is_none() { "the metadata service's defaults" } else { "the directory above" };
    out.say(match parts.len() {
        0 => format!("{path}: new files get everything from {above}"),
        3 => format!("{path}: new files get {own}"),
        _ => format!("{path}: new files get {own}, the rest from {above}"),
    });
    Ok(())
}
