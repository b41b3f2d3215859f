//! `catena admin`: what mgmtd knows, as tables or as JSON.

mod kv;
mod scrub;

use catena_proto::ids::{ChainId, TargetId};
use catena_proto::pb::{
    CreateTableRequest, MgmtdRole, Node, NodeKind, NodeState, PublicState, RecoverChainRequest,
};
use catena_proto::routing::{RoutingInfo, Target};
use serde_json::{Value, json};

use crate::args::ClusterArgs;
use crate::args::admin::{AdminCommand, ChainCommand, TablesCommand};
use crate::connect;
use crate::exit::{Exit, Failure, Result};
use crate::output::Output;
use crate::resyncs;
use crate::table::Table;
use crate::units;

/// Runs `catena admin`.
pub async fn run(command: AdminCommand, cluster: &ClusterArgs, out: Output) -> Result<()> {
    if let AdminCommand::Clients = command {
        return clients(cluster, out).await;
    }
    if let AdminCommand::Kv { command } = command {
        return kv::run(command, cluster, out).await;
    }
    if let AdminCommand::Scrub { command } = command {
        return scrub::run(command, cluster, out).await;
    }
    if let AdminCommand::Chain { command: ChainCommand::Recover { chain, target, accept_data_loss } } =
        command
    {
        if !accept_data_loss {
            let message =
                format!("what was written after target {target} left chain {chain} is lost by this");
            return Err(Failure::usage(message).hint("add --accept-data-loss to do it all the same"));
        }
        let request = RecoverChainRequest { chain, target, accept_data_loss, ..Default::default() };
        return recover_chain(cluster, request, out).await;
    }
    if let AdminCommand::Fsck(args) = command {
        return super::fsck::run(args, cluster, out).await;
    }
    if let AdminCommand::Tables {
        command: Some(TablesCommand::Create { replicas, min_nodes, targets_per_disk, table }),
    } = command
    {
        let request = CreateTableRequest {
            table: table.unwrap_or(0),
            replicas,
            targets_per_disk: targets_per_disk.unwrap_or(0),
            min_nodes: min_nodes.unwrap_or(replicas),
            seed: rand::random(),
            request: bytes::Bytes::copy_from_slice(&rand::random::<[u8; 16]>()),
            ..Default::default()
        };
        return create_table(cluster, request, out).await;
    }
    if let AdminCommand::Resync { all } = command {
        let catena = connect::client(cluster).await?;
        return resyncs::show(&catena, cluster.contact(), all, out).await;
    }
    let routing = connect::routing(cluster).await?;
    match command {
        AdminCommand::Nodes => nodes(&routing, out),
        AdminCommand::Targets { node, chain } => {
            if let Some(node) = node.filter(|node| !routing.nodes.values().any(|known| known.id == *node)) {
                return Err(unknown(format!("node {node}"), "catena admin nodes"));
            }
            if let Some(chain) = chain.filter(|chain| !routing.chains.contains_key(&ChainId(*chain))) {
                return Err(unknown(format!("chain {chain}"), "catena admin chains"));
            }
            let wanted = |target: &&Target| {
                node.is_none_or(|node| target.node.0 == node)
                    && chain.is_none_or(|chain| target.chain.0 == chain)
            };
            targets(&routing, out, wanted)
        }
        AdminCommand::Chains { degraded } => chains(&routing, out, degraded),
        AdminCommand::Tables { .. } => tables(&routing, out),
        AdminCommand::Routing => summary(&routing, out),
        AdminCommand::Clients
        | AdminCommand::Kv { .. }
        | AdminCommand::Scrub { .. }
        | AdminCommand::Chain { .. }
        | AdminCommand::Resync { .. }
        | AdminCommand::Fsck(_) => {
            unreachable!("answered above")
        }
    }
    Ok(())
}

fn unknown(what: String, list: &str) -> Failure {
    Failure::new(Exit::NotFound, format!("{what}: not in this cluster"))
        .hint(format!("`{list}` lists what is"))
}

fn kind(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::Storage => "storage",
        NodeKind::Meta => "meta",
        NodeKind::Mgmtd => "mgmtd",
        NodeKind::Unspecified => "unknown",
    }
}

fn node_state(state: NodeState) -> &'static str {
    match state {
        NodeState::Up => "up",
        NodeState::Down => "down",
        NodeState::Unspecified => "unknown",
    }
}

/// Of a mgmtd that runs: who answers, and who would take over.
fn role(node: &Node) -> Option<&'static str> {
    match (node.state(), node.role()) {
        (NodeState::Up, MgmtdRole::Primary) => Some("primary"),
        (NodeState::Up, MgmtdRole::StandBy) => Some("stand-by"),
        _ => None,
    }
}

/// A target's public state, in the words of the documentation.
pub fn public_state(state: PublicState) -> &'static str {
    match state {
        PublicState::Serving => "serving",
        PublicState::Syncing => "syncing",
        PublicState::Waiting => "waiting",
        PublicState::Lastsrv => "lastsrv",
        PublicState::Offline => "offline",
        PublicState::Unspecified => "unknown",
    }
}

fn local_state(state: catena_proto::pb::LocalState) -> &'static str {
    use catena_proto::pb::LocalState::*;
    match state {
        UpToDate => "up-to-date",
        Online => "online",
        Offline => "offline",
        Unspecified => "unknown",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

fn share(used: u64, capacity: u64) -> String {
    if capacity == 0 { "-".into() } else { format!("{:.1}%", used as f64 * 100.0 / capacity as f64) }
}

fn nodes_json(routing: &RoutingInfo) -> Value {
    let nodes = routing.nodes.values().map(|node| {
        let disks: Vec<_> = node
            .disks
            .iter()
            .map(|disk| {
                json!({"id": hex(&disk.id), "path": disk.path, "capacity": disk.capacity, "used": disk.used, "failed": disk.failed})
            })
            .collect();
        json!({
            "id": node.id, "kind": kind(node.kind()), "state": node_state(node.state()), "role": role(node), "pid": node.pid,
            "control": node.control_address, "data": node.data_address, "metrics": node.metrics_address,
            "domain": node.domain, "incarnation": format!("{:016x}", node.incarnation), "disks": disks,
        })
    });
    nodes.collect()
}

fn nodes(routing: &RoutingInfo, out: Output) {
    if out.json {
        return out.object(nodes_json(routing));
    }
    let mut table = Table::new(&[
        "NODE",
        "KIND",
        "STATE",
        "ROLE",
        "ADDRESS",
        "METRICS",
        ">PID",
        ">DISKS",
        ">USED",
        ">CAPACITY",
        ">FULL",
    ]);
    for node in routing.nodes.values() {
        let (used, capacity) =
            node.disks.iter().fold((0u64, 0u64), |(used, all), disk| (used + disk.used, all + disk.capacity));
        let failed = node.disks.iter().filter(|disk| disk.failed).count();
        let storage = node.kind() == NodeKind::Storage;
        let only_storage = |text: String| if storage { text } else { "-".into() };
        let address = if node.data_address.is_empty() { &node.control_address } else { &node.data_address };
        table.row([
            format!("n{}", node.id),
            kind(node.kind()).into(),
            node_state(node.state()).into(),
            dash(role(node).unwrap_or_default()),
            dash(address),
            dash(&node.metrics_address),
            if node.pid == 0 { "-".into() } else { node.pid.to_string() },
            only_storage(match failed {
                0 => node.disks.len().to_string(),
                failed => format!("{} ({failed} failed)", node.disks.len()),
            }),
            only_storage(units::size(used)),
            only_storage(units::size(capacity)),
            only_storage(share(used, capacity)),
        ]);
    }
    out.table(&table, "no nodes");
}

fn target_json(target: &Target) -> Value {
    json!({
        "id": target.id.0, "chain": target.chain.0, "node": target.node.0, "disk": target.disk.to_string(),
        "state": public_state(target.state), "local": local_state(target.local), "joined_at": target.joined_at.0,
        "chunks": target.chunks, "used": target.used,
    })
}

fn targets(routing: &RoutingInfo, out: Output, wanted: impl Fn(&&Target) -> bool) {
    let targets = routing.targets.values().filter(wanted);
    if out.json {
        return out.object(targets.map(target_json).collect());
    }
    let mut table = Table::new(&["TARGET", "CHAIN", "NODE", "DISK", "STATE", "LOCAL", ">CHUNKS", ">USED"]);
    for target in targets {
        table.row([
            target.id.to_string(),
            target.chain.to_string(),
            target.node.to_string(),
            target.disk.to_string()[..8].to_owned(),
            public_state(target.state).into(),
            local_state(target.local).into(),
            units::count(target.chunks),
            units::size(target.used),
        ]);
    }
    out.table(&table, "no targets; a chain table makes them (`catena dev` makes one at its first start)");
}

fn state_of(routing: &RoutingInfo, target: &TargetId) -> PublicState {
    routing.targets.get(target).map_or(PublicState::Unspecified, |target| target.state)
}

fn chains(routing: &RoutingInfo, out: Output, degraded: bool) {
    let whole = |targets: &[TargetId]| targets.iter().all(|id| state_of(routing, id) == PublicState::Serving);
    let chains = routing.chains.values().filter(|chain| !degraded || !whole(&chain.targets));
    let place = |id: &TargetId| match routing.targets.get(id) {
        Some(target) if target.state == PublicState::Serving => format!("{id}@{}", target.node),
        Some(target) => format!("{id}@{} ({})", target.node, public_state(target.state)),
        None => format!("{id} (unknown)"),
    };
    if out.json {
        let rows = chains.map(|chain| {
            let targets = chain.targets.iter().filter_map(|id| routing.targets.get(id));
            json!({
                "id": chain.id.0, "version": chain.version.0, "serving": routing.targets_in(chain.id, PublicState::Serving).count(),
                "targets": targets.map(target_json).collect::<Vec<_>>(),
            })
        });
        return out.object(rows.collect());
    }
    let mut table = Table::new(&["CHAIN", ">VERSION", ">SERVING", "TARGETS (head first)"]);
    for chain in chains {
        let serving = routing.targets_in(chain.id, PublicState::Serving).count();
        table.row([
            chain.id.to_string(),
            chain.version.0.to_string(),
            format!("{serving} of {}", chain.targets.len()),
            chain.targets.iter().map(place).collect::<Vec<_>>().join("  "),
        ]);
    }
    out.table(&table, if degraded { "every chain is whole" } else { "no chains" });
}

fn tables(routing: &RoutingInfo, out: Output) {
    if out.json {
        let rows = routing.tables.values().map(|table| {
            let chains: Vec<_> = table.chains.iter().map(|chain| chain.0).collect();
            json!({"id": table.id.0, "version": table.version, "replicas": table.replicas, "chains": chains})
        });
        return out.object(rows.collect());
    }
    let mut rows = Table::new(&["TABLE", ">VERSION", ">REPLICAS", ">CHAINS", "CHAIN IDS"]);
    for table in routing.tables.values() {
        rows.row([
            table.id.0.to_string(),
            table.version.to_string(),
            table.replicas.to_string(),
            table.chains.len().to_string(),
            ranges(&table.chains.iter().map(|chain| chain.0).collect::<Vec<_>>()),
        ]);
    }
    out.table(&rows, "no chain tables");
}

/// `1-4,7`.
fn ranges(ids: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = ids;
    while let Some(&first) = rest.first() {
        let run = rest.iter().zip(first..).take_while(|(id, expected)| **id == *expected).count();
        let last = rest[run - 1];
        let comma = if text.is_empty() { "" } else { "," };
        text += &if run == 1 { format!("{comma}{first}") } else { format!("{comma}{first}-{last}") };
        rest = &rest[run..];
    }
    text
}

fn summary(routing: &RoutingInfo, out: Output) {
    if out.json {
        let chains = routing.chains.values().map(|chain| {
            let targets: Vec<_> = chain.targets.iter().map(|target| target.0).collect();
            json!({"id": chain.id.0, "version": chain.version.0, "targets": targets})
        });
        let tables = routing.tables.values().map(|table| {
            let chains: Vec<_> = table.chains.iter().map(|chain| chain.0).collect();
            json!({"id": table.id.0, "version": table.version, "replicas": table.replicas, "chains": chains})
        });
        return out.object(json!({
            "version": routing.version.0, "cluster": routing.cluster.to_string(), "nodes": nodes_json(routing),
            "targets": routing.targets.values().map(target_json).collect::<Vec<_>>(),
            "chains": chains.collect::<Vec<_>>(), "tables": tables.collect::<Vec<_>>(),
        }));
    }
    let serving = routing.targets.values().filter(|target| target.state == PublicState::Serving).count();
    let up = routing.nodes.values().filter(|node| node.state() == NodeState::Up).count();
    let mut table = Table::new(&["", ""]);
    table.row(["cluster".into(), routing.cluster.to_string()]);
    table.row(["version".into(), routing.version.0.to_string()]);
    table.row(["nodes".into(), format!("{} ({up} up)", routing.nodes.len())]);
    table.row(["targets".into(), format!("{} ({serving} serving)", routing.targets.len())]);
    table.row(["chains".into(), routing.chains.len().to_string()]);
    table.row(["tables".into(), routing.tables.len().to_string()]);
    out.table(&table, "");
}

async fn create_table(cluster: &ClusterArgs, request: CreateTableRequest, out: Output) -> Result<()> {
    let reply = connect::mgmtd(cluster)?.create_table(request).await.map_err(Failure::from)?;
    let table = reply.table.unwrap_or_default();
    if out.json {
        out.object(json!({
            "id": table.id, "version": table.version, "replicas": table.replicas, "chains": table.chains,
            "recovery_balance": reply.recovery_balance,
        }));
        return Ok(());
    }
    out.say(format_args!(
        "chain table {} version {}: {} chains of {} replicas\nafter a disk's failure the busiest other one takes {:.2} times its even share",
        table.id,
        table.version,
        table.chains.len(),
        table.replicas,
        reply.recovery_balance,
    ));
    Ok(())
}

async fn recover_chain(cluster: &ClusterArgs, request: RecoverChainRequest, out: Output) -> Result<()> {
    let (chain, target) = (request.chain, request.target);
    let reply = connect::mgmtd(cluster)?.recover_chain(request).await.map_err(Failure::from)?;
    if out.json {
        out.object(json!({
            "chain": chain, "target": target, "before": reply.before, "after": reply.after,
            "routing_version": reply.routing_version,
        }));
        return Ok(());
    }
    match reply.before == reply.after {
        true => out.say(format_args!("chain {chain} needs no recovery and is as it was: {}", reply.after)),
        false => out.say(format_args!("chain {chain}\n  was {}\n  is  {}", reply.before, reply.after)),
    }
    Ok(())
}

async fn clients(cluster: &ClusterArgs, out: Output) -> Result<()> {
    let sessions = connect::mgmtd(cluster)?.list_clients().await.map_err(Failure::from)?.clients;
    if out.json {
        let rows = sessions.iter().map(|session| {
            json!({"client": format!("{:016x}", session.client), "description": session.description, "idle_ms": session.idle_ms})
        });
        out.object(rows.collect());
        return Ok(());
    }
    let mut table = Table::new(&["CLIENT", ">IDLE", "DESCRIPTION"]);
    for session in &sessions {
        let idle = std::time::Duration::from_millis(session.idle_ms);
        table.row([format!("{:016x}", session.client), units::duration(idle), session.description.clone()]);
    }
    out.table(&table, "no clients");
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn runs_of_ids_are_written_short() {
        assert_eq!(super::ranges(&[1, 2, 3, 7, 9, 10]), "1-3,7,9-10");
        assert_eq!(super::ranges(&[]), "");
    }
}
