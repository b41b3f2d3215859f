//! The versions that clients may read at: opened by a request for the newest, forgotten when no transaction can be young enough to ask
//! for them. Bounded, however many versions the store goes through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::TRANSACTION_AGE;
use catena_kv::local::View;
use catena_rt::time::Instant;

/// How long after it was last handed out a version is kept. A client counts its transaction's age from before it asked, so a
/// transaction that it still lets read finds its version here.
const KEPT: Duration = TRANSACTION_AGE.saturating_add(Duration::from_secs(1));
/// Most versions kept: a store that goes through more of them in six seconds lets transactions reach less age.
const LIMIT: usize = if cfg!(test) { 8 } else { 32 << 10 };

/// The open views of a store.
pub(crate) struct Views<V> {
    /// By version. Only the newest is ever handed out, so this is also the order of `handed_out`.
    open: BTreeMap<u64, Open<V>>,
}

struct Open<V> {
    view: Arc<V>,
    handed_out: Instant,
}

impl<V: View> Views<V> {
    pub(crate) fn new() -> Views<V> {
        Views { open: BTreeMap::new() }
    }

    /// Notes that `view` was handed out.
    pub(crate) fn hand_out(&mut self, view: V, now: Instant) -> Arc<V> {
        self.forget(now);
        let open = self
            .open
            .entry(view.version())
            .and_modify(|open| open.handed_out = now)
            .or_insert_with(|| Open { view: Arc::new(view), handed_out: now });
        let view = open.view.clone();
        while self.open.len() > LIMIT {
            self.open.pop_first();
        }
        view
    }

    /// The view of a version that was handed out.
    pub(crate) fn get(&self, version: u64) -> Option<Arc<V>> {
        self.open.get(&version).map(|open| open.view.clone())
    }

    /// Drops what no transaction can ask for any more.
    pub(crate) fn forget(&mut self, now: Instant) {
        while let Some(oldest) = self.open.first_entry()
            && now.saturating_duration_since(oldest.get().handed_out) > KEPT
        {
            oldest.remove();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use catena_kv::KvError;
    use catena_kv::local::Visit;

    use super::*;

    struct Numbered(u64);

    impl View for Numbered {
        fn version(&self) -> u64 {
            self.0
        }
        fn get(&self, _: &[u8]) -> Result<Option<Bytes>, KvError> {
            Ok(None)
        }
        fn scan(&self, _: &Bytes, _: &Bytes, _: bool, _: &mut Visit<'_>) -> Result<(), KvError> {
            Ok(())
        }
    }

    #[test]
    fn a_version_is_kept_for_as_long_as_a_transaction_may_read_at_it() {
        let start = Instant::now();
        let mut views = Views::new();
        views.hand_out(Numbered(1), start);
        views.hand_out(Numbered(1), start + Duration::from_secs(4));
        views.hand_out(Numbered(2), start + Duration::from_secs(9));
        assert!(views.get(1).is_some() && views.get(2).is_some());
        views.forget(start + Duration::from_secs(11));
        assert!(views.get(1).is_none() && views.get(2).is_some());
    }

    #[test]
    fn however_many_versions_pass_few_are_kept() {
        let now = Instant::now();
        let mut views = Views::new();
        for version in 1..=100 {
            views.hand_out(Numbered(version), now);
        }
        assert_eq!(views.len(), LIMIT);
        assert!(views.get(100).is_some() && views.get(1).is_none());
    }
}
