//! The growing half of the workload: one client's log files, appended to and in the end removed, so that disks fill up. A disk without
//! room refuses an append with `NoSpace` and loses nothing; what was acknowledged is there, and once there is room it goes on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use catena_client::{Catena, File, LayoutChoice, OpenOptions, Status};
use rand::Rng;
use rand::rngs::StdRng;

/// A log that is this long is followed by a new one.
const LONG: u64 = 8 << 20;
/// What one client keeps, and what it goes up to while a disk is full.
const KEPT: u64 = 56 << 20;
const FLOOD: u64 = 120 << 20;
const LONGEST: usize = 1 << 20;
const CHUNK: u32 = 256 << 10;
/// A disk to which room was given back takes appends again within this: what was removed is freed in the background.
const PATIENCE: Duration = Duration::from_secs(60);

/// One client's logs.
pub struct Logs {
    directory: String,
    client: u64,
    logs: VecDeque<Log>,
    /// The newest one, while it is open.
    open: Option<File>,
    made: u64,
    /// Disks that are full on purpose just now.
    full: Arc<AtomicUsize>,
    /// Since when appends are refused although no disk is full on purpose.
    refused: Option<Instant>,
}

struct Log {
    number: u64,
    /// What was acknowledged.
    length: u64,
}

/// What a step came to.
pub enum Step {
    Done,
    Refused,
    Idle,
}

/// The bytes of a log from `offset` on, a multiple of eight.
fn fill(client: u64, log: u64, offset: u64, bytes: &mut [u8]) {
    for (at, word) in bytes.chunks_mut(8).enumerate() {
        let mut z = (client << 56 ^ log << 36 ^ (offset / 8 + at as u64)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) | 1;
        word.copy_from_slice(&z.to_le_bytes()[..word.len()]);
    }
}

impl Logs {
    pub async fn make(catena: &Catena, client: usize, full: Arc<AtomicUsize>) -> Result<Logs, String> {
        let directory = format!("/logs-{client}");
        catena.mkdir(&*directory, 0o755).await.map_err(|error| error.to_string())?;
        let client = client as u64;
        Ok(Logs { directory, client, logs: VecDeque::new(), open: None, made: 0, full, refused: None })
    }

    fn path(&self, log: u64) -> String {
        format!("{}/{log}", self.directory)
    }

    /// Whether a disk is full on purpose just now.
    pub fn flooding(&self) -> bool {
        self.full.load(Relaxed) > 0
    }

    fn kept(&self) -> u64 {
        self.logs.iter().map(|log| log.length).sum()
    }

    /// One append, or a look at what is there.
    pub async fn step(&mut self, catena: &Catena, random: &mut StdRng) -> Result<Step, String> {
        while !self.flooding() && self.kept() > KEPT && self.logs.len() > 1 {
            self.remove_oldest(catena).await?;
        }
        if random.random_bool(0.2) && !self.logs.is_empty() {
            let at = random.random_range(0..self.logs.len());
            return self.look(catena, at, random).await.map(|()| Step::Done);
        }
        if self.kept() > FLOOD {
            return Ok(Step::Idle);
        }
        self.append(catena, random).await
    }

    async fn remove_oldest(&mut self, catena: &Catena) -> Result<(), String> {
        let Some(log) = self.logs.front() else { return Ok(()) };
        let path = self.path(log.number);
        catena.remove(&*path).await.map_err(|error| format!("remove {path}: {error}"))?;
        self.logs.pop_front();
        Ok(())
    }

    async fn append(&mut self, catena: &Catena, random: &mut StdRng) -> Result<Step, String> {
        if self.open.is_none() || self.logs.back().is_none_or(|log| log.length >= LONG) {
            self.turn(catena).await?;
        }
        let (Some(file), Some(log)) = (&self.open, self.logs.back_mut()) else { return Ok(Step::Idle) };
        let mut record = vec![0; random.random_range(1..=LONGEST / 8) * 8];
        fill(self.client, log.number, log.length, &mut record);
        let begun = Instant::now();
        let path = file.path();
        match file.append(&record).await {
            Ok(offset) if offset == log.length => log.length += record.len() as u64,
            Ok(offset) => return Err(format!("{path}: appended at {offset}, not {}", log.length)),
            Err(error) if error.status() == Status::NoSpace => {
                // A part of it may be there: cut off, which a full disk does not refuse.
                let cut = file.truncate(log.length).await;
                cut.map_err(|error| format!("truncate {path}: {error}"))?;
                if self.flooding() {
                    self.refused = None;
                } else {
                    let since = self.refused.get_or_insert_with(Instant::now).elapsed();
                    if since > PATIENCE {
                        return Err(format!("{path}: {error}, {since:.0?} after room was made"));
                    }
                }
                return Ok(Step::Refused);
            }
            Err(error) => return Err(format!("append {path}: {error} after {:?}", begun.elapsed())),
        }
        self.refused = None;
        Ok(Step::Done)
    }

    /// The next log.
    async fn turn(&mut self, catena: &Catena) -> Result<(), String> {
        if let Some(file) = self.open.take() {
            file.close().await.map_err(|error| format!("close {}: {error}", file.path()))?;
        }
        self.made += 1;
        let path = self.path(self.made);
        let layout = LayoutChoice { chunk_size: Some(CHUNK), ..LayoutChoice::default() };
        let options = OpenOptions::new().append(true).create_new(true).layout(layout);
        let file = options.open(catena, &*path).await.map_err(|error| format!("create {path}: {error}"))?;
        self.open = Some(file);
        self.logs.push_back(Log { number: self.made, length: 0 });
        Ok(())
    }

    /// Reads some of a log.
    async fn look(&self, catena: &Catena, at: usize, random: &mut StdRng) -> Result<(), String> {
        let log = &self.logs[at];
        let length = log.length.min(random.random_range(1..=LONGEST as u64));
        let offset = random.random_range(0..=(log.length - length) / 8) * 8;
        let path = self.path(log.number);
        let file = catena.open(&*path).await.map_err(|error| format!("open {path}: {error}"))?;
        self.compare(&file, log, offset, length as usize).await
    }

    async fn compare(&self, file: &File, log: &Log, offset: u64, length: usize) -> Result<(), String> {
        let (mut got, mut expected) = (vec![0; length], vec![0; length]);
        let path = file.path();
        let read = file.read_exact_at(offset, &mut got).await;
        read.map_err(|error| format!("read {path} at {offset}, {length} bytes: {error}"))?;
        fill(self.client, log.number, offset, &mut expected);
        match got.iter().zip(&expected).position(|(got, expected)| got != expected) {
            None => Ok(()),
            Some(at) => Err(format!("{path}: byte {} is not what was appended there", offset + at as u64)),
        }
    }

    /// Every log is as long as what was acknowledged of it, and holds that, on all replicas.
    pub async fn verify(&mut self, catena: &Catena) -> Result<(), String> {
        if let Some(file) = self.open.take() {
            file.close().await.map_err(|error| format!("close {}: {error}", file.path()))?;
        }
        for log in &self.logs {
            let path = self.path(log.number);
            let file = catena.open(&*path).await.map_err(|error| format!("open {path}: {error}"))?;
            let length = file.len().await.map_err(|error| format!("{path}: {error}"))?;
            if length != log.length {
                return Err(format!("{path}: is {length} bytes long, not {}", log.length));
            }
            for offset in (0..length).step_by(LONGEST) {
                let part = (length - offset).min(LONGEST as u64) as usize;
                self.compare(&file, log, offset, part).await?;
            }
            let report = file.compare_replicas().await.map_err(|error| error.to_string())?;
            if let Some(chunk) = report.differing.first() {
                return Err(format!("{path}: chunk {chunk} differs between replicas"));
            }
        }
        Ok(())
    }
}
