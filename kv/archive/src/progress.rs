//! How far a backup or a restore is, for whoever waits for it.

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Backup: the store is read and the file written.
    Read,
    /// Backup: the store is read again, to see that nobody wrote.
    Compare,
    /// Restore: the file is checked.
    Check,
    /// Restore: what the store had is removed.
    Clear,
    /// Restore: the store is filled.
    Write,
    /// Restore: the store is read and compared with the file.
    Verify,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes of keys and values done in this phase; while a file is checked, bytes of the file.
    pub bytes: u64,
    /// Of how many, where that is known.
    pub total: Option<u64>,
}

/// Told now and then.
pub type Tell<'a> = &'a (dyn Fn(Progress) + Send + Sync);
