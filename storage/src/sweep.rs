//! Forgets the tags of clients that are gone (R21). Every client process leaves a few entries in every target that it wrote to; without
//! this the table would grow with every command that anybody ever ran.
//!
//! An entry goes when mgmtd has not known the client's session for [`GRACE`] and the client has written nothing in that time. No request
//! lives nearly so long, so what could still arrive late has been refused or forgotten by everyone in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use catena_mgmtd_client::MgmtdClient;
use catena_proto::clock::Monotonic;
use catena_proto::ids::*;
use catena_rt::time::sleep;
use tracing::{debug, warn};

use crate::node::Node;

/// Between one look and the next.
const EVERY: Duration = Duration::from_secs(600);
/// How long a client is dead and silent before it is forgotten.
const GRACE: Duration = Duration::from_secs(3600);
/// Entries looked at together.
const PAGE: usize = 1024;

/// What was seen of clients without a session: the sum of their sequences, which moves with every write, and since when it stands.
type Suspects = BTreeMap<(TargetId, ClientId), (u64, Monotonic)>;

/// Forgets the tags of dead clients, again and again.
pub(crate) async fn tags(node: Arc<Node>, mgmtd: MgmtdClient) {
    let mut suspects = Suspects::new();
    loop {
        sleep(EVERY).await;
        match mgmtd.list_clients().await {
            Ok(reply) => {
                let alive = reply.clients.iter().map(|session| ClientId(session.client)).collect();
                once(&node, &alive, &mut suspects).await;
            }
            Err(failure) => debug!(%failure, "no list of clients; their tags stay"),
        }
    }
}

async fn once(node: &Node, alive: &BTreeSet<ClientId>, suspects: &mut Suspects) {
    let now = node.clock.monotonic();
    let mut seen = Suspects::new();
    let targets = node.targets();
    for target in targets.by_id.values() {
        let mut after = None;
        loop {
            let page = target.disk.tags(target.id, after, PAGE);
            for row in page.iter().filter(|row| !alive.contains(&row.client)) {
                let suspect = seen.entry((target.id, row.client)).or_insert((0, now));
                suspect.0 = suspect.0.wrapping_add(row.record.sequence.0);
            }
            after = page.last().map(|row| (row.client, row.channel));
            if page.len() < PAGE {
                break;
            }
            catena_rt::yield_now().await;
        }
    }
    for (id, client) in judge(suspects, seen, now) {
        let Some(target) = targets.by_id.get(&id) else { continue };
        if let Err(error) = target.disk.engine().forget_client(id, client).await {
            warn!(target = %id, %client, %error, "the tags of a dead client stay");
        }
    }
}

/// Whom to forget: who was dead and silent for [`GRACE`]. The others are remembered with the time since when they are.
fn judge(suspects: &mut Suspects, mut seen: Suspects, now: Monotonic) -> Vec<(TargetId, ClientId)> {
    for (key, (sequences, since)) in &mut seen {
        if let Some(before) = suspects.get(key).filter(|before| before.0 == *sequences) {
            *since = before.1;
        }
    }
    let overdue = |suspect: &(u64, Monotonic)| now.since(suspect.1) >= GRACE;
    let gone = seen.iter().filter(|(_, suspect)| overdue(suspect)).map(|(&key, _)| key).collect();
    seen.retain(|_, suspect| !overdue(suspect));
    *suspects = seen;
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_dead_and_silent_for_long_is_forgotten() {
        let key = |client| (TargetId(1), ClientId(client));
        let at = |minutes: u64| Monotonic(Duration::from_secs(60 * minutes));
        let seen = |now, sequences: [u64; 2]| -> Suspects {
            [(key(1), (sequences[0], now)), (key(2), (sequences[1], now))].into()
        };
        let mut suspects = Suspects::new();
        assert!(judge(&mut suspects, seen(at(0), [5, 5]), at(0)).is_empty());
        assert!(judge(&mut suspects, seen(at(30), [5, 6]), at(30)).is_empty());
        // Client 1 stood still for an hour, client 2 has written in between.
        assert_eq!(judge(&mut suspects, seen(at(60), [5, 6]), at(60)), [key(1)]);
        // Client 2 has a session again.
        assert!(judge(&mut suspects, Suspects::new(), at(70)).is_empty());
        assert!(judge(&mut suspects, seen(at(120), [9, 6]), at(120)).is_empty());
    }
}
