//! The service over gRPC: a connection that is made when it is needed, and nothing else.

use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

use async_trait::async_trait;
use catena_proto::pb::kv_client::KvClient as Stub;
use catena_proto::pb::*;
use catena_proto::rpc::{ClientAuth, Failure};
use catena_proto::status::Status;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::api::{CallError, KvApi};

/// A page of the service's own bound and one value more fit.
const MAX_REPLY: usize = 8 << 20;
/// A connection on which nothing arrives for this long is probed, and dropped after as long again.
const SILENCE: Duration = Duration::from_secs(2);

/// A key-value service, reached over gRPC.
#[derive(Clone)]
pub struct GrpcKv {
    stub: Stub<InterceptedService<Channel, ClientAuth>>,
}

impl GrpcKv {
    /// `address` is `host:port`. Nothing is connected yet; must be called inside a tokio runtime, which must live as long.
    pub fn new(address: &str, auth: ClientAuth) -> Result<GrpcKv, Failure> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| {
                let message = format!(
                    "key-value service address \"{address}\" is not of the form host:port ({error}): correct `store.address`"
                );
                Failure::new(Status::Invalid, message)
            })?
            .connect_timeout(SILENCE)
            .tcp_nodelay(true)
            .initial_stream_window_size(2 << 20)
            .initial_connection_window_size(16 << 20)
            .http2_keep_alive_interval(SILENCE)
            .keep_alive_timeout(SILENCE)
            .keep_alive_while_idle(false);
        let stub = Stub::with_interceptor(endpoint.connect_lazy(), auth).max_decoding_message_size(MAX_REPLY);
        Ok(GrpcKv { stub })
    }
}

macro_rules! forward {
    ($($method:ident($request:ident) -> $reply:ident;)*) => {
        #[async_trait]
        impl KvApi for GrpcKv {
            $(async fn $method(&self, request: $request) -> Result<$reply, CallError> {
                match self.stub.clone().$method(request).await {
                    Ok(reply) => Ok(reply.into_inner()),
                    Err(status) => Err(classify(status)),
                }
            })*
        }
    };
}

forward! {
    read_version(KvReadVersionRequest) -> KvReadVersionReply;
    get(KvGetRequest) -> KvGetReply;
    get_range(KvRangeRequest) -> KvRangeReply;
    commit(KvCommitRequest) -> KvCommitReply;
}

/// What a call without a reply means. When in doubt, it may have been carried out.
fn classify(status: tonic::Status) -> CallError {
    if never_connected(&status) {
        return CallError::NotSent("cannot be reached; is it running?".into());
    }
    let code = status.code();
    let failure = Failure::from(status);
    match (failure.status, code) {
        // Before a handler ran: its message did not fit, or the release does not know the call.
        (_, Code::Unimplemented | Code::OutOfRange) => CallError::Refused(failure),
        (Status::WrongProtocol | Status::WrongCluster | Status::BadToken, _) => CallError::Refused(failure),
        _ => CallError::Lost(failure.message),
    }
}

/// Whether the connection was refused, which only happens before anything is sent.
fn never_connected(status: &tonic::Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::AddrNotAvailable
            );
        }
        cause = error.source();
    }
    false
}
