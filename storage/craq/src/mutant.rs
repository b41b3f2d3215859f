//! Deliberate breakage, one rule at a time, for tests that must notice. Without the feature `mutants` every switch is constantly off.

/// A broken rule. Numbers are those of the list of mutants in `docs/replication-states.md`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mutant {
    /// 1: the tail commits without the downward notice.
    NoNotice,
    /// 2: a replica's notice ignores its predecessor's.
    NoticeIgnoresPredecessor,
    /// 3a: a new tail commits everything staged.
    NewTailCommitsStaged,
    /// 3b: a new tail commits everything durable at itself.
    NewTailCommitsDurable,
    /// 4: D starts from nothing in a new chain version.
    WatermarkCleared,
    /// 5: no *need*: a base is enough to be complete.
    NoNeed,
    /// 6: the last serving replica commits early, before the syncing tail.
    LastServingCommits,
    /// 7: the query goes to the last serving target.
    QueryLastServing,
    /// 8: queries and their replies count in any chain version.
    QueryWithoutVersion,
    /// 9: a tail that is not synced answers queries.
    UnsyncedTailAnswers,
    /// 11: messages of old chain versions are accepted.
    OldMessagesAccepted,
    /// 12: pendings are kept at session start.
    PendingsKept,
    /// 13: a late base overwrites what the session brought.
    LateBaseOverwrites,
    /// 14: a replace is committed as soon as it is durable at the syncing target.
    ReplaceCommitted,
    /// 20: a dirty read is answered from the local committed version.
    DirtyReadLocal,
    /// 21a: a retry of a pending write is answered at once.
    RetryAnsweredAtOnce,
    /// 21b: pendings are not sent again on a chain change.
    PendingsNotResent,
    /// 22: a gap is filled silently.
    GapFilled,
}

impl Mutant {
    /// All of them.
    pub const ALL: &'static [Mutant] = &[
        Mutant::NoNotice,
        Mutant::NoticeIgnoresPredecessor,
        Mutant::NewTailCommitsStaged,
        Mutant::NewTailCommitsDurable,
        Mutant::WatermarkCleared,
        Mutant::NoNeed,
        Mutant::LastServingCommits,
        Mutant::QueryLastServing,
        Mutant::QueryWithoutVersion,
        Mutant::UnsyncedTailAnswers,
        Mutant::OldMessagesAccepted,
        Mutant::PendingsKept,
        Mutant::LateBaseOverwrites,
        Mutant::ReplaceCommitted,
        Mutant::DirtyReadLocal,
        Mutant::RetryAnsweredAtOnce,
        Mutant::PendingsNotResent,
        Mutant::GapFilled,
    ];
}

#[cfg(feature = "mutants")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Runs `body` with one rule broken on this thread.
#[cfg(feature = "mutants")]
pub fn with<T>(mutant: Option<Mutant>, body: impl FnOnce() -> T) -> T {
    let before = ACTIVE.replace(mutant);
    let result = body();
    ACTIVE.set(before);
    result
}

/// Is this rule broken?
#[inline]
pub(crate) fn broken(_mutant: Mutant) -> bool {
    #[cfg(feature = "mutants")]
    return ACTIVE.get() == Some(_mutant);
    #[cfg(not(feature = "mutants"))]
    false
}
