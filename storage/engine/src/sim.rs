//! A simulated disk: what is *live* (a process that restarts sees it) apart from what is *durable* (it is there after power loss).
//!
//! [`SimDisk`] is the platter; [`SimDisk::attach`] gives a process its handle. What was written and not synced is lost, kept or torn at
//! 512 bytes when the power goes, sector by sector and in any order. Operations can be made to fail by number. Everything that is
//! decided by chance comes from one seed, and nothing depends on time: the same calls in the same order give the same disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::disk::{Batch, Completion, Disk, Done, File, Io, completion};
use crate::error::DiskError;

/// What is written whole or not at all.
const SECTOR: usize = 512;

/// A sector's bytes; none if they are zeros, as most of a fresh file is.
type Sector = Option<Arc<[u8; SECTOR]>>;

const ZEROS: [u8; SECTOR] = [0; SECTOR];

/// Sectors by number. Those that are not there are zeros.
#[derive(Clone, Default)]
struct Sectors(BTreeMap<u64, Arc<[u8; SECTOR]>>);

impl Sectors {
    fn set(&mut self, number: u64, sector: Sector) {
        match sector {
            Some(sector) => self.0.insert(number, sector),
            None => self.0.remove(&number),
        };
    }

    fn are_zeros(&self, from: u64, to: u64) -> bool {
        self.0.range(from..to).next().is_none()
    }
}

/// How a simulated disk behaves.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Of all its decisions.
    pub seed: u64,
    /// Bytes that its files may have together.
    pub capacity: u64,
    /// Every batch takes between these (on tokio's clock, so the caller is in a runtime); at once if `None`. Batches under way overtake
    /// each other.
    pub delay: Option<(Duration, Duration)>,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig { seed: 0, capacity: 1 << 30, delay: None }
    }
}

/// What a crash takes with it. Batches under way have not happened, in part or in full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The process died: what was written is there.
    Process,
    /// The power went: of what was not synced, each sector is old or new.
    Power,
}

/// How an operation fails that was told to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// With an error, nothing done; later ones succeed.
    Error,
    /// Half done, and nothing works from then on, as if the power went: [`SimDisk::crash`] settles what is left.
    Cut,
}

/// A disk that outlives the processes that use it. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    platter: Arc<Mutex<Platter>>,
}

#[derive(Clone, Default)]
struct SimFile {
    live: Sectors,
    live_len: u64,
    durable: Sectors,
    durable_len: u64,
    /// What was written since the last sync, in order.
    unsynced: Vec<(u64, Sector)>,
    /// Lengths since then.
    lengths: Vec<u64>,
}

#[derive(Clone)]
struct Platter {
    config: SimConfig,
    rng: StdRng,
    files: [SimFile; 5],
    /// The handle that works.
    handle: u64,
    operations: u64,
    fail_at: Option<(u64, Failure)>,
    dead: bool,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(config: SimConfig) -> SimDisk {
        let rng = StdRng::seed_from_u64(config.seed);
        let platter = Platter {
            config,
            rng,
            files: Default::default(),
            handle: 0,
            operations: 0,
            fail_at: None,
            dead: false,
        };
        SimDisk { platter: Arc::new(Mutex::new(platter)) }
    }

    /// A handle for a process that starts. Earlier handles are dead from now on.
    pub fn attach(&self) -> Arc<dyn Disk> {
        let mut platter = self.platter.lock();
        platter.handle += 1;
        platter.dead = false;
        Arc::new(Handle { platter: self.platter.clone(), number: platter.handle })
    }

    /// Another disk with the same contents and a seed of its own.
    pub fn copy(&self, seed: u64) -> SimDisk {
        let mut platter = self.platter.lock().clone();
        platter.rng = StdRng::seed_from_u64(seed);
        platter.config.seed = seed;
        SimDisk { platter: Arc::new(Mutex::new(platter)) }
    }

    /// The process or the machine dies. Handles are dead; [`SimDisk::attach`] gives a new one.
    pub fn crash(&self, crash: Crash) {
        let mut platter = self.platter.lock();
        platter.handle += 1;
        platter.fail_at = None;
        if crash == Crash::Power {
            platter.lose_power();
        }
    }

    /// Operations so far: reads, writes, growths and syncs.
    pub fn operations(&self) -> u64 {
        self.platter.lock().operations
    }

    /// The `after`-th operation from now on fails: 1 is the next.
    pub fn fail_at(&self, after: u64, failure: Failure) {
        let mut platter = self.platter.lock();
        platter.fail_at = Some((platter.operations + after, failure));
    }

    /// Every operation fails, until the next [`SimDisk::attach`].
    pub fn poison(&self) {
        self.platter.lock().dead = true;
    }

    /// Bytes that the files may have together, from now on.
    pub fn set_capacity(&self, capacity: u64) {
        self.platter.lock().config.capacity = capacity;
    }

    /// Flips the bits of `mask` in a byte, durably, as a dying medium does.
    pub fn corrupt(&self, file: File, offset: u64, mask: u8) {
        let mut platter = self.platter.lock();
        let file = &mut platter.files[file as usize];
        let (number, at) = (offset / SECTOR as u64, offset as usize % SECTOR);
        for sectors in [&mut file.live, &mut file.durable] {
            let sector = sectors.0.entry(number).or_insert_with(|| Arc::new(ZEROS));
            Arc::make_mut(sector)[at] ^= mask;
        }
    }

    /// Finds bytes in what is live: offsets of all places, for tests that corrupt them.
    pub fn find(&self, file: File, needle: &[u8]) -> Vec<u64> {
        let platter = self.platter.lock();
        let file = &platter.files[file as usize];
        let mut found = Vec::new();
        for (&number, sector) in &file.live.0 {
            for at in 0..SECTOR {
                let rest = &sector[at..];
                if !needle.is_empty() && rest.len() >= needle.len() && rest.starts_with(needle) {
                    found.push(number * SECTOR as u64 + at as u64);
                }
            }
        }
        found
    }
}

impl Platter {
    fn lose_power(&mut self) {
        // What a device does with its cache: nothing, all of it, some of it in order, or any sector for itself.
        let manner = self.rng.random_range(0..6);
        for file in &mut self.files {
            let unsynced = std::mem::take(&mut file.unsynced);
            let keep = match manner {
                0 => 0,
                1 => unsynced.len(),
                _ => self.rng.random_range(0..=unsynced.len()),
            };
            let mut versions: BTreeMap<u64, Vec<Sector>> = BTreeMap::new();
            for (at, (number, sector)) in unsynced.into_iter().enumerate() {
                match manner {
                    0..=2 => {
                        if at < keep {
                            file.durable.set(number, sector);
                        }
                    }
                    _ => versions.entry(number).or_default().push(sector),
                }
            }
            for (number, versions) in versions {
                // One write in many is lost, half of them, most of them.
                let lost = [0.03, 0.5, 0.9][manner % 3];
                if !self.rng.random_bool(lost) {
                    let which = self.rng.random_range(0..versions.len());
                    file.durable.set(number, versions[which].clone());
                }
            }
            let lengths = std::mem::take(&mut file.lengths);
            if !lengths.is_empty() {
                let which = self.rng.random_range(0..=lengths.len());
                if let Some(&length) = which.checked_sub(1).map(|at| &lengths[at]) {
                    file.durable_len = file.durable_len.max(length);
                }
            }
            file.durable.0.split_off(&file.durable_len.div_ceil(SECTOR as u64));
            file.live = file.durable.clone();
            file.live_len = file.durable_len;
        }
    }

    /// Counts an operation and says whether it fails.
    fn count(&mut self) -> Option<Failure> {
        self.operations += 1;
        if self.dead {
            return Some(Failure::Error);
        }
        let (at, failure) = self.fail_at?;
        if at != self.operations {
            return None;
        }
        self.dead = failure == Failure::Cut;
        Some(failure)
    }

    fn run(&mut self, mut batch: Batch) -> Done {
        let mut ios = std::mem::take(&mut batch.ios);
        ios.shuffle(&mut self.rng);
        let mut result = Ok(());
        for io in ios {
            let failure = self.count();
            let ended = self.carry_out(io, &mut batch.bufs, failure);
            if result.is_ok() {
                result = ended;
            }
        }
        for file in batch.sync {
            if result.is_err() {
                break;
            }
            result = match self.count() {
                None => {
                    self.files[file as usize].sync();
                    Ok(())
                }
                Some(_) => Err(broken("sync of", file)),
            };
        }
        Done { bufs: batch.bufs, result }
    }

    fn carry_out(
        &mut self,
        io: Io,
        bufs: &mut [catena_buf::IoBuf],
        failure: Option<Failure>,
    ) -> io::Result<()> {
        match io {
            Io::Read { file, offset, buf, at, len } => {
                check(offset, len as u64)?;
                if failure.is_some() {
                    return Err(broken("read of", file));
                }
                let out = &mut bufs[buf].whole_mut()[at..at + len];
                self.files[file as usize].read(offset, out)
            }
            Io::Write { file, offset, data } => {
                for part in &data {
                    if !part.len().is_multiple_of(SECTOR) || !(part.as_ptr() as usize).is_multiple_of(SECTOR)
                    {
                        return Err(io::Error::other("a part of a write is not aligned in memory"));
                    }
                }
                let length = data.iter().map(|part| part.len() as u64).sum();
                check(offset, length)?;
                let end = offset + length;
                let grown = end.saturating_sub(self.files[file as usize].live_len);
                if grown > self.room() {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let (first, last) = (offset / SECTOR as u64, end / SECTOR as u64);
                let of = &self.files[file as usize];
                // Zeros upon zeros change nothing, whatever happens next.
                let untouched = of.live.are_zeros(first, last) && of.durable.are_zeros(first, last);
                let bytes = data.iter().flat_map(|part| part.chunks_exact(SECTOR));
                let mut sectors: Vec<(u64, Sector)> = bytes
                    .zip(first..)
                    .filter_map(|(bytes, number)| {
                        let zeros = *bytes == ZEROS;
                        let sector = <[u8; SECTOR]>::try_from(bytes).ok().filter(|_| !zeros).map(Arc::new);
                        (!(zeros && untouched)).then_some((number, sector))
                    })
                    .collect();
                if failure == Some(Failure::Cut) {
                    sectors.shuffle(&mut self.rng);
                    let kept = self.rng.random_range(0..=sectors.len());
                    sectors.truncate(kept);
                }
                if failure != Some(Failure::Error) {
                    self.files[file as usize].write(sectors, end);
                }
                if failure.is_some() { Err(broken("write to", file)) } else { Ok(()) }
            }
            Io::Allocate { file, length } => {
                if failure.is_some() {
                    return Err(broken("growing", file));
                }
                if length.saturating_sub(self.files[file as usize].live_len) > self.room() {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                self.files[file as usize].write(Vec::new(), length);
                Ok(())
            }
        }
    }

    fn room(&self) -> u64 {
        let used: u64 = self.files.iter().map(|file| file.live_len).sum();
        self.config.capacity.saturating_sub(used)
    }
}

fn broken(what: &str, file: File) -> io::Error {
    io::Error::other(format!("{what} {}: simulated failure", file.name()))
}

fn check(offset: u64, len: u64) -> io::Result<()> {
    if offset.is_multiple_of(SECTOR as u64) && len.is_multiple_of(SECTOR as u64) && len > 0 {
        return Ok(());
    }
    Err(io::Error::other(format!("{len} bytes at {offset} are not whole sectors")))
}

impl SimFile {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.live_len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (part, number) in out.chunks_exact_mut(SECTOR).zip(offset / SECTOR as u64..) {
            match self.live.0.get(&number) {
                Some(sector) => part.copy_from_slice(&sector[..]),
                None => part.fill(0),
            }
        }
        Ok(())
    }

    fn write(&mut self, sectors: Vec<(u64, Sector)>, end: u64) {
        for (number, sector) in sectors {
            self.live.set(number, sector.clone());
            self.unsynced.push((number, sector));
        }
        if end > self.live_len {
            self.live_len = end;
            self.lengths.push(end);
        }
    }

    fn sync(&mut self) {
        for (number, sector) in self.unsynced.drain(..) {
            self.durable.set(number, sector);
        }
        self.lengths.clear();
        self.durable_len = self.live_len;
    }
}

struct Handle {
    platter: Arc<Mutex<Platter>>,
    number: u64,
}

impl Handle {
    fn alive<'a>(&self, platter: &'a mut Platter) -> Option<&'a mut Platter> {
        (platter.handle == self.number).then_some(platter)
    }
}

fn gone(batch: Batch) -> Done {
    Done { bufs: batch.bufs, result: Err(io::Error::other("the simulated process has lost this disk")) }
}

impl Disk for Handle {
    fn name(&self) -> &str {
        "simulated"
    }
    fn granularity(&self) -> u32 {
        SECTOR as u32
    }

    fn submit(&self, batch: Batch) -> Completion {
        let (completer, completion) = completion();
        let delay = {
            let mut platter = self.platter.lock();
            platter.config.delay.map(|(least, most)| platter.rng.random_range(least..=most))
        };
        let run = {
            let (platter, number) = (self.platter.clone(), self.number);
            move || {
                let handle = Handle { platter: platter.clone(), number };
                let mut platter = platter.lock();
                let done = match handle.alive(&mut platter) {
                    Some(platter) => platter.run(batch),
                    None => gone(batch),
                };
                drop(platter);
                completer.complete(done);
            }
        };
        match delay {
            None => run(),
            Some(delay) => {
                catena_rt::spawn(async move {
                    catena_rt::time::sleep(delay).await;
                    run();
                });
            }
        }
        completion
    }

    fn len(&self, file: File) -> Result<u64, DiskError> {
        Ok(self.platter.lock().files[file as usize].live_len)
    }
    fn available(&self) -> Result<u64, DiskError> {
        Ok(self.platter.lock().room())
    }
}
