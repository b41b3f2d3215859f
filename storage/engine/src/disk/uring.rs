//! io_uring: one ring and one thread per disk, registered files and buffers.
//!
//! Submitters push batches into a queue and wake the thread through an eventfd, which the ring itself polls: the thread sleeps in
//! exactly one place. While it is awake nobody pays for a wake-up. A batch of any size is one hop there and one wake-up back.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;

use catena_buf::{Buf, IoBuf, Region};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use parking_lot::Mutex;

use super::dir::Files;
use super::{Batch, Completer, Completion, Disk, Done, File, Io, completion};
use crate::error::DiskError;

/// Entries of the ring. More than a disk has use for; what does not fit waits in the queue.
const ENTRIES: u32 = 256;
/// The kernel registers at most this much under one index.
const MAX_REGISTERED: usize = 1 << 30;
/// The `user_data` of the eventfd's poll.
const WAKE: u64 = u64::MAX;

pub(super) struct UringDisk {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    files: Files,
    queue: Mutex<Queue>,
    /// The thread is about to sleep, or sleeps.
    asleep: AtomicBool,
    event: OwnedFd,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Batch, Completer)>,
    stopping: bool,
}

impl Shared {
    fn wake(&self) {
        // Pairs with the fence in `Ring::sleep`: either this sees that the thread sleeps, or the thread sees what was queued.
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // An eventfd's counter cannot overflow here: the reader empties it at each wake.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

impl UringDisk {
    /// Gives the files back if the kernel refuses a ring.
    pub fn new(files: Files, region: Option<Region>) -> Result<UringDisk, (Files, io::Error)> {
        let ring = match IoUring::builder().setup_clamp().build(ENTRIES) {
            Ok(ring) => ring,
            Err(error) => return Err((files, error)),
        };
        let mut probe = io_uring::Probe::new();
        let supported = ring.submitter().register_probe(&mut probe).is_ok()
            && [opcode::Writev::CODE, opcode::ReadFixed::CODE, opcode::Fallocate::CODE, opcode::Read::CODE]
                .iter()
                .all(|&code| probe.is_supported(code));
        if !supported {
            return Err((files, io::Error::other("the kernel's io_uring is too old (Linux 5.6 is needed)")));
        }
        let fds: Vec<i32> = files.fds.iter().map(|fd| fd.as_raw_fd()).collect();
        if let Err(error) = ring.submitter().register_files(&fds) {
            return Err((files, error));
        }
        let region = region.filter(|region| match register(&ring, *region) {
            Ok(()) => true,
            Err(error) => {
                // An unprivileged process with a small RLIMIT_MEMLOCK; only speed is lost.
                tracing::info!(disk = files.name, %error, "buffers are not registered with io_uring; raise RLIMIT_MEMLOCK for speed");
                false
            }
        });
        // SAFETY: eventfd returns a new descriptor that nobody else owns, or -1, which is checked first.
        let event = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err((files, io::Error::last_os_error()));
            }
            OwnedFd::from_raw_fd(fd)
        };
        let shared =
            Arc::new(Shared { files, queue: Mutex::default(), asleep: AtomicBool::new(false), event });
        let mut worker = Ring {
            ring,
            shared: shared.clone(),
            region,
            jobs: Slots::new(),
            steps: Slots::new(),
            ended: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("disk-ring".into())
            .spawn(move || worker.run())
            .expect("a process that cannot start threads cannot run");
        Ok(UringDisk { shared, thread: Some(thread) })
    }
}

fn register(ring: &IoUring, region: Region) -> io::Result<()> {
    let parts: Vec<libc::iovec> = (0..region.length)
        .step_by(MAX_REGISTERED)
        .map(|at| libc::iovec {
            iov_base: (region.address + at) as *mut libc::c_void,
            iov_len: MAX_REGISTERED.min(region.length - at),
        })
        .collect();
    // SAFETY: the region is the pool's mapping. The ring pins its pages, so they stay valid for the ring even if the pool were dropped
    // first; every I/O on them also holds a buffer, which holds the pool.
    unsafe { ring.submitter().register_buffers(&parts) }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        self.shared.queue.lock().stopping = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Disk for UringDisk {
    fn name(&self) -> &str {
        &self.shared.files.name
    }
    fn granularity(&self) -> u32 {
        self.shared.files.granularity
    }
    fn len(&self, file: File) -> Result<u64, DiskError> {
        self.shared.files.len(file)
    }
    fn available(&self) -> Result<u64, DiskError> {
        self.shared.files.available()
    }
    fn submit(&self, batch: Batch) -> Completion {
        let (completer, completion) = completion();
        self.shared.queue.lock().jobs.push_back((batch, completer));
        self.shared.wake();
        completion
    }
}

/// A slab: indices are what the kernel carries for us.
struct Slots<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Slots<T> {
    fn new() -> Self {
        Slots { slots: Vec::new(), free: Vec::new() }
    }
    fn insert(&mut self, value: T) -> usize {
        match self.free.pop() {
            Some(index) => {
                self.slots[index] = Some(value);
                index
            }
            None => {
                self.slots.push(Some(value));
                self.slots.len() - 1
            }
        }
    }
    fn get(&mut self, index: usize) -> &mut T {
        self.slots[index].as_mut().expect("the kernel answers each operation once")
    }
    fn remove(&mut self, index: usize) -> T {
        self.free.push(index);
        self.slots[index].take().expect("the kernel answers each operation once")
    }
    fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }
}

/// A batch under way.
struct Job {
    bufs: Vec<IoBuf>,
    sync: Vec<File>,
    left: usize,
    result: io::Result<()>,
    completer: Completer,
}

/// One operation under way. It owns, directly or through its job, all memory that the kernel was told of.
struct Step {
    job: usize,
    file: File,
    offset: u64,
    what: What,
}

enum What {
    /// Bytes still to come at this address, within one of the job's buffers.
    Read {
        address: *mut u8,
        len: usize,
    },
    /// What is still to go: `vectors` point into `_data`.
    Write {
        vectors: Vec<libc::iovec>,
        first: usize,
        _data: Vec<Buf>,
    },
    Allocate {
        length: u64,
    },
    Sync,
}

struct Ring {
    ring: IoUring,
    shared: Arc<Shared>,
    region: Option<Region>,
    jobs: Slots<Job>,
    steps: Slots<Step>,
    /// Batches that have ended, to be answered once the completion queue is empty.
    ended: Vec<(Completer, Done)>,
}

// SAFETY: the raw pointers in `steps` point into buffers that the same `Ring` owns; the whole moves to its thread once.
unsafe impl Send for Ring {}

impl Ring {
    fn run(&mut self) {
        self.arm();
        let mut completed: Vec<(u64, i32)> = Vec::new();
        loop {
            let stopping = self.accept();
            for (completer, done) in self.ended.drain(..) {
                completer.complete(done);
            }
            if stopping && self.jobs.is_empty() {
                return;
            }
            let wait = self.sleep();
            let result = self.ring.submit_and_wait(wait);
            self.shared.asleep.store(false, Ordering::SeqCst);
            match result {
                Ok(_) => {}
                // EBUSY: completions have to be taken first; EAGAIN: the kernel is short of memory for a moment.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => {
                    tracing::error!(disk = self.shared.files.name, %error, "the ring failed");
                    // Buffers may still be in the kernel's hands: leak them rather than free memory under a device's writes.
                    std::mem::forget(std::mem::replace(&mut self.steps, Slots::new()));
                    for job in self.jobs.slots.drain(..).flatten() {
                        let Job { bufs, completer, .. } = job;
                        std::mem::forget(bufs);
                        let result = Err(io::Error::other(format!("io_uring_enter: {error}")));
                        completer.complete(Done { bufs: Vec::new(), result });
                    }
                    let mut queue = self.shared.queue.lock();
                    queue.jobs.clear();
                    return;
                }
            }
            completed.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
            for (data, result) in completed.drain(..) {
                if data == WAKE {
                    let mut count = [0; 8];
                    let _ = rustix::io::read(&self.shared.event, &mut count);
                    self.arm();
                } else {
                    self.completed(data as usize, result);
                }
            }
            for (completer, done) in self.ended.drain(..) {
                completer.complete(done);
            }
        }
    }

    /// 1 if there is nothing to do but wait, 0 otherwise. Says so first, so that a submitter after this wakes the thread.
    fn sleep(&mut self) -> usize {
        self.shared.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let queue = self.shared.queue.lock();
        if queue.jobs.is_empty() && !(queue.stopping && self.jobs.is_empty()) { 1 } else { 0 }
    }

    fn arm(&mut self) {
        let fd = io_uring::types::Fd(self.shared.event.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(WAKE);
        self.push(entry);
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: memory that the entry names belongs to a `Step` or its `Job`, which are kept until the kernel has answered.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // Full: hand over what is there.
            if let Err(error) = self.ring.submit() {
                if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) {
                    tracing::error!(disk = self.shared.files.name, %error, "the ring does not take entries");
                }
                std::thread::yield_now();
            }
        }
    }

    fn accept(&mut self) -> bool {
        let (jobs, stopping) = {
            let mut queue = self.shared.queue.lock();
            (std::mem::take(&mut queue.jobs), queue.stopping)
        };
        for (batch, completer) in jobs {
            self.start(batch, completer);
        }
        stopping
    }

    fn start(&mut self, batch: Batch, completer: Completer) {
        let Batch { mut bufs, ios, sync } = batch;
        let addresses: Vec<*mut u8> = bufs.iter_mut().map(IoBuf::as_io_ptr).collect();
        let capacities: Vec<usize> = bufs.iter().map(IoBuf::capacity).collect();
        let left = ios.len();
        let job = self.jobs.insert(Job { bufs, sync, left, result: Ok(()), completer });
        for io in ios {
            let step = match io {
                Io::Read { file, offset, buf, at, len } => {
                    assert!(at + len <= capacities[buf], "a read beyond its buffer");
                    // SAFETY: within the buffer, as just asserted.
                    let address = unsafe { addresses[buf].add(at) };
                    Step { job, file, offset, what: What::Read { address, len } }
                }
                Io::Write { file, offset, data } => {
                    let vectors = data
                        .iter()
                        .map(|part| libc::iovec {
                            iov_base: part.as_ptr() as *mut libc::c_void,
                            iov_len: part.len(),
                        })
                        .collect();
                    Step { job, file, offset, what: What::Write { vectors, first: 0, _data: data } }
                }
                Io::Allocate { file, length } => {
                    Step { job, file, offset: 0, what: What::Allocate { length } }
                }
            };
            let index = self.steps.insert(step);
            self.issue(index);
        }
        if left == 0 {
            self.jobs.get(job).left = 1;
            self.step_ended(job, Ok(()));
        }
    }

    /// The registered index of memory, if all of it lies in one.
    fn registered(region: Option<Region>, address: usize, len: usize) -> Option<u16> {
        let at = address.checked_sub(region?.address)?;
        let index = at / MAX_REGISTERED;
        (at + len <= region?.length && (at + len - 1) / MAX_REGISTERED == index).then_some(index as u16)
    }

    fn issue(&mut self, index: usize) {
        let region = self.region;
        let step = self.steps.get(index);
        let fd = Fixed(step.file as u32);
        let offset = step.offset;
        let entry = match &step.what {
            What::Read { address, len } => match Self::registered(region, *address as usize, *len) {
                Some(buf) => opcode::ReadFixed::new(fd, *address, *len as u32, buf).offset(offset).build(),
                None => opcode::Read::new(fd, *address, *len as u32).offset(offset).build(),
            },
            What::Write { vectors, first, .. } => match &vectors[*first..] {
                [one] => {
                    let (address, len) = (one.iov_base as *const u8, one.iov_len);
                    match Self::registered(region, address as usize, len) {
                        Some(buf) => {
                            opcode::WriteFixed::new(fd, address, len as u32, buf).offset(offset).build()
                        }
                        None => opcode::Write::new(fd, address, len as u32).offset(offset).build(),
                    }
                }
                many => opcode::Writev::new(fd, many.as_ptr(), many.len() as u32).offset(offset).build(),
            },
            What::Allocate { length } => opcode::Fallocate::new(fd, *length).build(),
            What::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        };
        self.push(entry.user_data(index as u64));
    }

    fn completed(&mut self, index: usize, result: i32) {
        if matches!(-result, libc::EINTR | libc::EAGAIN) {
            return self.issue(index);
        }
        let step = self.steps.get(index);
        let result = if result < 0 {
            Err(io::Error::from_raw_os_error(-result))
        } else {
            let count = result as usize;
            step.offset += count as u64;
            let more = match &mut step.what {
                What::Read { .. } if count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
                What::Write { .. } if count == 0 => Err(io::ErrorKind::WriteZero.into()),
                What::Read { address, len } => {
                    // SAFETY: the kernel has written `count <= len` bytes there.
                    *address = unsafe { address.add(count) };
                    *len -= count;
                    Ok(*len > 0)
                }
                What::Write { vectors, first, .. } => {
                    let mut count = count;
                    while *first < vectors.len() && count >= vectors[*first].iov_len {
                        count -= vectors[*first].iov_len;
                        *first += 1;
                    }
                    if let (true, Some(part)) = (count > 0, vectors.get_mut(*first)) {
                        // SAFETY: `count` is less than the part's length.
                        part.iov_base = unsafe { part.iov_base.add(count) };
                        part.iov_len -= count;
                    }
                    Ok(*first < vectors.len())
                }
                What::Allocate { .. } | What::Sync => Ok(false),
            };
            match more {
                Ok(true) => return self.issue(index),
                Ok(false) => Ok(()),
                Err(error) => Err(error),
            }
        };
        let step = self.steps.remove(index);
        let result = result.map_err(|error: io::Error| {
            let what = match step.what {
                What::Read { .. } => "read of",
                What::Write { .. } => "write to",
                What::Allocate { .. } => "growing",
                What::Sync => "sync of",
            };
            io::Error::new(error.kind(), format!("{what} {} at {}: {error}", step.file.name(), step.offset))
        });
        self.step_ended(step.job, result);
    }

    fn step_ended(&mut self, index: usize, result: io::Result<()>) {
        let job = self.jobs.get(index);
        job.left -= 1;
        if job.result.is_ok() {
            job.result = result;
        }
        if job.left > 0 {
            return;
        }
        if job.result.is_ok() && !job.sync.is_empty() {
            let files = std::mem::take(&mut job.sync);
            job.left = files.len();
            for file in files {
                let step = self.steps.insert(Step { job: index, file, offset: 0, what: What::Sync });
                self.issue(step);
            }
            return;
        }
        let Job { bufs, result, completer, .. } = self.jobs.remove(index);
        self.ended.push((completer, Done { bufs, result }));
    }
}
