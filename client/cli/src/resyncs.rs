//! Resync sessions, asked of the nodes that send: for `admin resync`, and for whoever waits for full strength.

use std::collections::BTreeMap;
use std::time::Duration;

use catena_client::Catena;
use catena_proto::frame::{ResyncEntry, ResyncState};
use catena_proto::ids::{ChainId, NodeId, TargetId};
use catena_proto::pb::{NodeKind, NodeState};
use catena_proto::routing::{PublicState, RoutingInfo, Target};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::cmd::admin::public_state;
use crate::exit::Result;
use crate::output::Output;
use crate::table::Table;
use crate::units;

/// A session as all its senders together know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The chain.
    pub chain: ChainId,
    /// The sender, the present one or the last.
    pub from: TargetId,
    /// What is brought up to date.
    pub to: TargetId,
    /// Names the session.
    pub joined_at: u64,
    /// How it goes.
    pub state: ResyncState,
    /// Chunks looked at in the present walk,
    pub compared: u64,
    /// of so many.
    pub total: u64,
    /// Chunks sent,
    pub sent: u64,
    /// found alike,
    pub kept: u64,
    /// and removed.
    pub removed: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Since its beginning, or until its end.
    pub took: Duration,
}

impl Session {
    fn of(entry: &ResyncEntry) -> Option<Session> {
        Some(Session {
            chain: ChainId(entry.chain.get()),
            from: TargetId(entry.from.get()),
            to: TargetId(entry.to.get()),
            joined_at: entry.joined_at.get(),
            state: ResyncState::from_code(entry.state)?,
            compared: entry.compared.get(),
            total: entry.total.get(),
            sent: entry.sent.get(),
            kept: entry.kept.get(),
            removed: entry.removed.get(),
            bytes: entry.bytes.get(),
            took: Duration::from_millis(entry.elapsed_ms.get()),
        })
    }

    /// What another sender did for the same session before or after this one.
    fn join(self, other: Session) -> Session {
        let (now, before) = if self.state == ResyncState::BrokenOff { (other, self) } else { (self, other) };
        Session {
            sent: now.sent + before.sent,
            kept: now.kept + before.kept,
            removed: now.removed + before.removed,
            bytes: now.bytes + before.bytes,
            took: now.took + before.took,
            ..now
        }
    }

    /// Bytes a second.
    fn rate(&self) -> f64 {
        self.bytes as f64 / self.took.as_secs_f64().max(0.001)
    }

    /// Time left, if it goes on as it went.
    fn left(&self) -> Option<Duration> {
        let share = self.compared as f64 / self.total.max(1) as f64;
        let running = matches!(self.state, ResyncState::Running | ResyncState::HeldUp);
        (running && share > 0.0).then(|| self.took.mul_f64((1.0 - share) / share))
    }
}

/// The newest session of every target, from all storage nodes that are up. Nodes that do not answer are named in the second list.
pub async fn sessions(catena: &Catena, patience: Duration) -> (BTreeMap<TargetId, Session>, Vec<String>) {
    let routing = catena.routing().current();
    let up = routing
        .nodes
        .iter()
        .filter(|(_, node)| node.kind() == NodeKind::Storage && node.state() == NodeState::Up);
    let nodes: Vec<NodeId> = up.map(|(id, _)| *id).collect();
    let deadline = catena_rt::time::Instant::now() + patience;
    let answers = join_all(nodes.iter().map(|node| catena.storage().resyncs(*node, deadline))).await;
    let mut silent = Vec::new();
    let mut newest: BTreeMap<TargetId, Session> = BTreeMap::new();
    for answer in answers {
        match answer {
            Ok(entries) => {
                for session in entries.iter().filter_map(Session::of) {
                    let known = newest.get(&session.to).copied();
                    let merged = match known {
                        Some(known) if known.joined_at > session.joined_at => known,
                        Some(known) if known.joined_at == session.joined_at => known.join(session),
                        _ => session,
                    };
                    newest.insert(session.to, merged);
                }
            }
            Err(failure) => silent.push(failure.message),
        }
    }
    (newest, silent)
}

/// `admin resync`.
pub async fn show(catena: &Catena, patience: Duration, all: bool, out: Output) -> Result<()> {
    let (sessions, silent) = sessions(catena, patience).await;
    for node in &silent {
        eprintln!("catena: admin resync: {node}");
    }
    let routing = catena.routing().current();
    let rows: Vec<(&Target, Option<Session>)> = routing
        .targets
        .values()
        .map(|target| {
            // An older session says nothing about the present one.
            let session = sessions.get(&target.id).copied();
            (target, session.filter(|session| session.joined_at == target.joined_at.0))
        })
        .filter(|(target, session)| target.state != PublicState::Serving || (all && session.is_some()))
        .collect();
    if out.json {
        out.object(rows.iter().map(|(target, session)| row_json(&routing, target, session)).collect());
        return Ok(());
    }
    let mut table = Table::new(&[
        "CHAIN",
        "TARGET",
        "NODE",
        "STATE",
        ">COMPARED",
        ">SENT",
        ">KEPT",
        ">REMOVED",
        ">BYTES",
        ">RATE",
        ">LEFT",
        "FROM",
    ]);
    for (target, session) in &rows {
        let place = [
            target.chain.to_string(),
            target.id.to_string(),
            target.node.to_string(),
            state(target, session),
        ];
        let rest = match session {
            None => std::array::from_fn(|_| "-".to_owned()),
            Some(session) => [
                format!("{} of {}", units::count(session.compared), units::count(session.total)),
                units::count(session.sent),
                units::count(session.kept),
                units::count(session.removed),
                units::size(session.bytes),
                format!("{}/s", units::size(session.rate() as u64)),
                match (session.left(), session.state) {
                    (Some(left), _) => units::duration(left),
                    (None, ResyncState::Done) => format!("took {}", units::duration(session.took)),
                    _ => "-".into(),
                },
                sender(&routing, session),
            ],
        };
        table.row(place.into_iter().chain(rest));
    }
    out.table(
        &table,
        match silent.is_empty() {
            true => "every replica is up to date",
            false => {
                "no replica is known to be behind yet: a node that does not answer is given up when its lease runs out"
            }
        },
    );
    Ok(())
}

/// The target's state, and what its session is at if that is not the same.
fn state(target: &Target, session: &Option<Session>) -> String {
    let public = public_state(target.state);
    match session.map(|session| session.state) {
        Some(ResyncState::HeldUp) => format!("{public} (held up)"),
        Some(ResyncState::Done) if target.state == PublicState::Syncing => format!("{public} (done)"),
        _ => public.into(),
    }
}

fn sender(routing: &RoutingInfo, session: &Session) -> String {
    let node = routing.targets.get(&session.from).map(|target| format!("@{}", target.node));
    format!("{}{}", session.from, node.unwrap_or_default())
}

fn row_json(routing: &RoutingInfo, target: &Target, session: &Option<Session>) -> Value {
    let mut row = json!({
        "chain": target.chain.0, "target": target.id.0, "node": target.node.0, "state": public_state(target.state),
    });
    if let Some(session) = session {
        let how = match session.state {
            ResyncState::Running => "running",
            ResyncState::HeldUp => "held up",
            ResyncState::Done => "done",
            ResyncState::BrokenOff => "broken off",
        };
        row["session"] = json!({
            "joined_at": session.joined_at, "state": how, "from": session.from.0,
            "from_node": routing.targets.get(&session.from).map(|target| target.node.0),
            "compared": session.compared, "total": session.total, "sent": session.sent, "kept": session.kept,
            "removed": session.removed, "bytes": session.bytes, "seconds": units::round3(session.took.as_secs_f64()),
            "bytes_s": session.rate() as u64, "seconds_left": session.left().map(|left| units::round3(left.as_secs_f64())),
        });
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(state: ResyncState, compared: u64, sent: u64, seconds: u64) -> Session {
        Session {
            chain: ChainId(1),
            from: TargetId(1),
            to: TargetId(3),
            joined_at: 9,
            state,
            compared,
            total: 100,
            sent,
            kept: compared - sent,
            removed: 0,
            bytes: sent << 20,
            took: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn the_time_left_is_that_of_the_chunks_left() {
        assert_eq!(session(ResyncState::Running, 25, 25, 10).left(), Some(Duration::from_secs(30)));
        assert_eq!(session(ResyncState::Running, 0, 0, 10).left(), None);
        assert_eq!(session(ResyncState::Done, 100, 25, 10).left(), None);
    }

    #[test]
    fn two_senders_of_one_session_are_one_session() {
        let broken = session(ResyncState::BrokenOff, 50, 40, 10);
        let running = session(ResyncState::Running, 60, 10, 5);
        for joined in [broken.join(running), running.join(broken)] {
            assert_eq!((joined.state, joined.compared), (ResyncState::Running, 60));
            assert_eq!((joined.sent, joined.kept, joined.took.as_secs()), (50, 60, 15));
        }
    }
}
