//! The serving side without its network: requests in, replies out, over any [`Store`].

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_kv::local::{Store, View};
use catena_kv::{KEY_LIMIT, KvError, USER_KEY_END};
use catena_proto::pb::*;
use catena_rt::time::{Instant, sleep};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::views::Views;
use crate::wire;

/// A page ends after this many bytes of keys and values, whatever was asked.
const PAGE_BYTES: usize = 1 << 20;
/// A page ends after this many items, whatever was asked.
const PAGE_ITEMS: usize = 16 << 10;
/// How often views are looked through when nobody asks for any.
const LOOK: Duration = Duration::from_secs(2);

/// Serves one opened store to any number of clients.
pub struct Service<S: Store> {
    store: Arc<S>,
    /// This opening of the store: versions of an earlier one may belong to another history (a restored backup).
    opening: u64,
    views: Mutex<Views<S::View>>,
    /// Why the store takes no more commits, once it does not.
    broken: watch::Sender<Option<KvError>>,
    metrics: Metrics,
}

impl<S: Store> Service<S> {
    /// Serves `store`; `opening` must be another number at every start.
    pub fn new(store: Arc<S>, opening: u64) -> Arc<Service<S>> {
        Arc::new(Service {
            store,
            opening,
            views: Mutex::new(Views::new()),
            broken: watch::Sender::new(None),
            metrics: Metrics::default(),
        })
    }

    /// Its counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Forgets old versions for as long as it is polled, so that an idle store is not held at an old one.
    pub async fn run(self: Arc<Self>) {
        loop {
            sleep(LOOK).await;
            let mut views = self.views.lock();
            views.forget(Instant::now());
            self.metrics.views.set(views.len() as i64);
        }
    }

    /// Resolves with the reason when the store has failed: it then takes no commit before it was opened again.
    pub async fn failed(&self) -> KvError {
        let mut broken = self.broken.subscribe();
        loop {
            if let Some(error) = broken.borrow_and_update().clone() {
                return error;
            }
            if broken.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The newest version.
    pub async fn read_version(&self, _: KvReadVersionRequest) -> KvReadVersionReply {
        self.metrics.read_versions.inc();
        match self.view(None) {
            Ok((_, at)) => KvReadVersionReply { at: Some(at), failure: None },
            Err(error) => KvReadVersionReply { at: None, failure: Some(self.failure(error)) },
        }
    }

    /// One key.
    pub async fn get(&self, request: KvGetRequest) -> KvGetReply {
        self.metrics.gets.inc();
        let read = || {
            if &request.key[..] >= USER_KEY_END {
                return Err(KvError::KeyOutsideRange);
            }
            if request.key.len() > KEY_LIMIT {
                return Err(KvError::KeyTooLarge(request.key.len()));
            }
            let (view, at) = self.view(request.at)?;
            Ok((view.get(&request.key)?, at))
        };
        match read() {
            Ok((value, at)) => KvGetReply { value, at: Some(at), failure: None },
            Err(error) => KvGetReply { failure: Some(self.failure(error)), ..Default::default() },
        }
    }

    /// One page of a range.
    pub async fn get_range(&self, request: KvRangeRequest) -> KvRangeReply {
        self.metrics.ranges.inc();
        self.page(&request)
            .unwrap_or_else(|error| KvRangeReply { failure: Some(self.failure(error)), ..Default::default() })
    }

    fn page(&self, request: &KvRangeRequest) -> Result<KvRangeReply, KvError> {
        let (begin, end) = (&request.begin, &request.end);
        if &end[..] > USER_KEY_END {
            return Err(KvError::KeyOutsideRange);
        }
        if begin > end {
            return Err(KvError::InvertedRange);
        }
        let (view, at) = self.view(request.at)?;
        let within = |asked: u32, most: usize| if asked == 0 { most } else { most.min(asked as usize) };
        let mut items_left = within(request.limit, PAGE_ITEMS);
        let mut bytes_left = within(request.target_bytes, PAGE_BYTES);
        let mut reply = KvRangeReply { at: Some(at), ..Default::default() };
        view.scan(begin, end, request.reverse, &mut |key, value| {
            items_left -= 1;
            bytes_left = bytes_left.saturating_sub(key.len() + value.len());
            reply.items.push(KvItem { key, value });
            if items_left == 0 || bytes_left == 0 {
                reply.more = true;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(reply)
    }

    /// Commits.
    pub async fn commit(&self, request: KvCommitRequest) -> KvCommitReply {
        self.metrics.commits.inc();
        match self.try_commit(request).await {
            Ok(stamp) => KvCommitReply { stamp, failure: None },
            Err(error) => {
                if matches!(error, KvError::Conflict | KvError::TooOld) {
                    self.metrics.refused.inc();
                }
                KvCommitReply { stamp: Bytes::new(), failure: Some(self.failure(error)) }
            }
        }
    }

    async fn try_commit(&self, request: KvCommitRequest) -> Result<Bytes, KvError> {
        let mut commit = wire::commit(&request)?;
        commit.validate()?;
        if let Some(read) = request.read.filter(|_| !commit.reads.is_empty()) {
            if read.opening != self.opening {
                return Err(KvError::TooOld);
            }
            commit.read_version = Some(read.version);
        }
        drop(request);
        let stamp = self.store.commit(commit).await?;
        Ok(Bytes::copy_from_slice(stamp.as_bytes()))
    }

    /// The view to read from: that of a version which was handed out, or the newest.
    fn view(&self, at: Option<KvVersion>) -> Result<(Arc<S::View>, KvVersion), KvError> {
        let Some(at) = at else {
            // Under the lock: what is opened later must not be older.
            let mut views = self.views.lock();
            let view = views.hand_out(self.store.view()?, Instant::now());
            let at = KvVersion { version: view.version(), opening: self.opening };
            return Ok((view, at));
        };
        if at.opening != self.opening {
            return Err(KvError::TooOld);
        }
        let view = self.views.lock().get(at.version).ok_or(KvError::TooOld)?;
        Ok((view, at))
    }

    fn failure(&self, error: KvError) -> KvFailure {
        if let KvError::Storage(_) = &error {
            self.broken.send_replace(Some(error.clone()));
        }
        wire::failure(error)
    }
}
