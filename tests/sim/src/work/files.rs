//! Clients of files: each writes files of its own (appends, overwrites, truncates, renames, removes), closes them, and reads them back as
//! others would; in the end somebody else finds everything as it was left. Some writers die with their files open.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use catena_client::{Catena, OpenOptions, RenameMode};
use catena_net::PeerId;
use catena_proto::ids::ClientId;
use catena_proto::status::Status;
use catena_rt::sim::SimProcess;
use catena_rt::time::{sleep, timeout};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::mount;
use crate::cluster::World;

/// What a file must hold: bytes that were acknowledged. `None`: a write to it failed or was cut short, so only its size has a meaning.
type Expected = BTreeMap<String, Vec<u8>>;

/// The clients.
pub struct Clients {
    world: Arc<World>,
    /// What must be found, by path.
    expected: Arc<Mutex<Expected>>,
    /// Files of writers that died: the bytes whose writes were acknowledged.
    orphans: Arc<Mutex<Expected>>,
    /// Errors that a client was told.
    pub errors: Arc<Mutex<Vec<String>>>,
    /// What was found wrong.
    pub wrong: Arc<Mutex<Vec<String>>>,
    /// Operations so far.
    pub operations: Arc<Mutex<usize>>,
    processes: Vec<SimProcess>,
    runs: Vec<catena_rt::JoinHandle<()>>,
}

const FIRST: u64 = 0x3_0000;

impl Clients {
    /// Starts them.
    pub fn start(world: &Arc<World>, count: u32, rounds: u32, seed: u64) -> Clients {
        let mut clients = Clients {
            world: world.clone(),
            expected: Arc::default(),
            orphans: Arc::default(),
            errors: Arc::default(),
            wrong: Arc::default(),
            operations: Arc::default(),
            processes: Vec::new(),
            runs: Vec::new(),
        };
        for number in 0..u64::from(count) {
            let process = world.sim.process(&format!("writer{number}"));
            let writer = Writer {
                rng: StdRng::seed_from_u64(seed.wrapping_mul(991) + number),
                world: world.clone(),
                number,
                expected: clients.expected.clone(),
                orphans: clients.orphans.clone(),
                errors: clients.errors.clone(),
                wrong: clients.wrong.clone(),
                operations: clients.operations.clone(),
            };
            clients.runs.push(process.handle().spawn(writer.run(rounds)));
            clients.processes.push(process);
        }
        clients
    }

    /// The first one dies where it is.
    pub fn kill_one(&self) {
        if let Some(process) = self.processes.first() {
            self.world.net.kill(PeerId::Client(ClientId(FIRST)));
            process.kill();
        }
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

    /// Somebody else reads everything.
    pub async fn last_look(&self) -> Vec<String> {
        let (world, expected, orphans) =
            (self.world.clone(), self.expected.lock().clone(), self.orphans.lock().clone());
        let process = world.sim.process("reader of files");
        let look = process.handle().spawn(async move {
            let catena = mount(&world, 0xfffe, 3).await;
            let mut wrong = Vec::new();
            for (path, bytes) in expected {
                match catena.read(&*path).await {
                    Ok(found) if found == bytes => {}
                    Ok(found) => wrong.push(format!(
                        "durable: {path} is not as it was left ({} bytes found, {} left)",
                        found.len(),
                        bytes.len()
                    )),
                    Err(error) => wrong.push(format!("durable: {path} cannot be read: {error}")),
                }
            }
            for (path, bytes) in orphans {
                match catena.read(&*path).await {
                    // More may be there: what was under way.
                    Ok(found) if found.len() >= bytes.len() && found[..bytes.len()] == bytes => {}
                    Ok(found) => wrong.push(format!(
                        "durable: {path} of a dead writer has {} bytes, {} were acknowledged",
                        found.len(),
                        bytes.len()
                    )),
                    Err(error) => {
                        wrong.push(format!("durable: {path} of a dead writer cannot be read: {error}"))
                    }
                }
            }
            wrong
        });
        let found = timeout(Duration::from_secs(300), look).await;
        process.kill();
        match found {
            Ok(Ok(wrong)) => wrong,
            _ => vec!["live: files cannot be read at the end".into()],
        }
    }
}

struct Writer {
    rng: StdRng,
    world: Arc<World>,
    number: u64,
    expected: Arc<Mutex<Expected>>,
    orphans: Arc<Mutex<Expected>>,
    errors: Arc<Mutex<Vec<String>>>,
    wrong: Arc<Mutex<Vec<String>>>,
    operations: Arc<Mutex<usize>>,
}

impl Writer {
    async fn run(mut self, rounds: u32) {
        let seed = self.rng.random();
        let catena = mount(&self.world, FIRST + self.number, seed).await;
        for round in 0..rounds {
            let name = self.rng.random_range(0..2);
            let path = format!("/w{}.{name}", self.number);
            if let Err(error) = self.round(&catena, &path, round).await {
                self.errors.lock().push(format!("{path}: {error}"));
                // Nobody knows what is there now.
                self.expected.lock().remove(&path);
                self.orphans.lock().remove(&path);
                return;
            }
        }
        catena.close().await;
    }

    async fn round(&mut self, catena: &Catena, path: &str, round: u32) -> catena_client::Result<()> {
        let known = self.expected.lock().remove(path);
        let mut bytes = known.clone().unwrap_or_default();
        match self.rng.random_range(0..12) {
            0 if known.is_some() => {
                catena.remove(path).await?;
                return Ok(());
            }
            1 if known.is_some() => {
                let to = format!("/w{}.{}", self.number, self.rng.random_range(0..2));
                // Should it fail, or this writer die over it, nobody knows what is there: it may have been replaced all the same.
                self.expected.lock().remove(&to);
                self.orphans.lock().remove(&to);
                catena.rename(path, &*to, RenameMode::Replace).await?;
                self.expected.lock().insert(to, bytes);
                return Ok(());
            }
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create(true).open(catena, path).await?;
        for step in 0..self.rng.random_range(1..5_u32) {
            let pause = self.rng.random_range(0..200);
            sleep(Duration::from_millis(pause)).await;
            *self.operations.lock() += 1;
            let fill = (round * 7 + step + 1) as u8;
            match self.rng.random_range(0..8) {
                0 => {
                    let length = self.rng.random_range(0..=bytes.len() + 3000);
                    self.orphans.lock().remove(path);
                    file.truncate(length as u64).await?;
                    bytes.resize(length, 0);
                }
                1 if !bytes.is_empty() => {
                    let from = self.rng.random_range(0..bytes.len());
                    let to = self.rng.random_range(from..=bytes.len().min(from + 9000));
                    self.orphans.lock().remove(path);
                    if to > from {
                        file.write_at(from as u64, &vec![fill; to - from]).await?;
                        bytes[from..to].fill(fill);
                    }
                }
                _ => {
                    let more = vec![fill; self.rng.random_range(1..40_000)];
                    file.write_at(bytes.len() as u64, &more).await?;
                    bytes.extend_from_slice(&more);
                }
            }
            // From now on it has to survive this writer.
            self.orphans.lock().insert(path.to_owned(), bytes.clone());
        }
        file.close().await?;
        self.orphans.lock().remove(path);
        self.expected.lock().insert(path.to_owned(), bytes.clone());
        if self.rng.random_bool(0.5) {
            let found = match catena.read(path).await {
                Ok(found) => found,
                Err(error) if error.status() == Status::NotFound => Vec::new(),
                Err(error) => return Err(error),
            };
            if found != bytes {
                let (found, left) = (found.len(), bytes.len());
                self.wrong
                    .lock()
                    .push(format!("linearizable: {path}: {found} bytes read after closing it with {left}"));
            }
        }
        Ok(())
    }
}
