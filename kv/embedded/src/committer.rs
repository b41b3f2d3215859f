//! Group commit. One thread per store takes all commits that are waiting, checks and orders them, writes them as one record to the log
//! with one fdatasync, makes them visible and answers; meanwhile the next group collects. It is a thread of its own so that no
//! thread that serves requests ever waits in fdatasync.
//!
//! Order of the steps, and why: check and work out the effects (a conflict costs no I/O) -> log, synced -> fjall -> publish the view (readers see
//! only what is durable: nobody acts on what a crash could take back) -> answer (who got the answer finds its write in the next view).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use catena_kv::local::{Commit, ConflictWindow, Effects, Group};
use catena_kv::{KvError, Versionstamp};
use catena_rt::time::Instant;
use fjall::Keyspace;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::apply;
use crate::checkpoint::Checkpoint;
use crate::log::Log;
use crate::store::Shared;
use crate::view::storage_error;

/// Bytes of commits that may wait. More are refused: the disk does not keep up.
const QUEUE_BYTES: usize = 256 << 20;
/// Bytes and number of commits in one group, which bound a group's latency and memory.
const GROUP_BYTES: usize = 16 << 20;
const GROUP_COMMITS: usize = 4096;

/// A commit that waits.
struct Request {
    commit: Commit,
    bytes: usize,
    reply: oneshot::Sender<Result<Versionstamp, KvError>>,
}

/// Where commits wait for the committer.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    arrival: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    bytes: usize,
    idle: bool,
    /// No more is accepted: the store is closing, or has failed for this reason.
    closed: Option<KvError>,
}

impl Queue {
    /// Hands a commit over. The answer comes even if nobody waits for it: dropping the receiver does not stop the commit.
    pub(crate) fn push(
        &self,
        commit: Commit,
    ) -> Result<oneshot::Receiver<Result<Versionstamp, KvError>>, KvError> {
        let bytes = commit.size();
        let (reply, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if let Some(reason) = &waiting.closed {
            return Err(reason.clone());
        }
        if waiting.bytes + bytes > QUEUE_BYTES {
            return Err(KvError::Unavailable("too many commits are waiting for the disk".into()));
        }
        waiting.bytes += bytes;
        waiting.requests.push_back(Request { commit, bytes, reply });
        if waiting.idle {
            waiting.idle = false;
            self.arrival.notify_one();
        }
        Ok(answer)
    }

    /// The next group; waits for one. `None` once closed and everything accepted before is done.
    fn next_group(&self, group: &mut Vec<Request>) -> Option<()> {
        let mut waiting = self.waiting.lock();
        while waiting.requests.is_empty() {
            if waiting.closed.is_some() {
                return None;
            }
            waiting.idle = true;
            self.arrival.wait(&mut waiting);
        }
        let mut bytes = 0;
        while group.len() < GROUP_COMMITS && bytes < GROUP_BYTES {
            let Some(request) = waiting.requests.pop_front() else { break };
            bytes += request.bytes;
            group.push(request);
        }
        waiting.bytes -= bytes;
        Some(())
    }

    /// Accepts nothing more. What waits is still done by the committer, unless `drop_waiting`.
    pub(crate) fn close(&self, reason: KvError, drop_waiting: bool) {
        let mut waiting = self.waiting.lock();
        let reason = waiting.closed.get_or_insert(reason).clone();
        if drop_waiting {
            waiting.bytes = 0;
            for request in waiting.requests.drain(..) {
                let _ = request.reply.send(Err(reason.clone()));
            }
        }
        self.arrival.notify_one();
    }
}

/// The committer's own state.
pub(crate) struct Committer {
    shared: Arc<Shared>,
    window: ConflictWindow,
    log: Log,
    checkpoint: Checkpoint,
}

impl Committer {
    /// A committer on top of what `shared` shows.
    pub(crate) fn new(shared: Arc<Shared>, log: Log, checkpoint: Checkpoint) -> Committer {
        let window = ConflictWindow::new(shared.view().version);
        Committer { shared, window, log, checkpoint }
    }

    /// Runs until the queue is closed or the storage fails.
    pub(crate) fn run(mut self) {
        // However this ends, by panic too, nobody may wait for ever.
        let shared = self.shared.clone();
        let _close = OnDrop(|| shared.queue.close(KvError::Storage("the committer stopped".into()), true));
        let mut group = Vec::new();
        while self.shared.queue.next_group(&mut group).is_some() {
            if let Err(error) = self.commit_group(&mut group) {
                tracing::error!(%error, "key-value store failed; no more commits are accepted");
                self.shared.queue.close(error, true);
                return;
            }
        }
    }

    /// Commits what can be committed and answers everyone. An error is the storage's and final.
    fn commit_group(&mut self, requests: &mut Vec<Request>) -> Result<(), KvError> {
        let view = self.shared.view();
        let version = view.version + 1;
        let mut group = Group::new(&*view, &mut self.window, version, Instant::now());
        let mut accepted = Vec::with_capacity(requests.len());
        let mut requests = requests.drain(..);
        while let Some(request) = requests.next() {
            match group.add(&request.commit) {
                Ok(stamp) => accepted.push((request.reply, stamp)),
                Err(refusal @ (KvError::Conflict | KvError::TooOld)) => {
                    self.shared.counters.refused.fetch_add(1, Relaxed);
                    let _ = request.reply.send(Err(refusal));
                }
                Err(error) => {
                    // Nothing of this group was written.
                    let rest = requests.map(|request| request.reply);
                    let replies =
                        accepted.into_iter().map(|(reply, _)| reply).chain([request.reply]).chain(rest);
                    replies.for_each(|reply| _ = reply.send(Err(error.clone())));
                    return Err(error);
                }
            }
        }
        if accepted.is_empty() {
            return Ok(());
        }
        let effects = group.into_effects();
        // Whatever fails from here on, the group may turn out to be in the log when the store is opened again.
        if let Err(error) = self.write(version, effects, &view.keyspace) {
            accepted.into_iter().for_each(|(reply, _)| _ = reply.send(Err(KvError::CommitUnknown)));
            return Err(error);
        }
        self.shared.publish(version, self.checkpoint.database.snapshot());
        self.shared.counters.commits.fetch_add(accepted.len() as u64, Relaxed);
        self.shared.counters.groups.fetch_add(1, Relaxed);
        accepted.into_iter().for_each(|(reply, stamp)| _ = reply.send(Ok(stamp)));
        Ok(())
    }

    /// Log, synced, then fjall.
    fn write(&mut self, version: u64, effects: Effects, keyspace: &Keyspace) -> Result<(), KvError> {
        if self.log.is_full() {
            // The segment to be overwritten was filled before the last checkpoint began. The next one covers the segment just filled.
            self.checkpoint.finish()?;
            self.checkpoint.begin()?;
            self.log.turn();
        }
        self.log.append(version, &effects).map_err(|error| KvError::Storage(error.to_string()))?;
        apply(&self.checkpoint.database, keyspace, version, effects).map_err(|error| storage_error(&error))
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
