//! Clients of the namespace: a few directories, a few names, many hands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use catena_client::{Catena, FileType, RenameMode};
use catena_proto::status::Status;
use catena_rt::sim::SimProcess;
use catena_rt::time::{sleep, timeout};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::mount;
use crate::cluster::World;
use crate::model::directory::{Ask, Entry, Op, Place, Told};
use crate::model::linear::Call;

const DIRECTORIES: u8 = 2;
const NAMES: u8 = 3;

/// Calls of all clients.
#[derive(Default)]
pub struct History {
    /// In the order in which they began.
    pub calls: Mutex<Vec<Call<Op>>>,
    marks: AtomicU32,
    /// Errors that a client was told although the call should have succeeded in the end.
    pub errors: Mutex<Vec<String>>,
}

/// The clients.
pub struct Clients {
    /// What they saw.
    pub history: Arc<History>,
    processes: Vec<SimProcess>,
    runs: Vec<catena_rt::JoinHandle<()>>,
}

fn path((directory, name): Place) -> String {
    match name {
        None => format!("/d{directory}"),
        Some(name) => format!("/d{directory}/n{name}"),
    }
}

fn draw(rng: &mut StdRng, marks: &AtomicU32) -> Ask {
    let directory = |rng: &mut StdRng| rng.random_range(0..DIRECTORIES);
    let place = |rng: &mut StdRng| (rng.random_range(0..DIRECTORIES), Some(rng.random_range(0..NAMES)));
    match rng.random_range(0..16) {
        0..2 => Ask::Mkdir(directory(rng)),
        2 => Ask::Rmdir(directory(rng)),
        3..7 => Ask::Create(place(rng), marks.fetch_add(1, Relaxed) % 0o777 + 1),
        7 => Ask::Unlink(place(rng)),
        8..11 => Ask::Rename(place(rng), place(rng)),
        11 => Ask::Link(place(rng), place(rng)),
        12..14 => Ask::Stat(place(rng)),
        _ => Ask::List(directory(rng)),
    }
}

async fn carry_out(catena: &Catena, ask: &Ask) -> Result<Told, catena_client::Error> {
    let done = |_| Told::Done;
    match ask {
        Ask::Mkdir(directory) => catena.mkdir(path((*directory, None)), 0o777).await.map(done),
        Ask::Rmdir(directory) => catena.remove_dir(path((*directory, None))).await.map(|()| Told::Done),
        Ask::Create(place, mark) => catena.mknod(path(*place), FileType::File, *mark, 0).await.map(done),
        Ask::Unlink(place) => catena.remove(path(*place)).await.map(|()| Told::Done),
        Ask::Rename(from, to) => catena.rename(path(*from), path(*to), RenameMode::Replace).await.map(done),
        Ask::Link(from, to) => catena.link(path(*from), path(*to)).await.map(done),
        Ask::Stat(place) => catena.stat(path(*place)).await.map(|stat| {
            Told::Is(if stat.kind == FileType::Directory { Entry::Directory } else { Entry::File(stat.mode) })
        }),
        Ask::List(directory) => {
            let mut listing = catena.read_dir(path((*directory, None)), false);
            let mut names = Vec::new();
            while let Some(entry) = listing.next().await? {
                names.extend(entry.name.last().map(|digit| digit - b'0'));
            }
            names.sort_unstable();
            Ok(Told::Names(names))
        }
    }
}

/// What a call may be refused with for good.
fn is_an_answer(status: Status) -> bool {
    matches!(
        status,
        Status::NotFound | Status::Exists | Status::NotEmpty | Status::NotDirectory | Status::IsDirectory
    )
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
                    let ask = draw(&mut rng, &history.marks);
                    one(&world, &history, &catena, ask).await;
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

async fn one(world: &World, history: &History, catena: &Catena, ask: Ask) {
    let at = {
        let mut calls = history.calls.lock();
        calls.push(Call { begun: world.sim.now().as_nanos() as u64, ended: None, op: (ask.clone(), None) });
        calls.len() - 1
    };
    let told = match carry_out(catena, &ask).await {
        Ok(told) => Some(told),
        Err(error) if is_an_answer(error.status()) => Some(Told::No(error.status())),
        Err(error) => {
            history.errors.lock().push(format!("{ask:?}: {error}"));
            None
        }
    };
    if told.is_some() {
        let call = &mut history.calls.lock()[at];
        call.ended = Some(world.sim.now().as_nanos() as u64);
        call.op.1 = told;
    }
}
