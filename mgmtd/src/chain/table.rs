//! The transition table of design section 5, row by row.
//!
//! Its predecessor column becomes one question, asked of the *next* states: does another target of this chain serve? Serving targets
//! stand first in a chain (R26), so for a syncing or waiting target "the nearest serving predecessor" and "another serving target" are
//! the same, and for a serving target that is lost it is exactly the condition between `lastsrv` and `offline`.
//!
//! One kind of row was added to the published table: a target of which nothing was heard (mgmtd has just started) keeps its state,
//! except that nothing can sync from a chain that nobody serves.

use catena_proto::routing::LocalState::{self, *};
use catena_proto::routing::PublicState::{self, Lastsrv, Serving, Syncing, Waiting};

/// Whether another target of the chain serves, as of the next states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Others {
    /// At least one does.
    Serve,
    /// None does.
    None,
}

/// One row: the states it applies to and what follows. `others: None` is "any".
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What the service reports.
    pub local: LocalState,
    /// Public states now.
    pub now: &'static [PublicState],
    /// Condition on the rest of the chain.
    pub others: Option<Others>,
    /// Public state next.
    pub next: PublicState,
}

const fn row(
    local: LocalState,
    now: &'static [PublicState],
    others: Option<Others>,
    next: PublicState,
) -> Row {
    Row { local, now, others, next }
}

const DOWN: PublicState = PublicState::Offline;
const ANY: Option<Others> = None;
const SERVED: Option<Others> = Some(Others::Serve);
const ALONE: Option<Others> = Some(Others::None);

/// The table. Every combination of local state, public state and condition has exactly one row (tested).
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    row(UpToDate,    &[Serving, Syncing, Lastsrv], ANY,    Serving),
    row(UpToDate,    &[Waiting, DOWN],             ANY,    Waiting),
    row(Online,      &[Serving, Lastsrv],          ANY,    Serving),
    row(Online,      &[Syncing, Waiting],          SERVED, Syncing),
    row(Online,      &[Syncing, Waiting],          ALONE,  Waiting),
    row(Online,      &[DOWN],                      ANY,    Waiting),
    row(Offline,     &[Serving],                   ALONE,  Lastsrv),
    row(Offline,     &[Serving],                   SERVED, DOWN),
    row(Offline,     &[Syncing, Waiting, DOWN],    ANY,    DOWN),
    row(Offline,     &[Lastsrv],                   ANY,    Lastsrv),
    row(Unspecified, &[Serving],                   ANY,    Serving),
    row(Unspecified, &[Lastsrv],                   ANY,    Lastsrv),
    row(Unspecified, &[Syncing],                   SERVED, Syncing),
    row(Unspecified, &[Syncing, Waiting],          ALONE,  Waiting),
    row(Unspecified, &[Waiting],                   SERVED, Waiting),
    row(Unspecified, &[DOWN],                      ANY,    DOWN),
];

/// Looks the table up.
pub fn next(local: LocalState, now: PublicState, others: Others) -> PublicState {
    TABLE
        .iter()
        .find(|row| {
            row.local == local
                && row.now.contains(&now)
                && row.others.is_none_or(|condition| condition == others)
        })
        // Only `now == Unspecified` has no row: a record that no release of Catena has written. Offline is what does no harm.
        .map_or(PublicState::Offline, |row| row.next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{local_name, state_name};

    const LOCALS: [LocalState; 4] = [UpToDate, Online, Offline, Unspecified];
    const STATES: [PublicState; 5] = [Serving, Syncing, Waiting, Lastsrv, DOWN];

    #[test]
    fn every_combination_has_exactly_one_row() {
        for local in LOCALS {
            for now in STATES {
                for others in [Others::Serve, Others::None] {
                    let rows = TABLE.iter().filter(|row| {
                        row.local == local
                            && row.now.contains(&now)
                            && row.others.is_none_or(|condition| condition == others)
                    });
                    assert_eq!(rows.count(), 1, "{local:?} {now:?} {others:?}");
                }
            }
        }
    }

    #[test]
    fn the_whole_matrix() {
        let mut text = String::new();
        for local in LOCALS {
            for now in STATES {
                let (served, alone) = (next(local, now, Others::Serve), next(local, now, Others::None));
                let cell = |state| state_name(state);
                text += &format!(
                    "{:<11} {:<8} | another serves: {:<8} | none serves: {}\n",
                    local_name(local),
                    state_name(now),
                    cell(served),
                    cell(alone)
                );
            }
        }
        crate::testing::snapshot("matrix.txt", &text);
    }
}
