//! `catena rdma check`: what this machine's RDMA can do, looked at and tried.

mod list;
mod probe;

use std::sync::Arc;

use catena_net::{Transport, TransportConfig, TransportKind};
use catena_verbs::{DeviceInfo, Provider, ibv};
use serde_json::json;

use crate::args::rdma::{CheckArgs, RdmaCommand};
use crate::exit::{Exit, Failure, Result};
use crate::output::Output;
use crate::signals::Stop;
use crate::units;

/// Runs `catena rdma`.
pub async fn run(command: RdmaCommand, out: Output) -> Result<()> {
    let RdmaCommand::Check(args) = command;
    let provider = ibv::provider().map_err(|error| Failure::failed(error.to_string()))?;
    let devices = provider.devices().map_err(|error| Failure::failed(error.to_string()))?;
    list::print(&devices, out);
    let mut stop = Stop::new()?;
    match (&args.serve, &args.peer) {
        (Some(address), _) => serve(provider, &args, address, &mut stop).await,
        (None, Some(address)) => {
            let transport = open(provider, &args, args.device.clone(), false)?;
            let figures = tokio::select! {
                figures = probe::measure(transport, address, &args) => figures?,
                () = stop.wait() => return Err(Failure::interrupted()),
            };
            out.say(format!("\n{address}: the way is open\n{figures}"));
            if out.json {
                let ports = list::json(&devices);
                out.object(json!({ "devices": ports, "peer": address, "figures": figures.json() }));
            }
            Ok(())
        }
        (None, None) => loops(&provider, &devices, &args, out, &mut stop).await,
    }
}

/// Every chosen port with itself.
async fn loops(
    provider: &Arc<dyn Provider>,
    devices: &[DeviceInfo],
    args: &CheckArgs,
    out: Output,
    stop: &mut Stop,
) -> Result<()> {
    let ports = match args.device.is_empty() {
        false => args.device.clone(),
        true => list::active(devices),
    };
    if ports.is_empty() {
        let message =
            "no port is active: bring the link up (`ip link set DEVICE up`, `ibstat`), then check again";
        return Err(Failure::failed(message));
    }
    let mut results = Vec::new();
    let mut failed = Vec::new();
    for port in ports {
        let looped = async {
            let server = open(provider.clone(), args, vec![port.clone()], true)?;
            let client = open(provider.clone(), args, vec![port.clone()], false)?;
            let listener = probe::listen(&*server, "127.0.0.1:0").await?;
            probe::measure(client, &listener.address(), args).await
        };
        let figures = tokio::select! {
            figures = looped => figures,
            () = stop.wait() => return Err(Failure::interrupted()),
        };
        match figures {
            Ok(figures) => {
                out.say(format!("\n{port} with itself\n{figures}"));
                results.push(json!({ "port": port, "figures": figures.json() }));
            }
            Err(failure) => {
                eprintln!("\n{port} with itself: {failure}");
                failed.push(port);
            }
        }
    }
    if out.json {
        out.object(json!({ "ok": failed.is_empty(), "devices": list::json(devices), "loops": results }));
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(Exit::Failed, format!("{} cannot talk to itself", failed.join(", ")))
            .hint("docs/rdma.md says what to look at")),
    }
}

/// Answers until told to stop.
async fn serve(provider: Arc<dyn Provider>, args: &CheckArgs, address: &str, stop: &mut Stop) -> Result<()> {
    let transport = open(provider, args, args.device.clone(), true)?;
    let listener = probe::listen(&*transport, address).await?;
    let at = listener.address();
    eprintln!(
        "catena: answering checks at {at} until Ctrl-C; on another machine: catena rdma check --peer {}",
        at.trim_start_matches("rdma://")
    );
    stop.wait().await;
    let stats = listener.stats();
    eprintln!(
        "catena: {} connections, {} sent, {} received, {} copied",
        stats.accepted,
        units::size(stats.all.wire_sent),
        units::size(stats.all.wire_received),
        units::size(stats.all.copied)
    );
    Ok(())
}

fn open(
    provider: Arc<dyn Provider>,
    args: &CheckArgs,
    devices: Vec<String>,
    server: bool,
) -> Result<Arc<dyn Transport>> {
    let config = TransportConfig {
        kind: TransportKind::Rdma,
        devices,
        gid_index: args.gid_index,
        pkey_index: args.pkey_index,
        mtu: args.mtu,
        busy_poll_us: args.busy_poll_us,
        ..TransportConfig::default()
    };
    probe::transport(provider, &config, server)
}
