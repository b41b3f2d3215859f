//! One task of the executor and the handle of whoever waits for it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use super::{Owner, Shared};

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task.
pub(crate) struct Task {
    sim: Weak<Shared>,
    pub process: u64,
    pub id: u64,
    /// Gone while it is polled, and when it has ended.
    work: Mutex<Option<Work>>,
    queued: AtomicBool,
    aborted: AtomicBool,
    finished: AtomicBool,
    /// Whoever waits for the end.
    waiter: Mutex<Option<Waker>>,
}

/// What a task leaves behind.
pub(crate) struct Join<T> {
    pub task: Arc<Task>,
    slot: Arc<Mutex<Option<T>>>,
}

pub(super) fn make<F>(owner: &Owner, id: u64, future: F) -> (Arc<Task>, Join<F::Output>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let slot = Arc::new(Mutex::new(None));
    let output = slot.clone();
    let work: Work = Box::pin(async move {
        let result = future.await;
        *output.lock() = Some(result);
    });
    let task = Arc::new(Task {
        sim: Arc::downgrade(&owner.sim),
        process: owner.id,
        id,
        work: Mutex::new(Some(work)),
        queued: AtomicBool::new(true),
        aborted: AtomicBool::new(false),
        finished: AtomicBool::new(false),
        waiter: Mutex::new(None),
    });
    (task.clone(), Join { task, slot })
}

impl Task {
    /// One poll.
    pub fn run(self: &Arc<Task>) {
        self.queued.store(false, Relaxed);
        let Some(mut work) = self.work.lock().take() else { return };
        let waker = Waker::from(self.clone());
        let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_pending() && !self.aborted.load(Relaxed) {
            *self.work.lock() = Some(work);
            return;
        }
        drop(work);
        self.finish();
    }

    /// The end, once.
    fn finish(&self) {
        if self.finished.swap(true, Relaxed) {
            return;
        }
        if let Some(sim) = self.sim.upgrade() {
            let mut state = sim.state.lock();
            let done = state.processes.get_mut(&self.process).and_then(|life| life.tasks.remove(&self.id));
            drop(state);
            drop(done);
        }
        let waiter = self.waiter.lock().take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Drops the work where it is; if it is being polled, after that.
    pub fn abort(&self) {
        self.aborted.store(true, Relaxed);
        let work = self.work.lock().take();
        let running = work.is_none() && !self.finished.load(Relaxed);
        drop(work);
        if !running {
            self.finish();
        }
    }

    pub fn is_finished(&self) -> bool {
        self.finished.load(Relaxed)
    }
}

impl Wake for Task {
    fn wake(self: Arc<Task>) {
        if self.finished.load(Relaxed) || self.queued.swap(true, Relaxed) {
            return;
        }
        if let Some(sim) = self.sim.upgrade() {
            sim.state.lock().make_ready(self);
        }
    }
}

impl<T> Join<T> {
    /// The result, if the task has ended: `Some(None)` if it left none.
    pub fn take(&mut self) -> Option<Option<T>> {
        self.task.is_finished().then(|| self.slot.lock().take())
    }

    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(result) = self.take() {
            return Poll::Ready(result);
        }
        *self.task.waiter.lock() = Some(context.waker().clone());
        Poll::Pending
    }
}
