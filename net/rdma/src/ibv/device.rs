//! Open devices and their protection domains.

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::events::{Loss, Watcher};
use super::library::{Functions, clear_errno, errno};
use super::memory::Memory;
use super::post::Posting;
use super::sys::*;
use super::{absence, describe, endpoint};
use crate::error::VerbsError;
use crate::provider::{Depths, Device, DeviceInfo, DeviceLimits, Endpoint, Registration};

/// What libibverbs found. Devices that were not opened are gone with it.
pub struct List {
    functions: &'static Functions,
    devices: NonNull<*mut ibv_device>,
    len: usize,
}

impl List {
    /// At least one.
    pub fn get(functions: &'static Functions) -> Result<List, VerbsError> {
        let mut len: c_int = 0;
        // SAFETY: the number is written to.
        let devices = unsafe { (functions.ibv_get_device_list)(&mut len) };
        let devices = NonNull::new(devices).ok_or_else(|| VerbsError::NoDevice(absence::explain()))?;
        let list = List { functions, devices, len: usize::try_from(len).unwrap_or(0) };
        if list.len == 0 { Err(VerbsError::NoDevice(absence::explain())) } else { Ok(list) }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    fn device(&self, index: usize) -> *mut ibv_device {
        assert!(index < self.len);
        // SAFETY: the list has so many.
        unsafe { *self.devices.as_ptr().add(index) }
    }

    pub fn name(&self, index: usize) -> String {
        // SAFETY: a device of the list, which is there; its name ends.
        unsafe { text(&raw const (*self.device(index)).name) }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: it is the library's, and freed once.
        unsafe { (self.functions.ibv_free_device_list)(self.devices.as_ptr()) }
    }
}

/// Text of a field that ends with a zero.
///
/// # Safety
/// It is there and has one.
pub unsafe fn text<const N: usize>(field: *const [c_char; N]) -> String {
    // SAFETY: by the caller.
    unsafe { CStr::from_ptr(field.cast()) }.to_string_lossy().into_owned()
}

/// An open device.
pub struct Context {
    pub functions: &'static Functions,
    pub raw: NonNull<ibv_context>,
    pub name: String,
}

// SAFETY: the library is thread-safe.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn open(list: &List, index: usize) -> Result<Context, VerbsError> {
        let (functions, device, name) = (list.functions, list.device(index), list.name(index));
        clear_errno();
        // SAFETY: a device of a list that is there.
        let raw = unsafe { (functions.ibv_open_device)(device) };
        let Some(raw) = NonNull::new(raw) else {
            let error = errno();
            // SAFETY: as above; its node's name ends.
            let node = unsafe { text(&raw const (*device).dev_name) };
            return Err(VerbsError::NoDevice(format!(
                "{name} cannot be opened by {}/{node}: {error}; this user must be able to read and write it",
                absence::NODES
            )));
        };
        Ok(Context { functions, raw, name })
    }

    /// A verb that failed with this error here.
    pub fn failed(&self, what: &'static str, source: io::Error) -> VerbsError {
        VerbsError::Verb { what, device: self.name.clone(), source }
    }

    /// A verb that returns errno.
    pub fn check(&self, what: &'static str, status: c_int) -> Result<(), VerbsError> {
        // Some drivers return -1 and set errno, some -errno.
        match status {
            0 => Ok(()),
            -1 => Err(self.failed(what, errno())),
            _ => Err(self.failed(what, io::Error::from_raw_os_error(status.abs()))),
        }
    }

    /// A limit that was hit.
    pub fn limit(&self, what: String) -> VerbsError {
        VerbsError::Limit { device: self.name.clone(), what }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: all that was made of it is gone: it is owned by what was made.
        let status = unsafe { (self.functions.ibv_close_device)(self.raw.as_ptr()) };
        if status != 0 {
            tracing::warn!("RDMA device {} cannot be closed: {}", self.name, errno());
        }
    }
}

/// A protection domain: what belongs together of regions and queue pairs. One per opened device.
pub struct Domain {
    pub raw: NonNull<ibv_pd>,
    pub limits: DeviceLimits,
    /// Which of the device's completion vectors (interrupts) is next: endpoints are spread over them.
    pub vector: AtomicUsize,
    pub watcher: Watcher,
    pub loss: Loss,
    pub context: Context,
}

// SAFETY: the library is thread-safe.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    pub fn new(context: Context) -> Result<Domain, VerbsError> {
        // SAFETY: the context is open, and knows its device.
        if unsafe { (*(*context.raw.as_ptr()).device).transport_type } != IBV_TRANSPORT_IB {
            return Err(context.limit(
                "connections between queue pairs as InfiniBand and RoCE have them; iWARP and vendors' own transports are not supported"
                    .into(),
            ));
        }
        let limits = describe::limits(&context)?;
        clear_errno();
        // SAFETY: the context is open.
        let raw = unsafe { (context.functions.ibv_alloc_pd)(context.raw.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| context.failed("ibv_alloc_pd", errno()))?;
        Ok(Domain {
            raw,
            limits,
            vector: AtomicUsize::new(0),
            watcher: Watcher::default(),
            loss: Loss::default(),
            context,
        })
    }

    /// An error if the device is lost.
    pub fn alive(&self) -> Result<(), VerbsError> {
        match self.loss.happened() {
            true => Err(VerbsError::Lost { device: self.context.name.clone() }),
            false => Ok(()),
        }
    }

    /// The device has failed for good. Who waits for completions learns of it.
    pub fn lose(&self, why: &str) {
        if self.loss.declare() {
            tracing::error!("RDMA device {} is lost: {why}", self.context.name);
        }
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: regions and endpoints hold the domain, so there are none.
        let status = unsafe { (self.context.functions.ibv_dealloc_pd)(self.raw.as_ptr()) };
        if let Err(error) = self.context.check("ibv_dealloc_pd", status) {
            // What is left of it ends when the context is closed, after this.
            tracing::warn!("{error}");
        }
    }
}

/// An open device, for reliable connections.
pub struct RcDevice {
    pub domain: Arc<Domain>,
    pub posting: Posting,
}

impl Device for RcDevice {
    fn info(&self) -> Result<DeviceInfo, VerbsError> {
        self.domain.alive()?;
        describe::device(&self.domain.context).inspect_err(|error| {
            // Its number may be another device's by now, or nobody's.
            let VerbsError::Verb { source, .. } = error else { return };
            if matches!(source.raw_os_error(), Some(libc::EIO | libc::ENODEV)) {
                self.domain.lose(&format!("it does not say how it is: {error}"));
            }
        })
    }

    fn lost(&self) -> bool {
        self.domain.loss.happened()
    }

    unsafe fn register(&self, address: usize, length: usize) -> Result<Box<dyn Registration>, VerbsError> {
        self.domain.alive()?;
        // SAFETY: by the caller.
        let memory = unsafe { Memory::register(self.domain.clone(), address, length) };
        // Whether that was the device's end, it says when asked.
        Ok(Box::new(memory.inspect_err(|_| drop(self.info()))?))
    }

    fn endpoint(&self, depths: Depths) -> Result<Box<dyn Endpoint>, VerbsError> {
        Watcher::start(&self.domain);
        Ok(Box::new(endpoint::RcEndpoint::new(self.domain.clone(), depths, self.posting)?))
    }
}
