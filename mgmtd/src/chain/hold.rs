//! When a chain is left as it is for a moment, so that targets which were lost together count as lost together.
//!
//! A power cut stops all targets of a chain in one instant, but mgmtd learns it one by one: leases run out in the order of the last
//! heartbeats, and services that come back quickly register in any order. Taken one by one, only the last would become `lastsrv`, and
//! if just that machine never returns, the chain would stay down although every other replica is complete (the limit of R29, met with
//! a single failed machine).
//!
//! So a chain with a lost serving target is held as it is while none of those that would go on serving has been heard from within
//! T/2. Nothing is lost by waiting: whoever was not heard from for T/2 has stopped serving by its own clock, and while the chain
//! version stands, no write can be acknowledged without the lost target. The hold ends when one is heard from (the usual case: within a
//! heartbeat), or when the lease of the last one has run out, and then all of them become `lastsrv`.

use catena_proto::ids::TargetId;
use catena_proto::routing::{LocalState, PublicState};

use super::{ChainState, News};

/// What mgmtd knows about the process behind a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contact {
    /// Heard from within T/2 by this primary.
    Heard,
    /// Its lease has not run out, but it was not heard from for T/2, or not at all since this primary began.
    Silent,
}

/// Whether `chain` has to wait; see above.
pub fn held(
    chain: &ChainState,
    news: impl Fn(TargetId) -> News,
    contact: impl Fn(TargetId) -> Contact,
) -> bool {
    let (mut lost, mut silent) = (false, false);
    for member in &chain.members {
        let news = news(member.id);
        let goes_on = match member.state {
            PublicState::Serving if news.local == LocalState::Offline => {
                lost = true;
                false
            }
            PublicState::Serving => true,
            PublicState::Syncing => news.local == LocalState::UpToDate && news.joined_at == member.joined_at,
            _ => false,
        };
        match goes_on.then(|| contact(member.id)) {
            Some(Contact::Heard) => return false,
            Some(Contact::Silent) => silent = true,
            None => {}
        }
    }
    lost && silent
}
