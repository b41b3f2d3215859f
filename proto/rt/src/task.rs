//! Tasks and their handles, with tokio's meaning: a dropped handle detaches, a set that is dropped aborts.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::process::Process;

/// Starts a task of the running process.
///
/// # Panics
/// Outside a runtime.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Process::current().spawn(future)
}

/// Whether [`spawn`] can start a task here: what is dropped may be dropped anywhere.
pub fn can_spawn() -> bool {
    #[cfg(feature = "sim")]
    if crate::sim::is_running() {
        return true;
    }
    tokio::runtime::Handle::try_current().is_ok()
}

/// Runs what blocks, on a thread that may block; in the simulator, where nothing may, as a task.
///
/// # Panics
/// Outside a runtime.
pub fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(feature = "sim")]
    if crate::sim::is_running() {
        return spawn(async move { work() });
    }
    JoinHandle::tokio(tokio::task::spawn_blocking(work))
}

/// Lets other tasks run.
pub async fn yield_now() {
    #[cfg(feature = "sim")]
    if crate::sim::is_running() {
        let mut yielded = false;
        return std::future::poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
    tokio::task::yield_now().await;
}

/// Why a task has no result.
#[derive(Debug)]
pub struct JoinError(Why);

#[derive(Debug)]
enum Why {
    Tokio(tokio::task::JoinError),
    #[cfg(feature = "sim")]
    Cancelled,
}

impl JoinError {
    /// It was aborted.
    pub fn is_cancelled(&self) -> bool {
        match &self.0 {
            Why::Tokio(error) => error.is_cancelled(),
            #[cfg(feature = "sim")]
            Why::Cancelled => true,
        }
    }

    /// It panicked.
    pub fn is_panic(&self) -> bool {
        match &self.0 {
            Why::Tokio(error) => error.is_panic(),
            #[cfg(feature = "sim")]
            Why::Cancelled => false,
        }
    }

    /// What it panicked with.
    ///
    /// # Panics
    /// If it did not.
    pub fn into_panic(self) -> Box<dyn Any + Send + 'static> {
        match self.0 {
            Why::Tokio(error) => error.into_panic(),
            #[cfg(feature = "sim")]
            Why::Cancelled => panic!("the task was cancelled and did not panic"),
        }
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Why::Tokio(error) => error.fmt(f),
            #[cfg(feature = "sim")]
            Why::Cancelled => f.write_str("the task was cancelled"),
        }
    }
}

impl std::error::Error for JoinError {}

/// A task's result to come. Dropping it lets the task go on.
pub struct JoinHandle<T>(Kind<T>);

enum Kind<T> {
    Tokio(tokio::task::JoinHandle<T>),
    #[cfg(feature = "sim")]
    Sim(crate::sim::Join<T>),
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinHandle")
    }
}

impl<T> JoinHandle<T> {
    pub(crate) fn tokio(handle: tokio::task::JoinHandle<T>) -> JoinHandle<T> {
        JoinHandle(Kind::Tokio(handle))
    }

    #[cfg(feature = "sim")]
    pub(crate) fn simulated(join: crate::sim::Join<T>) -> JoinHandle<T> {
        JoinHandle(Kind::Sim(join))
    }

    /// Ends the task where it is.
    pub fn abort(&self) {
        match &self.0 {
            Kind::Tokio(handle) => handle.abort(),
            #[cfg(feature = "sim")]
            Kind::Sim(join) => join.task.abort(),
        }
    }

    /// Something to end it with later.
    pub fn abort_handle(&self) -> AbortHandle {
        match &self.0 {
            Kind::Tokio(handle) => AbortHandle(Abort::Tokio(handle.abort_handle())),
            #[cfg(feature = "sim")]
            Kind::Sim(join) => AbortHandle(Abort::Sim(join.task.clone())),
        }
    }

    /// It has ended, one way or the other.
    pub fn is_finished(&self) -> bool {
        match &self.0 {
            Kind::Tokio(handle) => handle.is_finished(),
            #[cfg(feature = "sim")]
            Kind::Sim(join) => join.task.is_finished(),
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Kind::Tokio(handle) => {
                Pin::new(handle).poll(context).map_err(|error| JoinError(Why::Tokio(error)))
            }
            #[cfg(feature = "sim")]
            Kind::Sim(join) => join.poll(context).map(|result| result.ok_or(JoinError(Why::Cancelled))),
        }
    }
}

/// Ends a task.
#[derive(Clone)]
pub struct AbortHandle(Abort);

#[derive(Clone)]
enum Abort {
    Tokio(tokio::task::AbortHandle),
    #[cfg(feature = "sim")]
    Sim(std::sync::Arc<crate::sim::Task>),
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AbortHandle")
    }
}

impl AbortHandle {
    /// Ends the task where it is.
    pub fn abort(&self) {
        match &self.0 {
            Abort::Tokio(handle) => handle.abort(),
            #[cfg(feature = "sim")]
            Abort::Sim(task) => task.abort(),
        }
    }

    /// It has ended, one way or the other.
    pub fn is_finished(&self) -> bool {
        match &self.0 {
            Abort::Tokio(handle) => handle.is_finished(),
            #[cfg(feature = "sim")]
            Abort::Sim(task) => task.is_finished(),
        }
    }
}

/// Tasks that end with the set.
#[derive(Debug)]
pub struct JoinSet<T>(FuturesUnordered<JoinHandle<T>>);

impl<T> Default for JoinSet<T> {
    fn default() -> JoinSet<T> {
        JoinSet::new()
    }
}

impl<T> JoinSet<T> {
    /// An empty one.
    pub fn new() -> JoinSet<T> {
        JoinSet(FuturesUnordered::new())
    }

    /// How many have not been joined.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next one that ends; `None` if there is none.
    pub async fn join_next(&mut self) -> Option<Result<T, JoinError>> {
        self.0.next().await
    }

    /// One that has ended, if any has.
    pub fn try_join_next(&mut self) -> Option<Result<T, JoinError>> {
        self.0.next().now_or_never().flatten()
    }

    /// Ends all of them. They still can be joined.
    pub fn abort_all(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl<T: Send + 'static> JoinSet<T> {
    /// Starts a task of the running process.
    pub fn spawn(&mut self, future: impl Future<Output = T> + Send + 'static) -> AbortHandle {
        self.spawn_in(&Process::current(), future)
    }

    /// Starts a task of `process`.
    pub fn spawn_in(
        &mut self,
        process: &Process,
        future: impl Future<Output = T> + Send + 'static,
    ) -> AbortHandle {
        let handle = process.spawn(future);
        let abort = handle.abort_handle();
        self.0.push(handle);
        abort
    }
}

impl<T> Drop for JoinSet<T> {
    fn drop(&mut self) {
        self.abort_all();
    }
}
