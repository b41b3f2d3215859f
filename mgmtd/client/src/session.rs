//! A client's session: meta services and storage targets keep what belongs to a client (open files, write tags) while it lives.

use std::time::Duration;

use catena_proto::ids::ClientId;
use catena_proto::pb::ClientSessionRequest;
use catena_proto::rpc::Failure;
use catena_rt::AbortHandle;
use catena_rt::time::{sleep, timeout};
use tracing::warn;

use crate::calls::MgmtdClient;

/// A session that is extended while the value lives. Dropping it lets the session run out; [`ClientSession::close`] ends it at once.
pub struct ClientSession {
    client: MgmtdClient,
    id: ClientId,
    task: AbortHandle,
}

impl ClientSession {
    /// Opens the session of client `id` (random, never 0). `description` is for people: host, program, process id.
    pub async fn start(
        client: MgmtdClient,
        id: ClientId,
        description: String,
    ) -> Result<ClientSession, Failure> {
        let request = ClientSessionRequest { client: id.0, description, ..Default::default() };
        let reply = client.extend_client_session(request.clone()).await?;
        let task = catena_rt::spawn(extend(client.clone(), request, reply.lease_ms)).abort_handle();
        Ok(ClientSession { client, id, task })
    }

    /// The client's identity.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Ends the session: call it when nothing of the client is under way any more.
    pub async fn close(self, deadline: Duration) {
        self.task.abort();
        let request = ClientSessionRequest { client: self.id.0, close: true, ..Default::default() };
        if let Ok(Err(failure)) = timeout(deadline, self.client.extend_client_session(request)).await {
            warn!(client = self.id.0, %failure, "the session could not be closed; it will run out");
        }
    }
}

impl Drop for ClientSession {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn extend(client: MgmtdClient, request: ClientSessionRequest, mut lease_ms: u64) {
    let mut failing = false;
    loop {
        let quarter = Duration::from_millis((lease_ms / 4).max(1));
        sleep(if failing { quarter / 4 } else { quarter }).await;
        match client.extend_client_session(request.clone()).await {
            Ok(reply) => (lease_ms, failing) = (reply.lease_ms, false),
            Err(failure) => {
                if !failing {
                    warn!(client = request.client, %failure, "the session is not being extended; trying on");
                }
                failing = true;
            }
        }
    }
}
