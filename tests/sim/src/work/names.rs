//! Clients of the namespace, each a process of its own.

use std::sync::Arc;
use std::time::Duration;

use catena_model::names::History;
use catena_rt::sim::SimProcess;
use catena_rt::time::{sleep, timeout};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::mount;
use crate::cluster::World;

/// The clients.
pub struct Clients {
    /// What they saw.
    pub history: Arc<History>,
    processes: Vec<SimProcess>,
    runs: Vec<catena_rt::JoinHandle<()>>,
}

impl Clients {
    /// Starts them.
    pub fn start(world: &Arc<World>, count: u32, operations: u32, pause: Duration, seed: u64) -> Clients {
        let history = Arc::new(History::default());
        let mut clients = Clients { history: history.clone(), processes: Vec::new(), runs: Vec::new() };
        for number in 0..u64::from(count) {
            let process = world.sim.process(&format!("namer{number}"));
            let (world, history) = (world.clone(), history.clone());
            let run = process.handle().spawn(async move {
                let seed = seed.wrapping_mul(77) + number;
                let mut rng = StdRng::seed_from_u64(seed);
                let catena = mount(&world, 0x2_0000 + number, seed).await;
                for _ in 0..operations {
                    sleep(Duration::from_micros(rng.random_range(0..=pause.as_micros() as u64))).await;
                    history.one(&catena, &mut rng, || world.sim.now().as_nanos() as u64).await;
                }
            });
            clients.processes.push(process);
            clients.runs.push(run);
        }
        clients
    }

    /// Waits for all. False if they take longer than `patience`.
    pub async fn finish(&mut self, patience: Duration) -> bool {
        let all = async {
            for run in self.runs.drain(..) {
                let _ = run.await;
            }
        };
        timeout(patience, all).await.is_ok()
    }
}
