//! A device of this process: how it is, asked without waiting for it; and opened again after it has failed, because adapters are reset by
//! their drivers, or come back after a firmware update, and what a process had made of them is dead then.
//!
//! Drivers answer questions with commands to the firmware, for which they wait up to a minute if it does not answer. That is why a thread
//! asks: neither heartbeats nor connections over other devices wait for one that hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use catena_buf::{BufPool, WeakPool};
use catena_verbs::{DeviceInfo, Nic, Provider, VerbsError};
use parking_lot::{Condvar, Mutex, RwLock};

/// Between two attempts to open a device.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a device may take to say how it is, before a connection is made without it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A device by its name, whichever opening of it is the present one. Connections keep the one that they were made with.
pub(super) struct Adapter {
    name: String,
    provider: Arc<dyn Provider>,
    /// Registered with every opening, in the order of their use.
    pools: [BufPool; 2],
    /// Those that programs brought along, for as long as they have them.
    guests: Mutex<Vec<WeakPool>>,
    nic: RwLock<Arc<Nic>>,
    /// Somebody is at it.
    opening: AtomicBool,
    /// It was said why the device cannot be opened again.
    complained: AtomicBool,
    looks: Mutex<Looks>,
    looked: Condvar,
}

/// Looks at a device, counted: who wants one that begins from now on waits for its number.
struct Looks {
    wanted: u64,
    begun: u64,
    done: u64,
    /// The last one began.
    since: Instant,
    /// There is a thread at it.
    running: bool,
    /// What the last one has seen.
    seen: Result<DeviceInfo, String>,
}

impl Adapter {
    /// Opens a device that was like this a moment ago.
    pub fn open(
        provider: Arc<dyn Provider>,
        info: DeviceInfo,
        pools: [BufPool; 2],
    ) -> Result<Arc<Adapter>, VerbsError> {
        let nic = Nic::open(&*provider, &info.name, &[&pools[0], &pools[1]])?;
        Ok(Arc::new(Adapter {
            name: info.name.clone(),
            provider,
            pools,
            guests: Mutex::default(),
            nic: RwLock::new(nic),
            opening: AtomicBool::new(false),
            complained: AtomicBool::new(false),
            looks: Mutex::new(Looks {
                wanted: 0,
                begun: 0,
                done: 0,
                since: Instant::now(),
                running: false,
                seen: Ok(info),
            }),
            looked: Condvar::new(),
        }))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device as it is open now. If that has failed, another opening begins, on a thread of its own because registering memory takes
    /// its time; who wants a connection asks again.
    pub fn nic(self: &Arc<Adapter>) -> Result<Arc<Nic>, VerbsError> {
        let nic = self.nic.read().clone();
        if !nic.lost() {
            return Ok(nic);
        }
        if !self.opening.swap(true, Ordering::AcqRel) {
            let adapter = self.clone();
            let thread = std::thread::Builder::new().name("catena-rdma-open".into());
            let started = thread.spawn(move || {
                if let Err(error) = adapter.open_again() {
                    adapter.complain(&error);
                    std::thread::sleep(PAUSE);
                }
                adapter.opening.store(false, Ordering::Release);
            });
            if started.is_err() {
                self.opening.store(false, Ordering::Release);
            }
        }
        Err(VerbsError::Lost { device: self.name.clone() })
    }

    fn open_again(&self) -> Result<(), VerbsError> {
        if !self.nic.read().lost() {
            // Somebody had asked just before another thread was done.
            return Ok(());
        }
        let nic = Nic::open(&*self.provider, &self.name, &[&self.pools[0], &self.pools[1]])?;
        let mut guests = self.guests.lock();
        guests.retain(|guest| guest.upgrade().is_some());
        // All of it or nothing: reads into memory that the device does not know are refused.
        guests.iter().filter_map(WeakPool::upgrade).try_for_each(|pool| nic.admit(&pool))?;
        *self.nic.write() = nic;
        self.complained.store(false, Ordering::Relaxed);
        tracing::info!("RDMA device {} is open again", self.name);
        Ok(())
    }

    /// That the device is away needs no words. What else is in the way is said once, because nobody may be there to see it otherwise.
    fn complain(&self, error: &VerbsError) {
        let away = matches!(
            error,
            VerbsError::UnknownDevice { .. } | VerbsError::NoDevice(_) | VerbsError::Lost { .. }
        );
        if !away && !self.complained.swap(true, Ordering::Relaxed) {
            tracing::warn!("RDMA device {} is there and cannot be opened again: {error}", self.name);
        }
        tracing::debug!("RDMA device {} is not back: {error}", self.name);
    }

    /// Registers one more pool, now and whenever the device is opened again: then only, if it is lost.
    pub fn admit(&self, pool: &BufPool) -> Result<(), VerbsError> {
        let mut guests = self.guests.lock();
        let nic = self.nic.read().clone();
        match nic.admit(pool) {
            Err(error) if nic.lost() => tracing::debug!("memory is registered later: {error}"),
            registered => registered?,
        }
        guests.retain(|guest| guest.upgrade().is_some_and(|known| known.region() != pool.region()));
        guests.push(pool.downgrade());
        Ok(())
    }

    /// How it is, as the last look had it, unless the one after that takes too long; begins another.
    pub fn last_seen(self: &Arc<Adapter>) -> Result<DeviceInfo, String> {
        self.want();
        let looks = self.looks.lock();
        match looks.begun > looks.done && looks.since.elapsed() > PATIENCE {
            true => Err(silent()),
            false => looks.seen.clone(),
        }
    }

    /// Wants a look that begins from now on: the one of this number or a later one.
    pub fn want(self: &Arc<Adapter>) -> u64 {
        let mut looks = self.looks.lock();
        looks.wanted = looks.begun + 1;
        if !looks.running {
            let adapter = self.clone();
            let thread = std::thread::Builder::new().name("catena-rdma-look".into());
            looks.running = thread.spawn(move || adapter.looking()).is_ok();
        }
        looks.wanted
    }

    /// What the look of this number has seen. Waits for it, but for none that takes longer than [`PATIENCE`].
    pub fn seen(&self, number: u64) -> Result<DeviceInfo, String> {
        let mut looks = self.looks.lock();
        let mut until = Instant::now() + PATIENCE;
        while looks.done < number {
            if looks.begun > looks.done {
                // If one hangs since long before, what comes behind it will as well.
                until = until.min(looks.since + PATIENCE);
            }
            if self.looked.wait_until(&mut looks, until).timed_out() && looks.done < number {
                return Err(silent());
            }
        }
        looks.seen.clone()
    }

    fn looking(&self) {
        let mut looks = self.looks.lock();
        while looks.done < looks.wanted {
            looks.begun += 1;
            looks.since = Instant::now();
            let nic = self.nic.read().clone();
            let seen = parking_lot::MutexGuard::unlocked(&mut looks, || {
                let seen = nic.info().map_err(|error| error.to_string());
                drop(nic);
                seen
            });
            looks.seen = seen;
            looks.done = looks.begun;
            self.looked.notify_all();
        }
        looks.running = false;
    }
}

fn silent() -> String {
    format!("it has not said for {PATIENCE:?} how it is")
}
