//! How the control plane says who calls and what went wrong: one failure type, carried through gRPC and back without loss, and the
//! interceptors that prove membership of the cluster.

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Code, Request};

use crate::ids::ClusterId;
use crate::status::{RetryClass, Status};
use crate::token::Token;

pub use crate::PROTOCOL_VERSION;

/// A refused or failed request: a status that programs act on and a sentence that people read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What programs act on.
    pub status: Status,
    /// What people read: names the thing and the next step.
    pub message: String,
    /// Where the primary mgmtd is, `host:port`, if a stand-by that refuses a call knows it: ask there next.
    pub primary: Option<String>,
}

impl Failure {
    /// A failure with its own words.
    pub fn new(status: Status, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into(), primary: None }
    }
    /// The same, naming the mgmtd to ask instead.
    pub fn redirected(self, primary: impl Into<String>) -> Failure {
        Failure { primary: Some(primary.into()).filter(|address| !address.is_empty()), ..self }
    }
    /// What the caller does next.
    pub fn class(&self) -> RetryClass {
        self.status.class()
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::new(status, status.text())
    }
}

const STATUS_KEY: &str = "catena-status";
const PRIMARY_KEY: &str = "catena-primary";
const CLUSTER_KEY: &str = "catena-cluster";
const TOKEN_KEY: &str = "catena-token";
const PROTOCOL_KEY: &str = "catena-protocol";

impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> tonic::Status {
        // The gRPC code is for foreign tools; Catena's own clients read the status from the metadata.
        let code = match failure.status.class() {
            RetryClass::Retry | RetryClass::Refresh | RetryClass::BackOff => Code::Unavailable,
            _ if failure.status == Status::NotFound => Code::NotFound,
            _ if failure.status == Status::Exists => Code::AlreadyExists,
            _ if failure.status == Status::Invalid => Code::InvalidArgument,
            _ if failure.status == Status::TimedOut => Code::DeadlineExceeded,
            _ if failure.status == Status::Internal => Code::Internal,
            _ => Code::FailedPrecondition,
        };
        let mut status = tonic::Status::new(code, failure.message);
        status.metadata_mut().insert(STATUS_KEY, MetadataValue::from(failure.status as u16));
        // An address that is no ASCII is none that anybody can use.
        if let Some(primary) = failure.primary.and_then(|address| address.parse().ok()) {
            status.metadata_mut().insert(PRIMARY_KEY, primary);
        }
        status
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Failure {
        let code = status.metadata().get(STATUS_KEY).and_then(|value| value.to_str().ok()?.parse().ok());
        let known = match (code, status.code()) {
            (Some(code), _) => Status::from_code(code),
            (None, Code::DeadlineExceeded) => Status::TimedOut,
            // Without a status of ours the message never came from a handler: the connection failed.
            (None, Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Aborted) => {
                Status::Disconnected
            }
            (None, Code::Unimplemented) => Status::UnknownMethod,
            (None, _) => Status::Internal,
        };
        let message = match status.message() {
            "" => known.text().to_owned(),
            message => message.to_owned(),
        };
        let primary = status.metadata().get(PRIMARY_KEY).and_then(|value| value.to_str().ok());
        Failure { status: known, message, primary: primary.map(str::to_owned) }
    }
}

/// Adds the cluster's name and token to every request of a client.
#[derive(Clone)]
pub struct ClientAuth {
    cluster: MetadataValue<Ascii>,
    token: MetadataValue<Ascii>,
}

impl ClientAuth {
    /// For the cluster and token from `cluster.toml`.
    pub fn new(cluster: ClusterId, token: &Token) -> ClientAuth {
        let value = |text: String| text.parse().expect("hexadecimal digits are ASCII");
        let mut token: MetadataValue<Ascii> = value(token.to_hex());
        token.set_sensitive(true);
        ClientAuth { cluster: value(cluster.to_string()), token }
    }
}

impl Interceptor for ClientAuth {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, tonic::Status> {
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER_KEY, self.cluster.clone());
        metadata.insert(TOKEN_KEY, self.token.clone());
        metadata.insert(PROTOCOL_KEY, MetadataValue::from(PROTOCOL_VERSION));
        Ok(request)
    }
}

/// Refuses requests of another protocol version, another cluster, or without the token.
#[derive(Clone)]
pub struct ServerAuth {
    cluster: ClusterId,
    token: Token,
}

impl ServerAuth {
    /// For a service of this cluster.
    pub fn new(cluster: ClusterId, token: Token) -> ServerAuth {
        ServerAuth { cluster, token }
    }
}

impl Interceptor for ServerAuth {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, tonic::Status> {
        let text = |key| request.metadata().get(key).and_then(|value| value.to_str().ok());
        if text(PROTOCOL_KEY).and_then(|version| version.parse().ok()) != Some(PROTOCOL_VERSION) {
            let theirs = text(PROTOCOL_KEY).unwrap_or("none");
            let message = format!(
                "this service speaks protocol version {PROTOCOL_VERSION}, the caller {theirs}: run the same release of catena on both ends"
            );
            return Err(Failure::new(Status::WrongProtocol, message).into());
        }
        if text(CLUSTER_KEY).and_then(|id| id.parse().ok()) != Some(self.cluster) {
            let theirs = text(CLUSTER_KEY).unwrap_or("none");
            let message = format!(
                "this service belongs to cluster {}, the caller to {theirs}: check the cluster file (--cluster, CATENA_CLUSTER)",
                self.cluster
            );
            return Err(Failure::new(Status::WrongCluster, message).into());
        }
        if text(TOKEN_KEY).and_then(|token| token.parse().ok()) != Some(self.token) {
            let message =
                "the caller's cluster token is missing or wrong: copy `token` from the cluster file";
            return Err(Failure::new(Status::BadToken, message).into());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_survives_grpc() {
        for &status in Status::ALL.iter().filter(|&&status| status != Status::Ok) {
            let failure = Failure::new(status, "node n3: the reason");
            assert_eq!(Failure::from(tonic::Status::from(failure.clone())), failure);
        }
        let redirected = Failure::from(Status::NoPrimary).redirected("10.0.0.2:7400");
        assert_eq!(Failure::from(tonic::Status::from(redirected.clone())), redirected);
        assert_eq!(Failure::from(Status::NoPrimary).redirected("").primary, None);
    }

    #[test]
    fn a_broken_connection_is_told_from_an_answer() {
        let failure = Failure::from(tonic::Status::unavailable("connection refused"));
        assert_eq!(failure.status, Status::Disconnected);
    }

    #[test]
    fn strangers_are_refused_by_name() {
        let (cluster, token) = (ClusterId(7), Token([1; 32]));
        let status_for = |mut client: ClientAuth| {
            let request = client.call(Request::new(())).unwrap();
            ServerAuth::new(cluster, token).call(request).map_err(|status| Failure::from(status).status).err()
        };
        assert_eq!(status_for(ClientAuth::new(cluster, &token)), None);
        assert_eq!(status_for(ClientAuth::new(ClusterId(8), &token)), Some(Status::WrongCluster));
        assert_eq!(status_for(ClientAuth::new(cluster, &Token([2; 32]))), Some(Status::BadToken));
        let bare = ServerAuth::new(cluster, token).call(Request::new(())).map_err(Failure::from);
        assert_eq!(bare.unwrap_err().status, Status::WrongProtocol);
    }
}
