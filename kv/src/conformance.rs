//! The suite that every backend must pass: each sentence of the contract, and a checker of serialisability on random concurrent
//! transactions. Feature `conformance`.
//!
//! A backend's tests are `catena_kv::conformance_suite!(backend)`, which makes one test of each case; `backend` makes a [`Backend`].
//! Each case clears and uses a prefix of its own, so a shared database will do.

mod conflicts;
mod history;
mod lifecycle;
mod limits;
mod model;
mod reads;
mod retries;
mod serial;
mod stamps;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{Database, Isolation, Jitter, Prefixed, RangeQuery, Subspace, Tx, TxOptions, USER_KEY_END};

/// A backend under test.
pub struct Backend {
    /// The database.
    pub database: Arc<dyn Database>,
    /// Whether its transactions' age is measured on tokio's clock in this process, so that a test can let five seconds pass at once.
    /// Otherwise cases that need time to pass really wait.
    pub virtual_time: bool,
    /// What lives as long as the database: a temporary directory.
    pub keep: Box<dyn std::any::Any + Send + Sync>,
}

/// What a case is given.
pub struct Case {
    db: Arc<dyn Database>,
    virtual_time: bool,
}

impl Case {
    fn begin(&self) -> Tx {
        self.db.begin(TxOptions::default()).expect("begin")
    }

    /// Sets keys in a transaction of its own.
    async fn put(&self, items: &[(&str, &str)]) {
        let tx = self.begin();
        for (key, value) in items {
            tx.set(key.as_bytes(), value.as_bytes()).expect("set");
        }
        tx.commit().await.expect("commit");
    }

    /// Reads a key in a transaction of its own.
    async fn read(&self, key: &str) -> Option<String> {
        read(&self.begin(), key).await
    }

    /// All keys and values, in a transaction of its own.
    async fn all(&self) -> String {
        let tx = self.begin();
        range(&tx, RangeQuery::new("", USER_KEY_END)).await
    }

    async fn pass(&self, time: Duration) {
        if self.virtual_time {
            tokio::time::pause();
            tokio::time::advance(time).await;
            tokio::time::resume();
        } else {
            tokio::time::sleep(time).await;
        }
    }
}

/// Reads a key serialisably.
async fn read(tx: &Tx, key: &str) -> Option<String> {
    text(tx.get(key.as_bytes(), Isolation::Serializable).await.expect("get"))
}

fn text(value: Option<Bytes>) -> Option<String> {
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}

/// One page as `a=1 b=2`, with `...` behind it if there may be more.
async fn range(tx: &Tx, query: RangeQuery) -> String {
    let page = tx.get_range(query).await.expect("get_range");
    let item = |kv: &crate::KeyValue| {
        format!("{}={}", String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value))
    };
    let mut items: Vec<String> = page.items.iter().map(item).collect();
    items.extend(page.more.then(|| "...".to_owned()));
    items.join(" ")
}

/// Runs one case; what [`conformance_suite!`](crate::conformance_suite) calls.
pub fn run<F: Future<Output = ()>>(name: &str, backend: Backend, case: impl FnOnce(Arc<Case>) -> F) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
    runtime.block_on(async {
        let space = Subspace::new(format!("conformance/{name}/"));
        let db: Arc<dyn Database> = Arc::new(Prefixed::new(backend.database.clone(), space));
        let given = Arc::new(Case { db, virtual_time: backend.virtual_time });
        let tx = given.begin();
        tx.clear_range(b"", USER_KEY_END).expect("clear_range");
        tx.commit().await.expect("clearing the prefix");
        case(given).await;
    });
    drop(runtime);
    drop(backend);
}

/// Deterministic draws.
struct Draws(Jitter);

impl Draws {
    fn new(seed: u64) -> Draws {
        Draws(Jitter::new(seed))
    }

    fn below(&self, bound: u64) -> u64 {
        self.0.next() % bound
    }
}

macro_rules! suite {
    ($($module:ident :: $case:ident),* $(,)?) => {
        /// The cases, for [`conformance_suite!`](crate::conformance_suite).
        pub mod cases {
            $(pub use super::$module::$case;)*
        }

        /// Makes a test of each case. The argument is called for each and makes a [`Backend`](crate::conformance::Backend).
        #[macro_export]
        macro_rules! conformance_suite {
            ($backend:expr) => {
                $(
                    #[test]
                    fn $case() {
                        $crate::conformance::run(stringify!($case), $backend(), $crate::conformance::cases::$case);
                    }
                )*
            };
        }
    };
}

suite! {
    reads::what_was_set_is_read,
    reads::ranges_come_in_order_and_in_pages,
    reads::a_transaction_reads_its_own_writes,
    reads::ranges_see_own_writes,
    reads::atomics_are_seen_before_and_after_commit,
    reads::a_read_version_is_a_consistent_snapshot,
    model::random_transactions_agree_with_a_model,
    conflicts::a_changed_read_conflicts,
    conflicts::a_snapshot_read_does_not_conflict,
    conflicts::blind_writes_do_not_conflict,
    conflicts::write_skew_is_refused,
    conflicts::a_range_read_conflicts_with_a_phantom,
    conflicts::only_the_part_of_a_range_that_was_read_conflicts,
    conflicts::an_absent_key_that_appears_conflicts,
    conflicts::clearing_a_range_conflicts_with_reads_in_it,
    conflicts::reading_own_writes_does_not_conflict,
    conflicts::atomics_do_not_conflict_with_each_other_but_with_reads,
    conflicts::explicit_conflict_ranges_count,
    conflicts::a_refused_commit_leaves_nothing,
    conflicts::read_only_transactions_never_conflict,
    stamps::stamps_order_commits,
    stamps::a_stamp_goes_into_keys_and_values,
    stamps::what_is_stamped_cannot_be_read_before_the_commit,
    stamps::a_stamped_key_conflicts_with_a_range_read,
    stamps::a_stamp_that_does_not_fit_is_refused,
    limits::keys_and_values_are_limited,
    limits::transactions_are_limited_in_size,
    limits::reserved_keys_and_inverted_ranges_are_refused,
    limits::an_old_transaction_is_refused,
    lifecycle::a_committed_transaction_cannot_be_used,
    lifecycle::a_cancelled_transaction_cannot_be_used,
    lifecycle::a_dropped_transaction_leaves_nothing,
    lifecycle::concurrent_reads_of_one_transaction,
    lifecycle::the_commit_of_nothing_is_nothing,
    retries::transact_loses_no_increment,
    retries::the_body_can_end_a_transaction,
    retries::unknown_results_are_returned_or_retried,
    retries::an_outage_ends_at_the_deadline,
    serial::random_concurrent_transactions_are_serialisable,
    serial::few_keys_and_long_transactions_are_serialisable,
    serial::parallel_transactions_are_serialisable,
}
