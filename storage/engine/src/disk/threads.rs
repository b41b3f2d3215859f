//! The fallback where io_uring is forbidden: a small pool of threads that call `preadv` and `pwritev`.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use catena_buf::{Buf, IoBuf};
use parking_lot::{Condvar, Mutex};

use super::dir::{Files, allocate};
use super::{Batch, Completer, Completion, Disk, Done, File, Io, completion};
use crate::error::DiskError;

/// Enough to keep a disk busy from userspace threads; more only costs stacks.
const THREADS: usize = 8;

pub(super) struct ThreadDisk {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    files: Files,
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    stopping: bool,
}

/// One operation of a batch, or the sync behind them.
enum Step {
    Read { file: File, buf: IoBuf, index: usize, parts: Vec<(u64, usize, usize)> },
    Write { file: File, offset: u64, data: Vec<Buf> },
    Allocate { file: File, length: u64 },
    Sync,
}

struct Job {
    step: Step,
    batch: Arc<Running>,
}

struct Running {
    state: Mutex<State>,
    sync: Vec<File>,
}

struct State {
    left: usize,
    bufs: Vec<Option<IoBuf>>,
    result: io::Result<()>,
    completer: Option<Completer>,
}

impl ThreadDisk {
    pub fn new(files: Files) -> ThreadDisk {
        let shared = Arc::new(Shared { files, queue: Mutex::default(), work: Condvar::new() });
        let threads = (0..THREADS)
            .map(|_| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name("disk".into())
                    .spawn(move || shared.run())
                    .expect("a process that cannot start threads cannot run")
            })
            .collect();
        ThreadDisk { shared, threads }
    }
}

impl Drop for ThreadDisk {
    fn drop(&mut self) {
        self.shared.queue.lock().stopping = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

impl Disk for ThreadDisk {
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
        let mut bufs: Vec<Option<IoBuf>> = batch.bufs.into_iter().map(Some).collect();
        let mut steps: Vec<Step> = Vec::with_capacity(batch.ios.len());
        for io in batch.ios {
            match io {
                // All reads into one buffer are one step: the buffer has one owner.
                Io::Read { file, offset, buf: index, at, len } => match bufs[index].take() {
                    Some(buf) => steps.push(Step::Read { file, buf, index, parts: vec![(offset, at, len)] }),
                    None => steps.iter_mut().for_each(|step| match step {
                        Step::Read { index: same, parts, .. } if *same == index => {
                            parts.push((offset, at, len))
                        }
                        _ => {}
                    }),
                },
                Io::Write { file, offset, data } => steps.push(Step::Write { file, offset, data }),
                Io::Allocate { file, length } => steps.push(Step::Allocate { file, length }),
            }
        }
        if steps.is_empty() {
            steps.push(Step::Sync);
        }
        let state = State { left: steps.len(), bufs, result: Ok(()), completer: Some(completer) };
        let running = Arc::new(Running { state: Mutex::new(state), sync: batch.sync });
        let mut queue = self.shared.queue.lock();
        for step in steps {
            queue.jobs.push_back(Job { step, batch: running.clone() });
            self.shared.work.notify_one();
        }
        completion
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let job = {
                let mut queue = self.queue.lock();
                loop {
                    if let Some(job) = queue.jobs.pop_front() {
                        break job;
                    }
                    if queue.stopping {
                        return;
                    }
                    self.work.wait(&mut queue);
                }
            };
            self.carry_out(job);
        }
    }

    fn carry_out(&self, job: Job) {
        let mut filled = None;
        let mut result = match job.step {
            Step::Read { file, mut buf, index, parts } => {
                let result = parts.into_iter().try_for_each(|(offset, at, len)| {
                    read(&self.files.fds[file as usize], offset, &mut buf.whole_mut()[at..at + len])
                });
                filled = Some((index, buf));
                result
            }
            Step::Write { file, offset, data } => write(&self.files.fds[file as usize], offset, &data),
            Step::Allocate { file, length } => allocate(&self.files.fds[file as usize], length),
            Step::Sync => Ok(()),
        };
        let last = {
            let mut state = job.batch.state.lock();
            if let Some((index, buf)) = filled {
                state.bufs[index] = Some(buf);
            }
            if let (Ok(()), Err(_)) = (&state.result, &result) {
                state.result = std::mem::replace(&mut result, Ok(()));
            }
            state.left -= 1;
            state.left == 0
        };
        if !last {
            return;
        }
        // The last one syncs, when all that it is to make durable has ended well.
        let mut state = job.batch.state.lock();
        let mut result = std::mem::replace(&mut state.result, Ok(()));
        for &file in &job.batch.sync {
            result = result.and_then(|()| Ok(rustix::fs::fdatasync(&self.files.fds[file as usize])?));
        }
        let bufs = state.bufs.drain(..).flatten().collect();
        if let Some(completer) = state.completer.take() {
            completer.complete(Done { bufs, result });
        }
    }
}

fn read(fd: &OwnedFd, mut offset: u64, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        match rustix::io::preadv(fd, &mut [IoSliceMut::new(into)], offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                into = &mut into[count..];
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn write(fd: &OwnedFd, mut offset: u64, data: &[Buf]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = data.iter().map(|part| IoSlice::new(part)).collect();
    let mut slices = &mut slices[..];
    while !slices.is_empty() {
        match rustix::io::pwritev(fd, slices, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                IoSlice::advance_slices(&mut slices, count);
                offset += count as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
