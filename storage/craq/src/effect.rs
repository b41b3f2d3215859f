//! What a replica asks of its caller.

use catena_proto::ids::{ChainVersion, ChunkId, ChunkVersion, Tag, TargetId, VersionId};

use crate::message::Msg;

/// The caller's handle of a client's write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// The caller's handle of a client's read that waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReadId(pub u64);

/// Why a message or request does not count. Each is a wire status of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// The receiver is behind the sender's chain version, or not ready yet: send again (R1).
    NotYet,
    /// The sender's chain version is old: refresh the routing information (R1).
    Stale,
    /// Versions before this one are missing: send the pending run again (R3).
    Gap,
    /// Clients write to the head.
    NotHead,
    /// The target does not serve.
    NotServing,
    /// The channel has gone past this sequence (R21).
    StaleSequence,
}

/// How a client's write ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Committed on the whole path just now; the caller knows the length from its store.
    Committed(VersionId),
    /// A retry of a write that was committed before: the first application's version and length.
    Repeated(VersionId, u32),
    /// Not accepted, or this target can no longer say: the client goes by the refusal and tries again with the same tag.
    Refused(Refusal),
}

/// Which contents a read gets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReadAt {
    /// The store's committed version when it reads, at least the one named.
    Committed(VersionId),
    /// A version that is committed at the tail and still pending here.
    Pending(VersionId),
}

/// An answer that counts only under a valid lease, looked at *afterwards* (R11): looking first breaks when the process is paused
/// between the look and the answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[must_use = "look at the lease after carrying it out"]
pub struct Fenced<T>(T);

impl<T> Fenced<T> {
    pub(crate) fn new(value: T) -> Fenced<T> {
        Fenced(value)
    }
    /// What to carry out before the lease is looked at. Nothing may leave the process yet.
    pub fn peek(&self) -> &T {
        &self.0
    }
    /// The answer, if `lease_is_valid` says so, asked now.
    pub fn open(self, lease_is_valid: impl FnOnce() -> bool) -> Option<T> {
        lease_is_valid().then_some(self.0)
    }
}

/// What a read may do now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReadDecision {
    /// Read this, then look at the lease, then answer.
    Serve(Fenced<ReadAt>),
    /// The chunk is dirty. [`Effect::ServeRead`] follows when what was pending is committed; past the caller's bound,
    /// [`crate::Replica::query_tail`] asks the tail.
    Wait,
    /// Not here, not now.
    Refuse(Refusal),
}

/// What the caller is to do, in order.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect<P> {
    /// Make this version durable as pending, then call [`crate::Replica::staged`].
    Stage {
        /// The chunk.
        chunk: ChunkId,
        /// Its identity.
        id: VersionId,
        /// Goes with the version (R21).
        tag: Option<Tag>,
        /// What to do.
        payload: P,
        /// The first version of this chunk in a resync session: whatever the store has of the chunk is void, equal and higher
        /// version numbers included (R16). The payload is a full replace.
        rebase: bool,
    },
    /// Make this pending version, and so every one before it, the committed one; its tag enters the table. In memory, at once (R6).
    Commit {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        id: VersionId,
    },
    /// Send a message, stamped with `chain_version`.
    Send {
        /// To whom.
        to: TargetId,
        /// The replica's chain version when it was made.
        chain_version: ChainVersion,
        /// What.
        msg: Msg<P>,
    },
    /// Send a message if the lease, looked at now, is valid (R10).
    SendFenced {
        /// To whom.
        to: TargetId,
        /// The replica's chain version when it was made.
        chain_version: ChainVersion,
        /// What.
        msg: Fenced<Msg<P>>,
    },
    /// Read the chunk's whole contents as of pending version `id` and send them to the syncing successor as a full forward.
    SendFull {
        /// To whom.
        to: TargetId,
        /// The replica's chain version when it was made.
        chain_version: ChainVersion,
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        id: VersionId,
        /// Goes with the version.
        tag: Option<Tag>,
        /// See [`crate::Forward::first`].
        first: bool,
        /// See [`crate::Forward::durable`].
        durable: ChunkVersion,
    },
    /// Answer a client's write.
    Answer {
        /// Which.
        request: RequestId,
        /// How it ended.
        outcome: Outcome,
    },
    /// A waiting read may go on.
    ServeRead {
        /// Which.
        read: ReadId,
        /// With what.
        at: Fenced<ReadAt>,
    },
    /// A waiting read has to be decided anew: the chain changed under it.
    RetryRead {
        /// Which.
        read: ReadId,
    },
    /// Drop every pending version of the target with its tag, durably, then call [`crate::Replica::session_ready`] (R14).
    BeginSession {
        /// The session.
        joined_at: ChainVersion,
    },
    /// This replica's chain version is old.
    RefreshRouting,
    /// The target must stop at once: its stage failed (R8), or it holds something that the protocol excludes.
    TakeOffline {
        /// Why.
        unfit: Unfit,
    },
}

/// Why a target cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unfit {
    /// Its disk did not take what was forwarded already (R8).
    NotStaged,
    /// Two different writes carry one version number.
    TwoWrites,
    /// The successor committed what is not durable here.
    SuccessorAhead,
    /// The tail committed what is not durable here.
    TailAhead,
}

impl Unfit {
    /// The protocol excludes it: a replica has broken a rule, or a disk has lost what it had called durable.
    pub fn is_impossible(self) -> bool {
        self != Unfit::NotStaged
    }

    /// For the log.
    pub fn reason(self) -> &'static str {
        match self {
            Unfit::NotStaged => "a forwarded write could not be staged",
            Unfit::TwoWrites => "two different writes carry one version number",
            Unfit::SuccessorAhead => "the successor committed what is not durable here",
            Unfit::TailAhead => "the tail committed what is not durable here",
        }
    }
}
