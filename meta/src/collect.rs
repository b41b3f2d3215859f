//! Forgetting the outcomes of old requests.
//!
//! Outcomes are kept by period (see `crate::run`). A service that has seen the current period stand for the whole time of remembrance,
//! on its own monotonic clock, raises it by one; then everything before the period that was current so long goes. So an outcome lives
//! at least that time and, with any service running, little more than twice it.

use catena_proto::clock::Monotonic;
use std::sync::Arc;

use crate::error::OpError;
use crate::run::{current_period, failure, put_period, transact};
use crate::schema::key;
use crate::service::Service;

/// Outcomes removed in one transaction.
const PAGE: usize = 1000;

impl Service {
    /// One look at the period: `seen` is what was seen before and since when.
    pub(crate) async fn turn_period(&self, seen: &mut Option<(u32, Monotonic)>) -> Result<(), OpError> {
        let now = self.run.cx.clock.monotonic();
        let period = transact!(self.run, |tx| { current_period(tx, 0).await })?;
        let since = match *seen {
            Some((known, since)) if known == period => since,
            _ => {
                *seen = Some((period, now));
                now
            }
        };
        if now.since(since) < self.remember {
            return Ok(());
        }
        transact!(self.run, |tx| {
            // Someone else may have been faster, or this very transaction before.
            if current_period(tx, 0).await? == period {
                put_period(tx, period.wrapping_add(1));
            }
            Ok(())
        })?;
        *seen = Some((period.wrapping_add(1), now));
        self.forget_before(period).await
    }

    /// Removes all outcomes of earlier periods.
    async fn forget_before(&self, period: u32) -> Result<(), OpError> {
        let range = key::outcomes_before(period);
        loop {
            let (count, more) = transact!(self.run, |tx| {
                let (items, more) = tx.range(range.clone(), PAGE).await?;
                if let Some(last) = items.last() {
                    let end = catena_kv::key_after(&last.key);
                    tx.clear_range(key::KeyRange { begin: range.begin.clone(), end });
                }
                Ok((items.len() as u64, more))
            })?;
            self.run.metrics.forgotten.inc_by(count);
            if !more {
                return Ok(());
            }
            catena_rt::yield_now().await;
        }
    }

    /// Looks at the period now and then.
    pub(crate) async fn collect_forever(self: Arc<Self>) {
        let mut seen = None;
        loop {
            if let Err(error) = self.turn_period(&mut seen).await {
                tracing::warn!(error = %failure(&error), "cannot forget the outcomes of old requests");
            }
            catena_rt::time::sleep(self.remember / 10).await;
        }
    }
}
