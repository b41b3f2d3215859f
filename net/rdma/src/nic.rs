//! An open device that knows the process's memory: where a buffer is in it, and under which keys.

use std::ops::Range;
use std::sync::Arc;

use catena_buf::{Buf, BufPool, IoBuf};

use crate::error::VerbsError;
use crate::provider::{Device, DeviceInfo, Keys, Local, Provider, Registration, Remote};

/// A pool, registered. The registration ends before the pool's memory can.
struct Memory {
    range: Range<usize>,
    registration: Box<dyn Registration>,
    _pool: BufPool,
}

/// A device with pools registered. They are registered as wholes when it is opened: nothing is registered on the way of a request.
pub struct Nic {
    name: String,
    memories: Vec<Memory>,
    device: Arc<dyn Device>,
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
        Ok(Arc::new(Nic { name: name.into(), memories, device }))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it and its ports are now.
    pub fn info(&self) -> Result<DeviceInfo, VerbsError> {
        self.device.info()
    }

    pub(crate) fn device(&self) -> &dyn Device {
        &*self.device
    }

    fn keys(&self, address: usize, len: usize) -> Option<Keys> {
        let end = address.checked_add(len)?;
        let holds = |memory: &&Memory| memory.range.start <= address && end <= memory.range.end;
        Some(self.memories.iter().find(holds)?.registration.keys())
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
