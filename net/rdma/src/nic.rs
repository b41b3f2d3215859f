//! An open device that knows the process's memory: where a buffer is in it, and under which keys.

use std::ops::Range;
use std::sync::{Arc, Weak};

use catena_buf::{Buf, BufPool, IoBuf};
use parking_lot::{Mutex, RwLock};

use crate::error::VerbsError;
use crate::provider::{Device, DeviceInfo, Keys, Local, Provider, Registration, Remote};

/// A pool, registered. The registration ends before the pool's memory can.
struct Memory {
    range: Range<usize>,
    registration: Box<dyn Registration>,
    _pool: BufPool,
}

/// The registration of a pool that came later: it ends with the pool's memory or with the device, whichever is first.
type Shared = Arc<Mutex<Option<Box<dyn Registration>>>>;

/// A pool that was registered later. It lives with that pool's memory, which outlives it.
struct Guest {
    nic: Weak<Nic>,
    range: Range<usize>,
    registration: Shared,
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.registration.lock().take());
        // No buffer of it is left, so nobody looks for it any more.
        if let Some(nic) = self.nic.upgrade() {
            nic.guests.write().retain(|guest| guest.range != self.range);
        }
    }
}

/// A device with pools registered, as wholes: those of the process when it is opened, those of programs when they ask. Nothing is
/// registered on the way of a request.
pub struct Nic {
    name: String,
    memories: Vec<Memory>,
    guests: RwLock<Vec<Known>>,
    device: Arc<dyn Device>,
}

/// What a device knows of a [`Guest`].
struct Known {
    range: Range<usize>,
    keys: Keys,
    registration: Shared,
}

impl Drop for Nic {
    fn drop(&mut self) {
        // They must not keep a device open that is done with.
        for guest in self.guests.get_mut() {
            drop(guest.registration.lock().take());
        }
    }
}

impl Nic {
    /// Opens a device and registers these pools with it, in the order of their use.
    pub fn open(provider: &dyn Provider, name: &str, pools: &[&BufPool]) -> Result<Arc<Nic>, VerbsError> {
        let device = provider.open(name)?;
        let mut memories = Vec::with_capacity(pools.len());
        for pool in pools {
            let region = pool.region();
            // SAFETY: the pool is kept beside the registration and dropped after it; its memory is handed out as owned buffers only, and
            // who tells a peer of one keeps it until the peer can no longer reach it (see `queue_pair`).
            let registration = unsafe { device.register(region.address, region.length) }?;
            let range = region.address..region.address + region.length;
            memories.push(Memory { range, registration, _pool: (*pool).clone() });
        }
        Ok(Arc::new(Nic { name: name.into(), memories, guests: RwLock::default(), device }))
    }

    /// Registers one more pool, for as long as its memory is there. Once is enough.
    pub fn admit(self: &Arc<Nic>, pool: &BufPool) -> Result<(), VerbsError> {
        let region = pool.region();
        if self.keys(region.address, region.length).is_some() {
            return Ok(());
        }
        // SAFETY: the memory is mapped and drops what is attached to it, the registration, before it goes. It is handed out as owned
        // buffers, and who tells a peer of one keeps it until the peer can no longer reach it.
        let registration = unsafe { self.device.register(region.address, region.length) }?;
        let range = region.address..region.address + region.length;
        let keys = registration.keys();
        let registration: Shared = Arc::new(Mutex::new(Some(registration)));
        self.guests.write().push(Known { range: range.clone(), keys, registration: registration.clone() });
        pool.attach(Box::new(Guest { nic: Arc::downgrade(self), range, registration }));
        Ok(())
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it and its ports are now.
    pub fn info(&self) -> Result<DeviceInfo, VerbsError> {
        self.device.info()
    }

    /// Whether the device has failed for good: it has to be opened again, as another `Nic`.
    pub fn lost(&self) -> bool {
        self.device.lost()
    }

    pub(crate) fn device(&self) -> &dyn Device {
        &*self.device
    }

    fn keys(&self, address: usize, len: usize) -> Option<Keys> {
        let end = address.checked_add(len)?;
        let holds = |range: &Range<usize>| range.start <= address && end <= range.end;
        match self.memories.iter().find(|memory| holds(&memory.range)) {
            Some(memory) => Some(memory.registration.keys()),
            None => self.guests.read().iter().find(|guest| holds(&guest.range)).map(|guest| guest.keys),
        }
    }

    /// Bytes at this address, for work of this process. `None` if they are not registered.
    pub(crate) fn local(&self, address: usize, len: usize) -> Option<Local> {
        let key = self.keys(address, len)?.local;
        Some(Local { address: address as u64, len: u32::try_from(len).ok()?, key })
    }

    /// Whether the device can read from a buffer: it lies in registered memory.
    pub fn reaches(&self, buf: &Buf) -> bool {
        buf.is_empty() || self.keys(buf.as_io_ptr() as usize, buf.len()).is_some()
    }

    /// What a peer needs to READ a buffer. Whoever gives it away keeps the buffer until the peer has said that it is done, or until
    /// the queue pair is destroyed. `None` if it is not registered.
    pub fn readable(&self, buf: &Buf) -> Option<Remote> {
        let address = buf.as_io_ptr() as usize;
        let key = self.keys(address, buf.len())?.remote;
        Some(Remote { address: address as u64, key })
    }

    /// What a peer needs to WRITE into a buffer, from this byte of it on. Kept as in [`Nic::readable`].
    pub fn writable(&self, buf: &mut IoBuf, at: usize) -> Option<Remote> {
        let address = buf.as_io_ptr() as usize;
        let key = self.keys(address, buf.capacity())?.remote;
        Some(Remote { address: (address + at) as u64, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soft::Fabric;
    use catena_buf::PoolConfig;

    #[test]
    fn a_pool_that_came_later_is_known_for_as_long_as_its_memory_is_there() {
        let fabric = Fabric::new(&[("soft0", std::net::Ipv4Addr::LOCALHOST.into())]);
        let pool = BufPool::new(PoolConfig::client(8 << 20)).unwrap();
        let nic = Nic::open(&fabric, "soft0", &[&pool]).unwrap();
        let own = BufPool::for_claims(8 << 20).unwrap();
        let address = own.region().address;
        assert!(nic.local(address, 4096).is_none());
        nic.admit(&own).unwrap();
        nic.admit(&own).unwrap();
        assert_eq!(nic.guests.read().len(), 1, "once is enough");
        nic.admit(&pool).unwrap();
        assert_eq!(nic.guests.read().len(), 1, "the process's own is known from the start");
        assert!(nic.local(address, 8 << 20).is_some() && nic.local(address + 1, 8 << 20).is_none());
        let last = own.claim(0..1).unwrap().unwrap();
        drop(own);
        assert!(nic.local(address, 4096).is_some(), "a buffer of it is out");
        drop(last);
        assert!(nic.local(address, 4096).is_none() && nic.guests.read().is_empty());
        // A pool may also outlive the device.
        let own = BufPool::for_claims(1).unwrap();
        nic.admit(&own).unwrap();
        assert_eq!(fabric.regions(), 2);
        drop(nic);
        assert_eq!(fabric.regions(), 0, "it does not keep the device open");
        drop(own);
    }
}
