//! What is done to the cluster. One storage node is hurt at a time, so that no chain is asked for more than it promises; the next may be
//! hurt while the last one is still coming back. The control plane is hurt beside that.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use crate::cluster::{Cluster, LEASE};
use crate::journal::Journal;

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
        let names = cluster.names(true);
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
                let full = some(&mut random, 0.5, 2.0 * lease);
                if disk.fill() {
                    journal.fault(
                        "full disks",
                        format!("the disk of {name} is full for {:.2} s", full.as_secs_f64()),
                    );
                    sleep(full).await;
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

/// Hurts mgmtd and meta until the time is over.
pub async fn control(cluster: &Cluster, seed: u64, time: Duration, journal: &Journal) {
    let end = Instant::now() + time;
    let mut random = StdRng::seed_from_u64(seed);
    let lease = LEASE.as_secs_f64();
    loop {
        sleep(some(&mut random, 2.0 * lease, 8.0 * lease)).await;
        if Instant::now() >= end {
            return;
        }
        let names = cluster.names(false);
        let name = &names[random.random_range(0..names.len())];
        if random.random_bool(0.6) {
            if cluster.kill(name) {
                journal.fault("control kills", format!("kill -9 {name}"));
            }
        } else {
            let pause = some(&mut random, 0.05, 2.5 * lease);
            journal.fault("control pauses", format!("SIGSTOP {name} for {:.2} s", pause.as_secs_f64()));
            cluster.pause(name, pause).await;
        }
    }
}
