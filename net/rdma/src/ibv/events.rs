//! What a device tells of itself: ports that go down, queue pairs that fail, its own end. It is logged; who has work under way learns of
//! most of it by that work's completions. Not of what makes that there are none: the end of the device, of a queue pair
//! (IBV_EVENT_QP_FATAL) or of a completion queue (IBV_EVENT_CQ_ERR), ibv_get_async_event(3).

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
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

/// Whether a device has failed for good, and its queue pairs by their numbers: which of them have failed, and who waits for their
/// completions.
#[derive(Default)]
pub struct Loss {
    happened: AtomicBool,
    pairs: Mutex<BTreeMap<u32, Watched>>,
}

/// A queue pair that is told when it has failed without a completion.
struct Watched {
    /// The address of its completion queue.
    queue: usize,
    failed: Arc<AtomicBool>,
    waker: Option<Waker>,
}

impl Loss {
    pub fn happened(&self) -> bool {
        self.happened.load(Ordering::Acquire)
    }

    /// It has, and who waits is woken. False if that was known.
    pub fn declare(&self) -> bool {
        let news = !self.happened.swap(true, Ordering::AcqRel);
        self.pairs.lock().values_mut().filter_map(|pair| pair.waker.take()).for_each(Waker::wake);
        news
    }

    /// Knows a queue pair from now on. What is returned becomes true when it fails by itself.
    pub fn know(&self, number: u32, queue: usize) -> Arc<AtomicBool> {
        let failed = Arc::new(AtomicBool::new(false));
        self.pairs.lock().insert(number, Watched { queue, failed: failed.clone(), waker: None });
        failed
    }

    /// Queue pairs have failed: this one, or all of this completion queue. Who waits is woken.
    fn fail(&self, subject: &Subject) {
        for (&number, pair) in self.pairs.lock().iter_mut() {
            let meant = match *subject {
                Subject::QueuePair(failed) => failed == number,
                Subject::CompletionQueue(failed) => failed == pair.queue,
                Subject::Port(_) | Subject::Device => false,
            };
            if meant {
                pair.failed.store(true, Ordering::Release);
                pair.waker.take().into_iter().for_each(Waker::wake);
            }
        }
    }

    /// Has this one woken when it, or the device, fails. True if that has happened.
    pub fn watch(&self, number: u32, waker: &Waker) -> bool {
        let mut pairs = self.pairs.lock();
        let Some(pair) = pairs.get_mut(&number) else { return true };
        if self.happened() || pair.failed.load(Ordering::Acquire) {
            return true;
        }
        match &mut pair.waker {
            Some(known) => known.clone_from(waker),
            None => pair.waker = Some(waker.clone()),
        }
        false
    }

    pub fn forget(&self, number: u32) {
        self.pairs.lock().remove(&number);
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
    // SAFETY: the event is the library's and not acknowledged, so what it is about is there.
    let subject = unsafe { subject(&event) };
    let (device, code) = (&context.name, event.event_type);
    match weight(code) {
        tracing::Level::WARN => tracing::warn!("RDMA device {device}{subject}: {name} (event {code})"),
        tracing::Level::INFO => tracing::info!("RDMA device {device}{subject}: {name} (event {code})"),
        _ => tracing::debug!("RDMA device {device}{subject}: {name} (event {code})"),
    }
    // Before it is acknowledged: afterwards the number may be another's.
    if matches!(code, IBV_EVENT_QP_FATAL | IBV_EVENT_CQ_ERR) {
        domain.loss.fail(&subject);
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
    /// By its number.
    QueuePair(u32),
    /// By its address.
    CompletionQueue(usize),
    /// By its number.
    Port(i32),
    Device,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::QueuePair(number) => write!(f, ", queue pair {number}"),
            Subject::CompletionQueue(_) => f.write_str(", completion queue"),
            Subject::Port(number) => write!(f, ", port {number}"),
            Subject::Device => Ok(()),
        }
    }
}

/// # Safety
/// If it is about a queue pair, its element points at one.
unsafe fn subject(event: &ibv_async_event) -> Subject {
    match event.event_type {
        IBV_EVENT_CQ_ERR => Subject::CompletionQueue(event.element as usize),
        IBV_EVENT_QP_FATAL
        | IBV_EVENT_QP_REQ_ERR
        | IBV_EVENT_QP_ACCESS_ERR
        | IBV_EVENT_COMM_EST
        | IBV_EVENT_SQ_DRAINED
        | IBV_EVENT_PATH_MIG
        | IBV_EVENT_PATH_MIG_ERR
        | IBV_EVENT_QP_LAST_WQE_REACHED => {
            // SAFETY: by the caller.
            Subject::QueuePair(unsafe { (*event.element.cast::<ibv_qp>()).qp_num })
        }
        IBV_EVENT_PORT_ACTIVE
        | IBV_EVENT_PORT_ERR
        | IBV_EVENT_LID_CHANGE
        | IBV_EVENT_PKEY_CHANGE
        | IBV_EVENT_SM_CHANGE
        | IBV_EVENT_CLIENT_REREGISTER
        | IBV_EVENT_GID_CHANGE => {
            // SAFETY: the record is ours; it is the union's first four bytes, whatever the byte order.
            Subject::Port(unsafe { (&raw const event.element).cast::<i32>().read() })
        }
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
        let woken = || count.0.load(Ordering::Relaxed);
        let failed: Vec<_> = (1..=5).map(|number| loss.know(number, number as usize / 4)).collect();
        let which = || failed.iter().map(|failed| failed.load(Ordering::Relaxed)).collect::<Vec<_>>();
        for number in [1, 2, 2, 3, 4, 5] {
            assert!(!loss.watch(number, &waker));
        }
        loss.fail(&Subject::QueuePair(2));
        loss.fail(&Subject::QueuePair(7));
        assert_eq!((woken(), which()), (1, vec![false, true, false, false, false]));
        assert!(loss.watch(2, &waker), "it has failed, and will not be told again");
        loss.fail(&Subject::CompletionQueue(1));
        assert_eq!((woken(), which()), (3, vec![false, true, false, true, true]));
        loss.forget(3);
        assert!(loss.declare() && !loss.declare() && loss.happened());
        assert_eq!(woken(), 4);
        assert!(loss.watch(1, &waker), "too late to wait for it");
    }

    #[test]
    fn failures_are_warnings_and_say_what_failed() {
        let mut pair = ibv_qp { qp_num: 17, ..ibv_qp::zeroed() };
        let pair: Opaque = (&raw mut pair).cast();
        let port: Opaque = std::ptr::without_provenance_mut(u64::from_ne_bytes(
            [3i32.to_ne_bytes(), [0; 4]].concat().try_into().unwrap(),
        ) as usize);
        for (event_type, element, expected) in [
            (IBV_EVENT_DEVICE_FATAL, pair, (Subject::Device, tracing::Level::WARN)),
            (IBV_EVENT_PORT_ERR, port, (Subject::Port(3), tracing::Level::WARN)),
            (IBV_EVENT_QP_FATAL, pair, (Subject::QueuePair(17), tracing::Level::WARN)),
            (IBV_EVENT_CQ_ERR, pair, (Subject::CompletionQueue(pair as usize), tracing::Level::WARN)),
            (IBV_EVENT_PORT_ACTIVE, port, (Subject::Port(3), tracing::Level::INFO)),
            (IBV_EVENT_COMM_EST, pair, (Subject::QueuePair(17), tracing::Level::DEBUG)),
            (99, pair, (Subject::Device, tracing::Level::WARN)),
        ] {
            let event = ibv_async_event { element, event_type };
            // SAFETY: what it may point at is a queue pair's record.
            let subject = unsafe { subject(&event) };
            assert_eq!((subject, weight(event_type)), expected, "event {event_type}");
        }
    }
}
