//! What is done to the cluster. One storage node is hurt at a time, so that no chain is asked for more than it promises; the next may be
//! hurt while the last one is still coming back. The control plane is hurt beside that: the primary mgmtd more than those that stand by,
//! meta services, and the store that they share, which is one process and must come back as it was: a key-value service, or the server of
//! FoundationDB if it is this run's.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use catena_client::Catena;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use crate::cluster::{Cluster, LEASE};
use crate::fdb::Server;
use crate::journal::Journal;

/// A full disk that nobody has felt by then gets room again.
const FELT: Duration = Duration::from_secs(12);

fn some(random: &mut StdRng, from: f64, to: f64) -> Duration {
    Duration::from_secs_f64(random.random_range(from..to))
}

/// Hurts storage nodes until the time is over.
pub async fn storage(cluster: &Cluster, seed: u64, time: Duration, journal: &Journal) {
    let end = Instant::now() + time;
    let mut random = StdRng::seed_from_u64(seed);
    let lease = LEASE.as_secs_f64();
    while Instant::now() < end {
        sleep(some(&mut random, 0.3, 2.5 * lease)).await;
        let names = cluster.names("storage");
        let at = random.random_range(0..names.len());
        let name = &names[at];
        let disk = cluster.disks.iter().find(|disk| disk.path.ends_with(name));
        match random.random_range(0..100) {
            0..45 => {
                if cluster.kill(name) {
                    journal.fault("kills", format!("kill -9 {name}"));
                }
            }
            45..70 => {
                let pause = some(&mut random, 0.05, 2.5 * lease);
                journal.fault("pauses", format!("SIGSTOP {name} for {:.2} s", pause.as_secs_f64()));
                cluster.pause(name, pause).await;
            }
            70..80 => {
                journal.fault("power cuts", "kill -9 of every storage service");
                for name in &names {
                    cluster.kill(name);
                }
                // Their supervisor waits longer before each restart, and one that was killed often is late.
                sleep(3 * LEASE).await;
            }
            80..90 => {
                let Some(disk) = disk.filter(|disk| disk.fillable()) else { continue };
                let felt = some(&mut random, 0.2, 2.0 * lease);
                if disk.fill() {
                    journal.fault("full disks", format!("the disk of {name} is full"));
                    let (before, since) = (journal.refused.load(Relaxed), Instant::now());
                    cluster.full.fetch_add(1, Relaxed);
                    // Until it is felt, then a while longer.
                    while journal.refused.load(Relaxed) == before && since.elapsed() < FELT {
                        sleep(Duration::from_millis(50)).await;
                    }
                    sleep(felt).await;
                    let refused = journal.refused.load(Relaxed) - before;
                    let took = since.elapsed().as_secs_f64();
                    journal.say(format!("room again for {name} after {took:.1} s, {refused} refused"));
                    cluster.full.fetch_sub(1, Relaxed);
                }
                disk.unfill();
            }
            _ => {
                let Some(disk) = disk.filter(|disk| disk.lockable) else { continue };
                let locked = some(&mut random, 0.5, 2.0 * lease);
                if disk.lock(true) {
                    journal.fault(
                        "read-only disks",
                        format!("the disk of {name} is read-only for {:.2} s", locked.as_secs_f64()),
                    );
                    sleep(locked).await;
                }
                disk.lock(false);
                // A failed disk stays out of service until its service starts anew.
                cluster.kill(name);
            }
        }
    }
}

/// Hurts mgmtd, meta and what they keep their state in until the time is over.
pub async fn control(cluster: &Cluster, catena: &Catena, seed: u64, time: Duration, journal: &Journal) {
    let end = Instant::now() + time;
    let mut random = StdRng::seed_from_u64(seed);
    let lease = LEASE.as_secs_f64();
    loop {
        sleep(some(&mut random, 2.0 * lease, 6.0 * lease)).await;
        if Instant::now() >= end {
            return;
        }
        let any =
            |names: Vec<String>, random: &mut StdRng| names[random.random_range(0..names.len())].clone();
        let (kind, name) = match random.random_range(0..100) {
            0..40 => match cluster.primary(catena).await {
                Some(name) => ("primary", name),
                None => continue,
            },
            40..50 => ("mgmtd", any(cluster.names("mgmtd"), &mut random)),
            50..80 => ("meta", any(cluster.names("meta"), &mut random)),
            _ => match &cluster.server {
                Some(server) => {
                    hurt(server, &mut random, journal).await;
                    continue;
                }
                None if cluster.names("kv").is_empty() => continue,
                None => ("kv", "kv".to_owned()),
            },
        };
        if random.random_bool(0.5) {
            if cluster.kill(&name) {
                journal.fault(kind_of(kind, true), format!("kill -9 {name} ({kind})"));
            }
            continue;
        }
        let pause = match kind {
            // Nobody takes over from it: longer than a call to it waits, and the cluster goes on afterwards.
            "kv" => some(&mut random, 0.05, 1.5 * lease),
            _ => some(&mut random, 0.05, 3.0 * lease),
        };
        let what = format!("SIGSTOP {name} ({kind}) for {:.2} s", pause.as_secs_f64());
        journal.fault(kind_of(kind, false), what);
        cluster.pause(&name, pause).await;
    }
}

/// Hurts FoundationDB's server. Nobody takes over from it, so it is not away for longer than the key-value service would be.
async fn hurt(server: &Server, random: &mut StdRng, journal: &Journal) {
    let lease = LEASE.as_secs_f64();
    if random.random_bool(0.5) {
        let down = some(random, 0.0, lease);
        let what = format!("kill -9 of fdbserver, started again after {:.2} s", down.as_secs_f64());
        journal.fault("fdbserver kills", what);
        if let Err(what) = server.kill(down).await {
            journal.say(what);
        }
    } else {
        let pause = some(random, 0.05, 1.5 * lease);
        journal.fault("fdbserver pauses", format!("SIGSTOP fdbserver for {:.2} s", pause.as_secs_f64()));
        server.pause(pause).await;
    }
}

fn kind_of(kind: &str, kill: bool) -> &'static str {
    match (kind, kill) {
        ("primary", true) => "primary kills",
        ("primary", false) => "primary pauses",
        ("mgmtd", true) => "mgmtd kills",
        ("mgmtd", false) => "mgmtd pauses",
        ("meta", true) => "meta kills",
        ("meta", false) => "meta pauses",
        (_, true) => "kv kills",
        (_, false) => "kv pauses",
    }
}
