//! What a store holds, counted as far as a time allows.

use std::pin::pin;
use std::time::Duration;

use catena_kv::{Database, KvError, reserved::RESTORE_MARKER};
use catena_rt::time::{Instant, timeout_at};
use futures_util::stream::StreamExt;

use crate::keys::of_tools;
use crate::scan::Scan;
use crate::tally::Tally;

/// What was counted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// The records, without those of tools. While others write, not of one version.
    pub tally: Tally,
    /// All were counted; or else there are more.
    pub complete: bool,
    /// A restore was begun and not finished.
    pub half_restored: bool,
}

/// Counts for at most `within`, and up to `limit` records.
pub async fn census(db: &dyn Database, within: Duration, limit: u64, seed: u64) -> Result<Census, KvError> {
    let deadline = Instant::now() + within;
    let mut census = Census::default();
    let tx = db.begin(Default::default())?;
    let marker = timeout_at(deadline, tx.get(RESTORE_MARKER, catena_kv::Isolation::Snapshot)).await;
    census.half_restored = marker.map_err(|_| KvError::TimedOut)??.is_some();
    let scan = Scan::at_many(db, within, seed);
    let Ok(ranges) = timeout_at(deadline, scan.ranges()).await else { return Ok(census) };
    let mut pages = pin!(scan.pages(ranges?));
    loop {
        let Ok(page) = timeout_at(deadline, pages.next()).await else { return Ok(census) };
        let Some(page) = page else { break };
        page?.iter().filter(|r| !of_tools(&r.key)).for_each(|r| census.tally.add(&r.key, &r.value));
        if census.tally.records >= limit {
            return Ok(census);
        }
        // A store in this process answers at once, and the deadline is to be noticed.
        catena_rt::yield_now().await;
        if Instant::now() >= deadline {
            return Ok(census);
        }
    }
    census.complete = true;
    Ok(census)
}
