//! What a device tells of itself: ports that go down, queue pairs that fail, its own end. It is logged; who has work under way learns of
//! it by that work's completions, except of the device's end: some drivers make no completions then.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;

use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::device::{Context, Domain};
use super::library::{clear_errno, errno};
use super::sys::*;

/// Whether a device has failed for good, and who waits for its completions, by the numbers of the queue pairs.
#[derive(Default)]
pub struct Loss {
    happened: AtomicBool,
    waiting: Mutex<BTreeMap<u32, Waker>>,
}

impl Loss {
    pub fn happened(&self) -> bool {
        self.happened.load(Ordering::Acquire)
    }

    /// It has, and who waits is woken. False if that was known.
    pub fn declare(&self) -> bool {
        let news = !self.happened.swap(true, Ordering::AcqRel);
        std::mem::take(&mut *self.waiting.lock()).into_values().for_each(Waker::wake);
        news
    }

    /// Has this one woken when it happens. True if it has.
    pub fn watch(&self, number: u32, waker: &Waker) -> bool {
        let mut waiting = self.waiting.lock();
        if !self.happened() {
            waiting
                .entry(number)
                .and_modify(|known| known.clone_from(waker))
                .or_insert_with(|| waker.clone());
            return false;
        }
        true
    }

    pub fn forget(&self, number: u32) {
        self.waiting.lock().remove(&number);
    }
}

/// The task that reads a device's events. It ends with the device.
#[derive(Default)]
pub struct Watcher(Mutex<Option<AbortHandle>>);

impl Watcher {
    /// Starts it on this runtime, unless it runs. It is started with the first endpoint, and anew where the runtime of the last one is
    /// gone.
    pub fn start(domain: &Arc<Domain>) {
        let mut task = domain.watcher.0.lock();
        if task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        match events_of(&domain.context) {
            Ok(events) => *task = Some(tokio::spawn(watch(events, Arc::downgrade(domain))).abort_handle()),
            Err(error) => {
                tracing::warn!("events of RDMA device {} are not logged: {error}", domain.context.name);
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(task) = self.0.get_mut() {
            task.abort();
        }
    }
}

/// The context's event file, under a number of our own, so that the task can let go of it whenever it ends.
fn events_of(context: &Context) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the context is open, and so is its file.
    let file = unsafe { BorrowedFd::borrow_raw((*context.raw.as_ptr()).async_fd) };
    let file = file.try_clone_to_owned()?;
    set_nonblocking(&file)?;
    // SAFETY: it owns the file, which stays open until it is dropped.
    unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }.map_err(Into::into)
}

/// Reads of it no longer wait.
pub fn set_nonblocking(file: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: flags of an open file.
    let status = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        if flags < 0 { flags } else { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

async fn watch(events: AsyncFd<OwnedFd>, domain: Weak<Domain>) {
    loop {
        let Ok(mut ready) = events.readable().await else { return };
        // Not held while waiting: the device closes when its last user lets go of it.
        let Some(domain) = domain.upgrade() else { return };
        let end = loop {
            if let Err(end) = read(&domain) {
                break end;
            }
        };
        if end.kind() != io::ErrorKind::WouldBlock {
            // The kernel has cut the file off: the device was removed, or is being reset.
            return domain.lose(&format!("no more events of it: {end}"));
        }
        ready.clear_ready();
    }
}

/// Reads an event, logs it and acknowledges it, before anything else can be waited for: who destroys the queue pair that it is about
/// waits for the acknowledgement.
fn read(domain: &Domain) -> io::Result<()> {
    let context = &domain.context;
    let mut event = ibv_async_event::zeroed();
    clear_errno();
    // SAFETY: the context is open, the record is the header's.
    if unsafe { (context.functions.ibv_get_async_event)(context.raw.as_ptr(), &mut event) } != 0 {
        return Err(errno());
    }
    // SAFETY: static text for any number.
    let name = unsafe { (context.functions.ibv_event_type_str)(event.event_type) };
    // SAFETY: as above.
    let name = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy());
    let name = name.as_deref().unwrap_or("unknown");
    let subject = match subject(event.event_type) {
        // SAFETY: the queue pair is there until the event has been acknowledged.
        Subject::QueuePair => {
            format!(", queue pair {}", unsafe { (*event.element.cast::<ibv_qp>()).qp_num })
        }
        // The union's first four bytes, whatever the byte order.
        Subject::Port => {
            // SAFETY: the record is ours.
            let number = unsafe { (&raw const event.element).cast::<i32>().read() };
            format!(", port {number}")
        }
        Subject::Device => String::new(),
    };
    let (device, code) = (&context.name, event.event_type);
    match weight(code) {
        tracing::Level::WARN => tracing::warn!("RDMA device {device}{subject}: {name} (event {code})"),
        tracing::Level::INFO => tracing::info!("RDMA device {device}{subject}: {name} (event {code})"),
        _ => tracing::debug!("RDMA device {device}{subject}: {name} (event {code})"),
    }
    // SAFETY: once per event.
    unsafe { (context.functions.ibv_ack_async_event)(&mut event) };
    if code == IBV_EVENT_DEVICE_FATAL {
        domain.lose("it says so itself");
    }
    Ok(())
}

/// What an event is about.
#[derive(PartialEq, Eq, Debug)]
enum Subject {
    QueuePair,
    Port,
    Device,
}

fn subject(event: u32) -> Subject {
    match event {
        IBV_EVENT_QP_FATAL
        | IBV_EVENT_QP_REQ_ERR
        | IBV_EVENT_QP_ACCESS_ERR
        | IBV_EVENT_COMM_EST
        | IBV_EVENT_SQ_DRAINED
        | IBV_EVENT_PATH_MIG
        | IBV_EVENT_PATH_MIG_ERR
        | IBV_EVENT_QP_LAST_WQE_REACHED => Subject::QueuePair,
        IBV_EVENT_PORT_ACTIVE
        | IBV_EVENT_PORT_ERR
        | IBV_EVENT_LID_CHANGE
        | IBV_EVENT_PKEY_CHANGE
        | IBV_EVENT_SM_CHANGE
        | IBV_EVENT_CLIENT_REREGISTER
        | IBV_EVENT_GID_CHANGE => Subject::Port,
        _ => Subject::Device,
    }
}

fn weight(event: u32) -> tracing::Level {
    match event {
        // Part of every connection.
        IBV_EVENT_COMM_EST | IBV_EVENT_SQ_DRAINED | IBV_EVENT_QP_LAST_WQE_REACHED => tracing::Level::DEBUG,
        // Somebody is doing something.
        IBV_EVENT_PORT_ACTIVE
        | IBV_EVENT_LID_CHANGE
        | IBV_EVENT_PKEY_CHANGE
        | IBV_EVENT_SM_CHANGE
        | IBV_EVENT_CLIENT_REREGISTER
        | IBV_EVENT_GID_CHANGE
        | IBV_EVENT_PATH_MIG => tracing::Level::INFO,
        _ => tracing::Level::WARN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_device_that_is_lost_is_woken_once() {
        struct Count(std::sync::atomic::AtomicU32);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Count>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count(0.into()));
        let waker = Waker::from(count.clone());
        let loss = Loss::default();
        for number in [1, 2, 2, 3] {
            assert!(!loss.watch(number, &waker));
        }
        loss.forget(3);
        assert!(loss.declare() && !loss.declare() && loss.happened());
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert!(loss.watch(4, &waker), "too late to wait for it");
    }

    #[test]
    fn failures_are_warnings_and_say_what_failed() {
        for (event, expected) in [
            (IBV_EVENT_DEVICE_FATAL, (Subject::Device, tracing::Level::WARN)),
            (IBV_EVENT_PORT_ERR, (Subject::Port, tracing::Level::WARN)),
            (IBV_EVENT_QP_FATAL, (Subject::QueuePair, tracing::Level::WARN)),
            (IBV_EVENT_PORT_ACTIVE, (Subject::Port, tracing::Level::INFO)),
            (IBV_EVENT_COMM_EST, (Subject::QueuePair, tracing::Level::DEBUG)),
            (99, (Subject::Device, tracing::Level::WARN)),
        ] {
            assert_eq!((subject(event), weight(event)), expected, "event {event}");
        }
    }
}
