//! `bench failover`: how long things stand still when a service is lost: the node of a chain's head, the primary mgmtd, a metadata
//! service. In a cluster of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use catena_client::{Catena, File, LayoutChoice, OpenOptions};
use catena_mgmtd_client::{CallOptions, MgmtdClient};
use catena_proto::ids::{ChainId, ChainVersion, NodeId};
use catena_proto::pb::{MgmtdRole, Node};
use catena_proto::routing::{PublicState, RoutingInfo};
use serde_json::json;
use tokio::time::timeout;

use crate::args::bench::{FailoverArgs, Loss};
use crate::cmd::bench::pulse::Pulse;
use crate::cmd::fs::path::Remote;
use crate::connect;
use crate::content::Content;
use crate::exit::{Exit, Failure, Result};
use crate::local::cluster::LocalCluster;
use crate::local::directory::Directory;
use crate::local::place::Place;
use crate::local::session::{storage_name, with_cluster};
use crate::local::shape::Wish;
use crate::output::Output;
use crate::pump::{self, Source};
use crate::signals::Stop;
use crate::table::Table;
use crate::{progress, units};

/// One chunk of this size is written and read.
const CHUNK: u64 = 1 << 20;
const BLOCK: usize = 4096;
const ROOM: u64 = 256 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
/// Of undisturbed work before a loss, and after everything goes on again.
const CALM: Duration = Duration::from_secs(1);
/// One mgmtd that says nothing for so long is left for the next: short, so that it does not blur what is measured.
const PROBE: Duration = Duration::from_millis(250);
/// The project's own bar: two leases.
const BAR: f64 = 2.0;

/// Runs `bench failover`.
pub async fn run(args: FailoverArgs, out: Output) -> Result<()> {
    let mut stop = Stop::new()?;
    let loses = |what: Loss| args.what.contains(&what);
    let wish = Wish {
        nodes: Some(args.nodes),
        replicas: Some(args.replicas),
        mgmtd: Some(if loses(Loss::Mgmtd) { 3 } else { 1 }),
        meta: Some(if loses(Loss::Meta) { 2 } else { 1 }),
        ..Wish::default()
    };
    let shape = wish.shape()?;
    if args.replicas < 2 {
        return Err(Failure::usage("--replicas 1: nobody takes over").hint("try --replicas 3"));
    }
    let place = Place::make(
        args.dir.as_deref(),
        "bench",
        ROOM * u64::from(shape.nodes),
        "a few chunks and the stores",
    )?;
    let outcome = async {
        let mut directory = Directory::open(&place.path, &wish)?;
        directory.lease = Some(args.lease);
        with_cluster(directory, &mut stop, async |cluster| measure(&args, cluster).await).await
    };
    let outcome = outcome.await;
    let removed = place.finish(args.keep);
    let figures = outcome?;
    removed?;
    report(&args, &figures, out)
}

/// What one loss did to one thing.
struct Figure {
    round: u32,
    lost: Loss,
    service: String,
    what: &'static str,
    /// How long it stood still.
    after: Duration,
}

/// The figures' names; what is told of each when all rounds are over.
const WRITES: &str = "writes go on";
const READ: &str = "longest read";
const PRIMARY: &str = "another mgmtd answers";
const CHAIN: &str = "a chain changes";
const WRITE: &str = "longest write";
const NAMES: &str = "metadata calls go on";

async fn measure(args: &FailoverArgs, cluster: &mut LocalCluster) -> Result<Vec<Figure>> {
    let catena = connect::to(cluster.directory.cluster(), connect::wide(0)).await?;
    let path = Remote::new(Path::new("/bench.bin"))?;
    let layout = LayoutChoice { stripe: Some(1), chunk_size: Some(CHUNK as u32), ..LayoutChoice::default() };
    let options = OpenOptions::new().read(true).write(true).create_new(true).layout(layout);
    let file = options.open(&catena, &path).await?;
    let source = Source::Checked(Content::new(1));
    pump::write_block(&file, &source, 0, CHUNK as usize).await?;
    let chain = *file.chains().first().ok_or_else(|| Failure::failed("the file has no chain"))?;
    let [writes, reads] = [writing(&file), reading(&file)];
    let names = naming(&catena).await?;
    let mut bench = Bench { args, catena: &catena, chain, writes, reads, names, figures: Vec::new() };
    for round in 1..=args.rounds {
        for &lost in &args.what {
            let step = progress::step(format!("round {round} of {}: {}", args.rounds, lost.told()));
            tokio::time::sleep(CALM).await;
            bench.lose(cluster, round, lost).await?;
            step.set_message(format!("round {round}: waiting for full strength"));
            // A paused node's lease may still stand, and nobody have noticed yet.
            tokio::time::sleep(CALM).await;
            cluster.full_strength(PATIENCE).await?;
            step.finish_and_clear();
        }
    }
    let Bench { writes, reads, names, figures, .. } = bench;
    for pulse in [writes, reads, names] {
        pulse.end().await?;
    }
    file.close().await?;
    catena.close().await;
    Ok(figures)
}

/// A cluster at work.
struct Bench<'a> {
    args: &'a FailoverArgs,
    catena: &'a Catena,
    chain: ChainId,
    writes: Pulse,
    reads: Pulse,
    names: Pulse,
    figures: Vec<Figure>,
}

impl Bench<'_> {
    /// Loses a service, sees how everything goes on, and brings it back.
    async fn lose(&mut self, cluster: &mut LocalCluster, round: u32, lost: Loss) -> Result<()> {
        let service = self.choose(cluster, lost)?;
        for pulse in [&self.writes, &self.reads, &self.names] {
            pulse.forget();
        }
        let at = Instant::now();
        if self.args.pause {
            cluster.freeze(&service, true)?;
        } else {
            cluster.kill(&service).await?;
        }
        let times = match lost {
            Loss::Storage => {
                let writes = self.writes.goes_on_after(at, PATIENCE).await?;
                tokio::time::sleep(CALM).await;
                vec![(WRITES, writes), (READ, self.reads.longest())]
            }
            Loss::Mgmtd => {
                let (answers, changes) = self.mgmtd_again(cluster, at).await?;
                self.writes.goes_on_after(Instant::now(), PATIENCE).await?;
                vec![(PRIMARY, answers), (CHAIN, changes), (WRITE, self.writes.longest())]
            }
            Loss::Meta => vec![(NAMES, self.names.goes_on_after(at, PATIENCE).await?)],
        };
        let figure = |(what, after)| Figure { round, lost, service: service.clone(), what, after };
        self.figures.extend(times.into_iter().map(figure));
        if self.args.pause {
            // Not before it was given up: what comes back is a service that others have gone on without.
            cluster.freeze(&service, false)?;
        } else {
            cluster.start_again(&service)?;
        }
        Ok(())
    }

    /// Whom to lose: the head of the file's chain, the primary, the metadata service that the client uses.
    fn choose(&self, cluster: &LocalCluster, lost: Loss) -> Result<String> {
        let routing = self.catena.routing().current();
        let named = |is: &dyn Fn(&Node) -> bool| {
            let node = routing.nodes.values().find(|node| is(node))?.id;
            cluster.services().find(|(spec, _)| spec.node == node).map(|(spec, _)| spec.name.clone())
        };
        let name = match lost {
            Loss::Storage => head(&routing, self.chain).map(storage_name),
            Loss::Mgmtd => named(&|node| node.role() == MgmtdRole::Primary),
            Loss::Meta => {
                let used = self.catena.meta().server();
                named(&|node| used.as_ref() == Some(&node.control_address))
            }
        };
        name.ok_or_else(|| Failure::failed(format!("{}: nobody to lose", lost.told())))
    }

    /// How long it takes until another mgmtd answers and a chain changes. For that, a storage service that is not in the file's chain if
    /// there is one is started anew at the moment of the loss: it may not serve again before its targets have left their chains.
    async fn mgmtd_again(&self, cluster: &mut LocalCluster, at: Instant) -> Result<(Duration, Duration)> {
        let routing = self.catena.routing().current();
        let mine: Vec<NodeId> = routing.path(self.chain).iter().map(|target| target.node).collect();
        let mut targets: Vec<_> = routing.targets.values().collect();
        // Those of this chain come last, and of them its tail first.
        targets.sort_by_key(|target| {
            mine.iter().rev().position(|node| *node == target.node).map_or(0, |at| at + 1)
        });
        let target = targets.first().ok_or_else(|| Failure::failed("the cluster has no target"))?;
        let (chain, old) = (target.chain, version(&routing, target.chain));
        let bystander = storage_name(target.node);
        cluster.kill(&bystander).await?;
        cluster.start_again(&bystander)?;
        let mgmtd = self.catena.mgmtd().ok_or_else(|| Failure::failed("the client knows no mgmtd"))?;
        let mgmtd = mgmtd.with_options(CallOptions::within(PATIENCE, PROBE));
        ask(&mgmtd).await?;
        let answers = at.elapsed();
        let changed = async {
            while version(&ask(&mgmtd).await?, chain) <= old {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<_, Failure>(at.elapsed())
        };
        let changed = timeout(PATIENCE, changed).await;
        let changes =
            changed.map_err(|_| Failure::new(Exit::Unreachable, "no chain changes after the loss"))?;
        Ok((answers, changes?))
    }
}

fn head(routing: &RoutingInfo, chain: ChainId) -> Option<NodeId> {
    routing.targets_in(chain, PublicState::Serving).next().map(|head| head.node)
}

fn version(routing: &RoutingInfo, chain: ChainId) -> ChainVersion {
    routing.chains.get(&chain).map(|chain| chain.version).unwrap_or_default()
}

/// What the primary knows now.
async fn ask(mgmtd: &MgmtdClient) -> Result<RoutingInfo> {
    let reply = mgmtd.get_routing(0, Duration::ZERO).await?;
    RoutingInfo::try_from(reply.routing.unwrap_or_default())
        .map_err(|error| Failure::failed(error.to_string()))
}

fn writing(file: &File) -> Pulse {
    let source = Arc::new(Source::Checked(Content::new(1)));
    let mut offsets = (0..CHUNK).step_by(BLOCK).cycle();
    let file = file.clone();
    Pulse::start("writes", move || {
        let (file, source, offset) = (file.clone(), source.clone(), offsets.next().unwrap_or(0));
        async move { pump::write_block(&file, &source, offset, BLOCK).await.map(drop) }
    })
}

fn reading(file: &File) -> Pulse {
    let content = Arc::new(Content::new(1));
    let mut offsets = (0..CHUNK).step_by(BLOCK).cycle();
    let file = file.clone();
    Pulse::start("reads", move || {
        let (file, content, offset) = (file.clone(), content.clone(), offsets.next().unwrap_or(0));
        async move { pump::read_block(&file, Some(&content), offset, BLOCK).await.map(drop) }
    })
}

/// Directories that are made, seen and removed.
async fn naming(catena: &Catena) -> Result<Pulse> {
    let base = Remote::new(Path::new("/bench"))?;
    catena.mkdir(&base, 0o755).await?;
    let (catena, made) = (catena.clone(), Arc::new(AtomicU64::new(0)));
    Ok(Pulse::start("metadata calls", move || {
        let path = base.join(made.fetch_add(1, Relaxed).to_string().as_bytes());
        let catena = catena.clone();
        async move {
            catena.mkdir(&path, 0o755).await?;
            catena.stat(&path).await?;
            catena.remove_dir(&path).await?;
            Ok(())
        }
    }))
}

/// One thing that losses of one kind did, over all rounds.
struct Worst {
    lost: Loss,
    what: &'static str,
    after: Duration,
}

fn worst(figures: &[Figure]) -> Vec<Worst> {
    let mut worst: Vec<Worst> = Vec::new();
    for figure in figures {
        match worst.iter_mut().find(|known| (known.lost, known.what) == (figure.lost, figure.what)) {
            Some(known) => known.after = known.after.max(figure.after),
            None => worst.push(Worst { lost: figure.lost, what: figure.what, after: figure.after }),
        }
    }
    worst
}

fn report(args: &FailoverArgs, figures: &[Figure], out: Output) -> Result<()> {
    let leases = |time: Duration| time.as_secs_f64() / args.lease.as_secs_f64();
    let worst = worst(figures);
    let met = worst.iter().all(|worst| leases(worst.after) < BAR);
    let mut table = Table::new(&[">ROUND", "LOST", "SERVICE", "WHAT", ">AFTER", ">LEASES"]);
    for figure in figures {
        table.row([
            figure.round.to_string(),
            figure.lost.told().into(),
            figure.service.clone(),
            figure.what.into(),
            units::duration(figure.after),
            format!("{:.2}", leases(figure.after)),
        ]);
    }
    out.say(table.to_string().trim_end());
    let how = if args.pause { "paused (SIGSTOP)" } else { "killed (SIGKILL)" };
    out.say(format_args!(
        "\n{how}, lease {}; the worst of {} rounds:",
        units::duration(args.lease),
        args.rounds
    ));
    for worst in &worst {
        out.say(format_args!(
            "  {}, {}: {}, {:.2} leases; bar {BAR:.0} leases: {}",
            worst.lost.told(),
            worst.what,
            units::duration(worst.after),
            leases(worst.after),
            if leases(worst.after) < BAR { "met" } else { "missed" },
        ));
    }
    if out.json {
        let seconds = |time: Duration| units::round3(time.as_secs_f64());
        let rows = figures.iter().map(|figure| {
            json!({
                "round": figure.round, "lost": figure.lost.name(), "service": figure.service, "what": figure.what,
                "after_s": seconds(figure.after), "leases": units::round3(leases(figure.after)),
            })
        });
        let sums = worst.iter().map(|worst| {
            json!({
                "lost": worst.lost.name(), "what": worst.what, "after_s": seconds(worst.after),
                "leases": units::round3(leases(worst.after)), "met": leases(worst.after) < BAR,
            })
        });
        out.object(json!({
            "op": "failover", "how": if args.pause { "pause" } else { "kill" }, "lease_s": seconds(args.lease),
            "rounds": rows.collect::<Vec<_>>(), "worst": sums.collect::<Vec<_>>(),
            "bar_s": seconds(args.lease.mul_f64(BAR)), "met": met,
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_all_rounds_is_told_for_each_thing_that_was_lost() {
        let figure = |round, lost, what, ms| Figure {
            round,
            lost,
            service: "x".into(),
            what,
            after: Duration::from_millis(ms),
        };
        let told = worst(&[
            figure(1, Loss::Storage, WRITES, 5),
            figure(1, Loss::Storage, READ, 1),
            figure(1, Loss::Meta, NAMES, 7),
            figure(2, Loss::Storage, WRITES, 9),
            figure(2, Loss::Storage, READ, 0),
        ]);
        let told: Vec<_> =
            told.iter().map(|worst| (worst.lost, worst.what, worst.after.as_millis())).collect();
        assert_eq!(told, [(Loss::Storage, WRITES, 9), (Loss::Storage, READ, 1), (Loss::Meta, NAMES, 7)]);
    }
}
