//! Clients' sessions. Opening and closing is recorded, extending is not; a new primary gives every recorded one a full lease.

use std::collections::BTreeMap;
use std::time::Duration;

use catena_proto::clock::Monotonic;
use catena_proto::ids::ClientId;
use catena_proto::pb::{ClientSession, ClientSessionReply, ClientSessionRequest};
use catena_proto::rpc::Failure;
use catena_proto::status::Status;

use crate::record::SessionRecord;

/// Longest description that is kept, bytes.
const DESCRIPTION: usize = 256;

/// Sessions that have to be recorded (`Some`) or removed (`None`).
pub type SessionChanges = BTreeMap<ClientId, Option<SessionRecord>>;

/// All sessions.
pub struct Sessions {
    lease: Duration,
    live: BTreeMap<ClientId, Session>,
}

struct Session {
    record: SessionRecord,
    heard: Monotonic,
}

impl Sessions {
    /// The recorded ones, each with a full lease.
    pub fn new(records: BTreeMap<ClientId, SessionRecord>, lease: Duration, now: Monotonic) -> Sessions {
        let live = records.into_iter().map(|(id, record)| (id, Session { record, heard: now })).collect();
        Sessions { lease, live }
    }

    /// What a request has to have written before it is answered.
    pub fn changes(&self, request: &ClientSessionRequest) -> Result<SessionChanges, Failure> {
        let id = ClientId(request.client);
        if request.client == 0 {
            return Err(Failure::new(Status::Invalid, "0 is no client id"));
        }
        Ok(match (self.live.contains_key(&id), request.close) {
            (false, false) => [(id, Some(SessionRecord { description: clip(&request.description) }))].into(),
            (true, true) => [(id, None)].into(),
            _ => SessionChanges::new(),
        })
    }

    /// Makes written changes true and extends the session.
    pub fn apply(
        &mut self,
        request: &ClientSessionRequest,
        changes: SessionChanges,
        now: Monotonic,
    ) -> ClientSessionReply {
        for (id, change) in changes {
            match change {
                Some(record) => drop(self.live.insert(id, Session { record, heard: now })),
                None => drop(self.live.remove(&id)),
            }
        }
        if let Some(session) = self.live.get_mut(&ClientId(request.client)) {
            session.heard = now;
        }
        ClientSessionReply { lease_ms: self.lease.as_millis() as u64 }
    }

    /// Those whose lease ran out.
    pub fn expired(&self, now: Monotonic) -> SessionChanges {
        let over = |session: &Session| now.since(session.heard) >= self.lease;
        self.live.iter().filter(|(_, session)| over(session)).map(|(&id, _)| (id, None)).collect()
    }

    /// Removes sessions whose removal was written.
    pub fn remove(&mut self, expired: &SessionChanges) {
        self.live.retain(|id, _| !expired.contains_key(id));
    }

    /// The live ones.
    pub fn list(&self, now: Monotonic) -> Vec<ClientSession> {
        let session = |(id, session): (&ClientId, &Session)| ClientSession {
            client: id.0,
            description: session.record.description.clone(),
            idle_ms: now.since(session.heard).as_millis() as u64,
        };
        self.live.iter().map(session).collect()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.live.len()
    }
}

fn clip(text: &str) -> String {
    let end = (0..=DESCRIPTION.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    fn call(client: u64, close: bool) -> ClientSessionRequest {
        ClientSessionRequest { client, close, description: "host".into(), ..Default::default() }
    }

    #[test]
    fn only_opening_and_closing_is_recorded() {
        let mut sessions = Sessions::new(BTreeMap::new(), Duration::from_secs(60), at(0));
        let open = sessions.changes(&call(5, false)).unwrap();
        assert_eq!(open[&ClientId(5)], Some(SessionRecord { description: "host".into() }));
        sessions.apply(&call(5, false), open, at(0));
        let extend = sessions.changes(&call(5, false)).unwrap();
        assert!(extend.is_empty());
        sessions.apply(&call(5, false), extend, at(40));
        assert!(sessions.expired(at(99)).is_empty());
        assert_eq!(sessions.list(at(50))[0].idle_ms, 10_000);
        let close = sessions.changes(&call(5, true)).unwrap();
        assert_eq!(close[&ClientId(5)], None);
        sessions.apply(&call(5, true), close, at(50));
        assert_eq!(sessions.len(), 0);
        assert!(sessions.changes(&call(5, true)).unwrap().is_empty());
        assert!(sessions.changes(&call(0, false)).is_err());
    }

    #[test]
    fn a_silent_client_is_over_after_its_lease_and_a_new_primary_gives_a_full_one() {
        let records = [(ClientId(5), SessionRecord::default())].into();
        let mut sessions = Sessions::new(records, Duration::from_secs(60), at(1000));
        assert!(sessions.expired(at(1059)).is_empty());
        let expired = sessions.expired(at(1060));
        assert_eq!(expired, [(ClientId(5), None)].into());
        sessions.remove(&expired);
        assert_eq!(sessions.len(), 0);
    }

    #[test]
    fn descriptions_are_bounded() {
        assert_eq!(clip(&"é".repeat(200)).len(), 256);
        assert_eq!(clip("short"), "short");
    }
}
