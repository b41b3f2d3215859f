//! Chain transitions: what becomes of a chain when its targets report, fail, or return.
//!
//! A pure function over values: [`step`] takes a chain and what is known of each target and gives the next chain. The table of
//! design section 5 is [`TABLE`]; this file reads it with rules R23 to R28: on *next* states, with everything lost together becoming
//! lastsrv, original disks only, one syncing target at a time, and a new session for every new membership.

mod hold;
mod table;

use catena_proto::ids::{ChainVersion, TargetId};
use catena_proto::routing::{LocalState, PublicState};

pub use hold::{Contact, held};
pub use table::{Others, Row, TABLE, next};

/// A target in its chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Which one.
    pub id: TargetId,
    /// What it may do.
    pub state: PublicState,
    /// The chain version at which its present or last membership began: the name of its resync session (R14, R20).
    pub joined_at: ChainVersion,
}

/// A chain as a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChainState {
    /// Goes up with every change.
    pub version: ChainVersion,
    /// In chain order (R26).
    pub members: Vec<Member>,
}

/// What is known of a target's service and disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct News {
    /// What the service last reported, or `Offline` if the target is certainly stopped: its lease ran out, its service confirmed the
    /// stop, or a new incarnation has its disk (R23, R28). `Unspecified`: nothing was heard yet, which changes nothing by itself.
    pub local: LocalState,
    /// The session that an up-to-date report belongs to (R20).
    pub joined_at: ChainVersion,
    /// Whether the target is on the disk it was made on, and that disk was not formatted again (R25).
    pub original_disk: bool,
}

impl News {
    /// Certainly stopped.
    pub const LOST: News =
        News { local: LocalState::Offline, joined_at: ChainVersion(0), original_disk: true };
}

/// The next state of `chain`, or `None` if nothing changes. One change of version; [`settle`] repeats it until nothing is left to do.
pub fn step(chain: &ChainState, news: impl Fn(TargetId) -> News) -> Option<ChainState> {
    let version = ChainVersion(chain.version.0 + 1);
    let locals: Vec<_> = chain.members.iter().map(|member| effective(member, news(member.id))).collect();
    let with_locals = || chain.members.iter().zip(&locals);

    // Who serves next: everything else depends on it.
    let stays = |(member, local): (&Member, &LocalState)| match member.state {
        PublicState::Serving => *local != LocalState::Offline,
        PublicState::Syncing => *local == LocalState::UpToDate,
        _ => false,
    };
    let stays_served = with_locals().any(stays);
    let returns = |(member, local): (&Member, &LocalState)| {
        member.state == PublicState::Lastsrv && matches!(local, LocalState::UpToDate | LocalState::Online)
    };
    // The first that returns serves; the others have what it has, or less (R25).
    let chosen = with_locals().find(|&pair| !stays_served && returns(pair)).map(|(member, _)| member.id);
    let others = if stays_served || chosen.is_some() { Others::Serve } else { Others::None };

    let mut syncing = with_locals()
        .find(|(member, local)| {
            member.state == PublicState::Syncing
                && next(**local, member.state, others) == PublicState::Syncing
        })
        .map(|(member, _)| member.id);
    let mut members: Vec<Member> = Vec::with_capacity(chain.members.len());
    for (member, &local) in with_locals() {
        let state = match next(local, member.state, others) {
            PublicState::Serving | PublicState::Lastsrv
                if member.state == PublicState::Lastsrv
                    && others == Others::Serve
                    && chosen != Some(member.id) =>
            {
                PublicState::Offline
            }
            // One at a time (R26): the write path ends in at most one syncing target.
            PublicState::Syncing if *syncing.get_or_insert(member.id) != member.id => PublicState::Waiting,
            state => state,
        };
        let began = match (member.state, state) {
            (PublicState::Syncing | PublicState::Serving, PublicState::Syncing) => false,
            (_, PublicState::Syncing) => true,
            (PublicState::Serving | PublicState::Syncing, PublicState::Serving) => false,
            (_, PublicState::Serving) => true,
            _ => false,
        };
        let joined_at = if began { version } else { member.joined_at };
        members.push(Member { id: member.id, state, joined_at });
    }
    // Stable, so that serving targets never change their relative order and a newcomer joins at the end (R9). What goes offline now
    // goes behind those that already are, so that a target which fails again and again does not keep the others from syncing.
    let fell = |member: &Member| {
        member.state == PublicState::Offline
            && chain.members.iter().any(|old| old.id == member.id && old.state != PublicState::Offline)
    };
    members.sort_by_key(|member| (rank(member.state), fell(member)));
    (members != chain.members).then_some(ChainState { version, members })
}

/// Steps until nothing changes any more: what the chain comes to if nothing else happens. `None` if it is there already.
pub fn settle(chain: &ChainState, news: impl Fn(TargetId) -> News) -> Option<ChainState> {
    let mut settled = None;
    // offline -> waiting -> syncing is the longest way; more would mean that the table runs in a circle.
    for _ in 0..8 {
        match step(settled.as_ref().unwrap_or(chain), &news) {
            Some(next) => settled = Some(next),
            None => return settled,
        }
    }
    unreachable!("the transition table does not come to rest for {chain:?}");
}

/// What a report counts for, given the state it meets.
fn effective(member: &Member, news: News) -> LocalState {
    match (member.state, news.local) {
        // A report of another session says that the target is there, not that it is complete (R20).
        (PublicState::Syncing, LocalState::UpToDate)
            if news.joined_at != member.joined_at
                && !catena_rt::broken("15 up-to-date counts in any session") =>
        {
            LocalState::Online
        }
        // An empty or exchanged disk never serves from lastsrv (R25).
        (PublicState::Lastsrv, _) if !news.original_disk => LocalState::Offline,
        (_, local) => local,
    }
}

/// Order within a chain (R26).
fn rank(state: PublicState) -> u8 {
    match state {
        PublicState::Serving => 0,
        PublicState::Lastsrv => 1,
        PublicState::Syncing => 2,
        PublicState::Waiting => 3,
        PublicState::Offline | PublicState::Unspecified => 4,
    }
}

/// `t1 serving, t2 syncing@7, ...`: for log lines and tests. The version after `@` names the session of a syncing target.
impl std::fmt::Display for ChainState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.version)?;
        for (index, member) in self.members.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {} {}", member.id, state_name(member.state))?;
            if member.state == PublicState::Syncing {
                write!(f, "@{}", member.joined_at.0)?;
            }
        }
        Ok(())
    }
}

/// The word for a public state.
pub fn state_name(state: PublicState) -> &'static str {
    match state {
        PublicState::Serving => "serving",
        PublicState::Syncing => "syncing",
        PublicState::Waiting => "waiting",
        PublicState::Lastsrv => "lastsrv",
        PublicState::Offline => "offline",
        PublicState::Unspecified => "unspecified",
    }
}

/// The word for a local state.
pub fn local_name(local: LocalState) -> &'static str {
    match local {
        LocalState::UpToDate => "up-to-date",
        LocalState::Online => "online",
        LocalState::Offline => "offline",
        LocalState::Unspecified => "unheard",
    }
}

#[cfg(test)]
mod tests;
