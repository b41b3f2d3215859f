//! Registered memory, and the limit that is met when it is registered.

use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::device::Domain;
use super::library::{clear_errno, errno};
use super::sys::*;
use crate::error::VerbsError;
use crate::provider::{Keys, Registration};

/// Bytes that this process has registered.
static REGISTERED: AtomicUsize = AtomicUsize::new(0);

/// A region.
pub struct Memory {
    raw: NonNull<ibv_mr>,
    length: usize,
    keys: Keys,
    domain: Arc<Domain>,
}

// SAFETY: the library is thread-safe, and the record is only read.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Registers memory.
    ///
    /// Without relaxed ordering (`IBV_ACCESS_RELAXED_ORDERING`): what a peer WROTE is there when its message that says so is.
    ///
    /// # Safety
    /// As [`crate::Device::register`].
    pub unsafe fn register(domain: Arc<Domain>, address: usize, length: usize) -> Result<Memory, VerbsError> {
        let access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
        let context = &domain.context;
        clear_errno();
        // SAFETY: the memory is mapped, by the caller.
        let raw = unsafe {
            (context.functions.ibv_reg_mr)(domain.raw.as_ptr(), address as *mut c_void, length, access as i32)
        };
        let Some(raw) = NonNull::new(raw) else {
            return Err(refused(&context.name, length, errno()));
        };
        REGISTERED.fetch_add(length, Relaxed);
        // SAFETY: the library's record of a region that is there.
        let keys = unsafe { Keys { local: (*raw.as_ptr()).lkey, remote: (*raw.as_ptr()).rkey } };
        Ok(Memory { raw, length, keys, domain })
    }
}

impl Registration for Memory {
    fn keys(&self) -> Keys {
        self.keys
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let context = &self.domain.context;
        // SAFETY: it is there, and its domain too.
        let status = unsafe { (context.functions.ibv_dereg_mr)(self.raw.as_ptr()) };
        let result = context.check("ibv_dereg_mr", status);
        // The kernel let go of it when the device went, before verbs on it began to fail.
        let gone = result.is_err() && self.domain.loss.happened();
        if result.is_ok() || gone {
            REGISTERED.fetch_sub(self.length, Relaxed);
        }
        match result {
            Ok(()) => {}
            Err(error) if gone => tracing::debug!("memory went with its device: {error}"),
            // It ends with the context then.
            Err(error) => tracing::error!("memory stays known to the device: {error}"),
        }
    }
}

/// Why a region was refused: for lack of a limit, or what the driver said.
fn refused(device: &str, needed: usize, error: io::Error) -> VerbsError {
    let limit = limit();
    match beyond(&error, needed, pinned(), limit) {
        Some(kib) => {
            let limit = limit.map_or("unlimited".to_owned(), |limit| format!("{limit} bytes"));
            VerbsError::MemoryLock { device: device.to_owned(), needed, limit, kib }
        }
        None => VerbsError::Verb { what: "ibv_reg_mr", device: device.to_owned(), source: error },
    }
}

/// What the limit of locked memory has to be, KiB, if that is why `needed` bytes more were refused. The kernel holds what a process has
/// pinned already against it too (`ib_umem_get`), counts in pages, and says ENOMEM, or EPERM where the limit is 0.
fn beyond(error: &io::Error, needed: usize, pinned: usize, limit: Option<u64>) -> Option<usize> {
    if !matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM)) {
        return None;
    }
    let pages = needed.checked_next_multiple_of(4096)?;
    let total = pinned.checked_add(pages)?;
    (limit? < total as u64).then_some(total.div_ceil(1024))
}

/// RLIMIT_MEMLOCK, bytes; `None` is no limit.
pub fn limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a record of ours.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (status == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Bytes that the process has pinned: by the kernel's account, which knows the devices' queues too, or by ours.
fn pinned() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    pinned_of(&status).max(REGISTERED.load(Relaxed))
}

fn pinned_of(status: &str) -> usize {
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn a_limit_that_is_too_low_is_said_with_what_is_pinned_already() {
        let mib = 1 << 20;
        assert_eq!(beyond(&os(libc::ENOMEM), 8 * mib, mib, Some(8 << 20)), Some(9 * 1024));
        assert_eq!(beyond(&os(libc::EPERM), 1, 0, Some(0)), Some(4), "in pages");
        assert_eq!(
            beyond(&os(libc::ENOMEM), mib, 0, Some(8 << 20)),
            None,
            "below the limit: memory is short"
        );
        assert_eq!(beyond(&os(libc::ENOMEM), mib, 0, None), None, "no limit");
        assert_eq!(beyond(&os(libc::EINVAL), mib, 0, Some(0)), None, "another error");
        assert_eq!(beyond(&os(libc::ENOMEM), usize::MAX, 1, Some(0)), None, "nobody has that much");
    }

    #[test]
    fn what_is_pinned_is_read_from_the_kernel_s_account() {
        assert_eq!(pinned_of("VmLck:\t       8 kB\nVmPin:\t    2048 kB\nVmHWM:\t 1 kB\n"), 2 << 20);
        assert_eq!(pinned_of("VmLck:\t       8 kB\n"), 0);
    }
}
