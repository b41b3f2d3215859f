//! Read versions that may be used again: a transaction that may read the past needs no round trip for the present.

use std::time::Duration;

use catena_rt::time::Instant;
use parking_lot::Mutex;

/// The newest version that this process has heard of.
#[derive(Debug, Default)]
pub(crate) struct Versions(Mutex<Option<Known>>);

#[derive(Clone, Copy, Debug)]
struct Known {
    version: i64,
    /// A moment at which everything acknowledged was in it: when it was asked for, not when the answer came.
    since: Instant,
}

impl Versions {
    /// Notes a version that was asked for, or a commit that was sent, at `since`.
    pub(crate) fn heard(&self, version: i64, since: Instant) {
        let mut known = self.0.lock();
        match &*known {
            Some(newest) if newest.version >= version => {}
            // An older question can have the newer answer; both bounds hold for the newer version.
            Some(newest) => *known = Some(Known { version, since: since.max(newest.since) }),
            None => *known = Some(Known { version, since }),
        }
    }

    /// A version that was the newest at most `staleness` ago.
    pub(crate) fn within(&self, staleness: Duration, now: Instant) -> Option<i64> {
        let known = (*self.0.lock())?;
        (now.saturating_duration_since(known.since) <= staleness).then_some(known.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_serves_until_it_is_too_old() {
        let (versions, start) = (Versions::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(versions.within(Duration::from_secs(9), start), None);
        versions.heard(10, start);
        assert_eq!(versions.within(Duration::from_millis(50), after(50)), Some(10));
        assert_eq!(versions.within(Duration::from_millis(50), after(51)), None);
        // The answer to an older question does not make it older.
        versions.heard(20, after(60));
        versions.heard(15, after(80));
        assert_eq!(versions.within(Duration::from_millis(50), after(110)), Some(20));
        assert_eq!(versions.within(Duration::from_millis(50), after(111)), None);
    }
}
