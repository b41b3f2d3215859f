//! A device that is opened again after it has failed: adapters are reset by their drivers, or come back after a firmware update, and what
//! a process had made of them is dead then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use catena_buf::{BufPool, WeakPool};
use catena_verbs::{Nic, Provider, VerbsError};
use parking_lot::{Mutex, RwLock};

/// Between two attempts to open a device.
const PAUSE: Duration = Duration::from_millis(500);

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
}

impl Adapter {
    pub fn open(
        provider: Arc<dyn Provider>,
        name: &str,
        pools: [BufPool; 2],
    ) -> Result<Arc<Adapter>, VerbsError> {
        let nic = Nic::open(&*provider, name, &[&pools[0], &pools[1]])?;
        Ok(Arc::new(Adapter {
            name: name.into(),
            provider,
            pools,
            guests: Mutex::default(),
            nic: RwLock::new(nic),
            opening: AtomicBool::new(false),
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
                    tracing::debug!("RDMA device {} is not back: {error}", adapter.name);
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
        let nic = Nic::open(&*self.provider, &self.name, &[&self.pools[0], &self.pools[1]])?;
        let mut guests = self.guests.lock();
        guests.retain(|guest| guest.upgrade().is_some());
        // All of it or nothing: reads into memory that the device does not know are refused.
        guests.iter().filter_map(WeakPool::upgrade).try_for_each(|pool| nic.admit(&pool))?;
        *self.nic.write() = nic;
        tracing::info!("RDMA device {} is open again", self.name);
        Ok(())
    }

    /// Registers one more pool, now and whenever the device is opened again.
    pub fn admit(&self, pool: &BufPool) -> Result<(), VerbsError> {
        let mut guests = self.guests.lock();
        self.nic.read().admit(pool)?;
        guests.retain(|guest| guest.upgrade().is_some_and(|known| known.region() != pool.region()));
        guests.push(pool.downgrade());
        Ok(())
    }
}
