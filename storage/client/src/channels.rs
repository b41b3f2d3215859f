//! The client's channels: each carries one mutation at a time and numbers them (rule R21).
//!
//! A channel whose last mutation has an unknown outcome (dropped, timed out) *rests*: a copy of that mutation may still be on its way,
//! and a second one in the same channel would break "one at a time" at the target. It is used again once the servers must have dropped
//! every message of the old one. Until then a fresh channel takes its place, so that concurrency does not suffer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use catena_proto::ids::{ChannelId, Sequence};
use catena_rt::time::{Instant, timeout_at};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Beyond a mutation's deadline: the longest that a message lives in queues and sockets after its sender gave up.
const REST: Duration = Duration::from_secs(60);

pub(crate) struct Channels {
    permits: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Ready for use, most recently used last: few channels stay warm in the targets' tables.
    free: Vec<Channel>,
    resting: VecDeque<(Instant, Channel)>,
    next: u32,
}

struct Channel {
    id: ChannelId,
    used: Sequence,
}

/// A channel held for one mutation. Dropped without [`Lease::settled`], the channel rests.
pub(crate) struct Lease {
    state: Arc<Mutex<State>>,
    channel: Option<Channel>,
    deadline: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Channels {
    pub fn new(limit: usize) -> Channels {
        let state = State { free: Vec::new(), resting: VecDeque::new(), next: 1 };
        Channels { permits: Arc::new(Semaphore::new(limit.max(1))), state: Arc::new(Mutex::new(state)) }
    }

    /// A channel for one mutation that ends at `deadline`; nothing if none comes free before.
    pub async fn acquire(&self, deadline: Instant) -> Option<Lease> {
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => timeout_at(deadline, self.permits.clone().acquire_owned()).await.ok()?.ok()?,
        };
        let mut state = self.state.lock();
        let rested = state.resting.front().is_some_and(|(until, _)| *until <= Instant::now());
        let mut channel = if let Some(channel) = state.free.pop() {
            channel
        } else if rested && let Some((_, channel)) = state.resting.pop_front() {
            channel
        } else {
            state.next += 1;
            Channel { id: ChannelId(state.next - 1), used: Sequence(0) }
        };
        channel.used.0 += 1;
        drop(state);
        Some(Lease { state: self.state.clone(), channel: Some(channel), deadline, _permit: permit })
    }
}

impl Lease {
    /// The mutation's place in the client's sequence space.
    pub fn place(&self) -> (ChannelId, Sequence) {
        let channel = self.channel.as_ref().expect("the channel leaves with the lease");
        (channel.id, channel.used)
    }

    /// The mutation's outcome is known and no copy of it can be applied any more: the channel is free at once.
    pub fn settled(mut self) {
        self.state.lock().free.extend(self.channel.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take() {
            self.state.lock().resting.push_back((self.deadline + REST, channel));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_carries_one_mutation_at_a_time_and_numbers_grow() {
        let channels = Channels::new(2);
        let first = channels.acquire(soon()).await.unwrap();
        let second = channels.acquire(soon()).await.unwrap();
        assert_eq!(first.place(), (ChannelId(1), Sequence(1)));
        assert_eq!(second.place(), (ChannelId(2), Sequence(1)));
        assert!(channels.acquire(soon()).await.is_none(), "a third at once");
        first.settled();
        assert_eq!(channels.acquire(soon()).await.unwrap().place(), (ChannelId(1), Sequence(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_with_an_unknown_outcome_rests_while_another_takes_its_place() {
        let channels = Channels::new(1);
        drop(channels.acquire(soon()).await.unwrap());
        let other = channels.acquire(soon()).await.unwrap();
        assert_eq!(other.place().0, ChannelId(2));
        drop(other);
        tokio::time::advance(REST + Duration::from_secs(2)).await;
        assert_eq!(channels.acquire(soon()).await.unwrap().place(), (ChannelId(1), Sequence(2)));
    }
}
