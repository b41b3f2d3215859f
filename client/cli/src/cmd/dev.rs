//! `catena dev`: a persistent cluster of child processes in the foreground.

use serde_json::json;

use crate::args::local::DevArgs;
use crate::exit::Result;
use crate::local::cluster::LocalCluster;
use crate::local::directory::{Directory, NO_NODE};
use crate::local::shape::Wish;
use crate::local::transport::LocalTransport;
use crate::output::Output;
use crate::signals::Stop;
use crate::supervise::{Event, State, last_words};
use crate::table::Table;
use crate::units;

/// Runs `catena dev` until it is told to stop.
pub async fn run(args: DevArgs, out: Output) -> Result<()> {
    let mut stop = Stop::new()?;
    let wish = Wish {
        nodes: args.nodes,
        mgmtd: args.mgmtd,
        meta: args.meta,
        replicas: args.replicas,
        disks_per_node: args.disks_per_node,
        chunk_size: args.chunk_size,
        disk_capacity: args.disk_capacity,
        store: args.store,
    };
    let mut directory = Directory::open(&args.dir, &wish)?;
    directory.lease = args.lease;
    directory.set_transport(LocalTransport::wished(&args.transport)?)?;
    let mut cluster = LocalCluster::start(directory, &args.log_level, stop.wait()).await?;
    announce(&cluster, out);
    loop {
        tokio::select! {
            () = stop.wait() => break,
            Some(event) = cluster.events.recv() => tell(&event),
        }
    }
    eprintln!("catena: stopping; once more Ctrl-C kills");
    tokio::select! {
        _ = cluster.stop() => eprintln!("catena: stopped; `catena dev --dir {}` starts it again", args.dir.display()),
        () = stop.wait() => eprintln!("catena: killed"),
    }
    Ok(())
}

fn announce(cluster: &LocalCluster, out: Output) {
    let directory = &cluster.directory;
    let shape = directory.shape();
    let file = directory.cluster_file();
    if out.json {
        let services: Vec<_> = cluster
            .services()
            .map(|(spec, state)| {
                let pid = if let State::Running(pid) = state { pid } else { 0 };
                let node = (spec.node != NO_NODE).then_some(spec.node);
                json!({
                    "name": spec.name, "kind": spec.kind.name(), "node": node, "pid": pid, "pid_file": spec.pid,
                    "address": cluster.address(spec), "log": spec.log,
                })
            })
            .collect();
        out.object(json!({
            "ok": true, "cluster": file, "nodes": shape.nodes, "replicas": shape.replicas, "services": services,
        }));
        return;
    }
    let mut table = Table::new(&["SERVICE", "NODE", ">PID", "ADDRESS", "METRICS"]);
    for (spec, state) in cluster.services() {
        let pid = if let State::Running(pid) = state { pid.to_string() } else { "-".into() };
        table.row([
            spec.name.clone(),
            if spec.node == NO_NODE { "-".into() } else { format!("n{}", spec.node) },
            pid,
            cluster.address(spec),
            cluster.metrics_address(spec.node),
        ]);
    }
    out.table(&table, "");
    let made = if directory.fresh { "made" } else { "started again" };
    out.say(format_args!(
        "\nCluster {made} in {}: {} storage nodes, {} replicas, chunks of {}, {} chains.\nTry, in another terminal:\n\n    export CATENA_CLUSTER={}\n    catena fs put FILE /\n    catena fs ls -l /\n    catena fs layout /FILE\n    catena admin chains\n\nCtrl-C stops everything; the files stay.",
        directory.root().display(),
        shape.nodes,
        shape.replicas,
        units::size(u64::from(shape.chunk_size)),
        cluster.routing.chains.len(),
        file.display(),
    ));
}

fn tell(event: &Event) {
    match event {
        Event::Died { name, how, again_in, log } => {
            eprintln!(
                "catena: {name} {how}; starting it again in {}{}",
                units::duration(*again_in),
                last_words(log)
            );
        }
        Event::Restarted { name, pid } => eprintln!("catena: {name} runs again (process {pid})"),
    }
}
