//! The workload: several clients, each the only writer of its own files and of its own directory, all reading everybody's files, and all
//! of them together at the same names in the directories that they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use catena_client::{Catena, File, LayoutChoice, OpenOptions, Status};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::journal::Journal;
use crate::logs::{Logs, Step};
use crate::model::{BLOCK, Model};
use crate::names::Names;
use crate::shared;

const CLIENTS: usize = 3;
const FILES: usize = 2;
/// Blocks of a file, and of one operation at most.
const BLOCKS: usize = 1024;
const LONGEST: usize = 80;
/// Smaller than an operation can be, so that some cross chunks.
const CHUNK: u32 = 256 << 10;

/// Clients at work.
pub struct Work {
    shared: Arc<Shared>,
    clients: Vec<Catena>,
    tasks: parking_lot::Mutex<Vec<JoinHandle<Kept>>>,
    kept: parking_lot::Mutex<Vec<Kept>>,
    failure: watch::Receiver<Option<String>>,
}

/// What a task knows at its end of what must be there.
enum Kept {
    Nothing,
    Names(Names),
    Logs(Logs),
}

struct Shared {
    models: Vec<Model>,
    journal: Arc<Journal>,
    done: AtomicBool,
    failure: watch::Sender<Option<String>>,
}

fn path(file: usize) -> String {
    format!("/file-{file}")
}

impl Work {
    pub async fn start(cluster: &Cluster, seed: u64, journal: &Arc<Journal>) -> Result<Work, String> {
        let (sender, failure) = watch::channel(None);
        let shared = Arc::new(Shared {
            models: (0..CLIENTS * FILES).map(|file| Model::new(file as u32, BLOCKS)).collect(),
            journal: journal.clone(),
            done: AtomicBool::new(false),
            failure: sender,
        });
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(cluster.client().await?);
        }
        let layout = LayoutChoice { chunk_size: Some(CHUNK), ..LayoutChoice::default() };
        let options = OpenOptions::new().read(true).write(true).create_new(true).layout(layout);
        for file in 0..CLIENTS * FILES {
            let file = options
                .open(&clients[file % CLIENTS], path(file))
                .await
                .map_err(|error| error.to_string())?;
            file.truncate((BLOCKS * BLOCK) as u64).await.map_err(|error| error.to_string())?;
            file.close().await.map_err(|error| error.to_string())?;
        }
        let mut tasks = Vec::new();
        for (client, catena) in clients.iter().enumerate() {
            let names = Names::make(catena, client).await?;
            let random = |lane: u64| StdRng::seed_from_u64(seed ^ (client as u64) << 8 ^ lane << 16);
            for lane in 0..FILES {
                let (shared, catena, random) = (shared.clone(), catena.clone(), random(lane as u64));
                let file = client + lane * CLIENTS;
                tasks.push(tokio::spawn(async move {
                    let outcome = write_and_read(&shared, &catena, file, random).await;
                    shared.tell(outcome);
                    Kept::Nothing
                }));
            }
            let logs = Logs::make(catena, client, cluster.full.clone()).await?;
            let (worker, alike, chance) = (shared.clone(), catena.clone(), random(98));
            tasks.push(tokio::spawn(async move {
                let mut logs = logs;
                let outcome = append_and_remove(&worker, &alike, &mut logs, chance).await;
                worker.tell(outcome);
                Kept::Logs(logs)
            }));
            let (shared, catena, random) = (shared.clone(), catena.clone(), random(99));
            tasks.push(tokio::spawn(async move {
                let mut names = names;
                let outcome = rename_and_remove(&shared, &catena, &mut names, random).await;
                shared.tell(outcome);
                Kept::Names(names)
            }));
        }
        let (everybody, all, random) = (shared.clone(), clients.clone(), seed ^ 0x5a << 24);
        tasks.push(tokio::spawn(async move {
            let outcome = shared::histories(&all, random, &everybody.done, &everybody.journal).await;
            everybody.tell(outcome);
            Kept::Nothing
        }));
        let (tasks, kept) = (parking_lot::Mutex::new(tasks), parking_lot::Mutex::default());
        Ok(Work { shared, clients, tasks, kept, failure })
    }

    /// Resolves with the first thing that is not as it should be.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(what) => what.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Lets every client finish what it is at.
    pub async fn stop(&self) -> Result<(), String> {
        self.shared.done.store(true, Relaxed);
        let tasks: Vec<_> = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            let kept = task.await.map_err(|error| error.to_string())?;
            self.kept.lock().push(kept);
        }
        match &*self.failure.borrow() {
            Some(what) => Err(what.clone()),
            None => Ok(()),
        }
    }

    /// Every block of every file, every name, every log, every replica.
    pub async fn verify(&self) -> Result<(), String> {
        let catena = &self.clients[0];
        for (index, model) in self.shared.models.iter().enumerate() {
            let file = catena.open(path(index)).await.map_err(|error| error.to_string())?;
            for first in (0..model.blocks()).step_by(LONGEST) {
                let count = LONGEST.min(model.blocks() - first);
                read(&self.shared, &file, model, first, count).await?;
            }
            let report = file.compare_replicas().await.map_err(|error| error.to_string())?;
            if let Some(chunk) = report.differing.first() {
                return Err(format!("{}: chunk {chunk} differs between replicas", path(index)));
            }
            if report.fewest < 3 {
                return Err(format!("{}: a chain has {} serving replicas", path(index), report.fewest));
            }
        }
        let kept = std::mem::take(&mut *self.kept.lock());
        for kept in kept {
            match kept {
                Kept::Nothing => {}
                Kept::Names(names) => names.verify(catena).await?,
                Kept::Logs(mut logs) => logs.verify(catena).await?,
            }
        }
        Ok(())
    }
}

impl Shared {
    fn tell(&self, outcome: Result<(), String>) {
        if let Err(what) = outcome {
            self.journal.say(&what);
            self.failure.send_if_modified(|known| {
                let first = known.is_none();
                if first {
                    *known = Some(what);
                }
                first
            });
        }
    }
}

async fn write_and_read(
    shared: &Shared,
    catena: &Catena,
    own: usize,
    mut random: StdRng,
) -> Result<(), String> {
    let mut files = Vec::new();
    for file in 0..shared.models.len() {
        let options = OpenOptions::new().read(true).write(file == own);
        files.push(
            options
                .open(catena, path(file))
                .await
                .map_err(|error| format!("open {}: {error}", path(file)))?,
        );
    }
    while !shared.done.load(Relaxed) {
        let count = random.random_range(1..=LONGEST);
        let first = random.random_range(0..=BLOCKS - count);
        if random.random_bool(0.5) {
            write(shared, &files[own], &shared.models[own], first, count).await?;
        } else {
            let file = random.random_range(0..files.len());
            read(shared, &files[file], &shared.models[file], first, count).await?;
        }
        // The machine is to be tormented, not worn out.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..10))).await;
    }
    files[own].close().await.map_err(|error| format!("close {}: {error}", path(own)))
}

async fn write(
    shared: &Shared,
    file: &File,
    model: &Model,
    first: usize,
    count: usize,
) -> Result<(), String> {
    let bytes = model.begin(first, count);
    let begun = Instant::now();
    match file.write_at((first * BLOCK) as u64, &bytes).await {
        Ok(()) => {
            model.acknowledged(first, count);
            shared.journal.writes.fetch_add(1, Relaxed);
        }
        Err(error) if error.status() == Status::NoSpace => {
            shared.journal.refused.fetch_add(1, Relaxed);
        }
        Err(error) => return Err(format!("write {}: {error} after {:?}", file.path(), begun.elapsed())),
    }
    shared.journal.took(format_args!("write {} block {first}", file.path()), begun);
    Ok(())
}

async fn read(shared: &Shared, file: &File, model: &Model, first: usize, count: usize) -> Result<(), String> {
    let floor = model.floor(first, count);
    let mut bytes = vec![0; count * BLOCK];
    let begun = Instant::now();
    let length = file.read_at((first * BLOCK) as u64, &mut bytes).await;
    let length =
        length.map_err(|error| format!("read {}: {error} after {:?}", file.path(), begun.elapsed()))?;
    shared.journal.took(format_args!("read {} block {first}", file.path()), begun);
    shared.journal.reads.fetch_add(1, Relaxed);
    bytes.truncate(length);
    model.check(first, &floor, &bytes)
}

async fn rename_and_remove(
    shared: &Shared,
    catena: &Catena,
    names: &mut Names,
    mut random: StdRng,
) -> Result<(), String> {
    while !shared.done.load(Relaxed) {
        let begun = Instant::now();
        if names.step(catena, &mut random).await? {
            shared.journal.names.fetch_add(1, Relaxed);
        } else {
            shared.journal.refused.fetch_add(1, Relaxed);
        }
        shared.journal.took("a change of names", begun);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
    }
    Ok(())
}

async fn append_and_remove(
    shared: &Shared,
    catena: &Catena,
    logs: &mut Logs,
    mut random: StdRng,
) -> Result<(), String> {
    while !shared.done.load(Relaxed) {
        let begun = Instant::now();
        let pause = match logs.step(catena, &mut random).await? {
            Step::Done => {
                shared.journal.appends.fetch_add(1, Relaxed);
                // Until a full disk is felt there is no pause.
                if logs.flooding() { 0 } else { random.random_range(0..100) }
            }
            Step::Refused => {
                shared.journal.refused.fetch_add(1, Relaxed);
                100
            }
            Step::Idle => 100,
        };
        shared.journal.took("a step of a log", begun);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    Ok(())
}
