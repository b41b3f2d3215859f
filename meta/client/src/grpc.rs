//! Meta services over gRPC. One HTTP/2 connection is driven by one task and saturates one core, so each service gets several.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use catena_proto::meta_call::{Reply, Request};
use catena_proto::pb::meta_client::MetaClient;
use catena_proto::rpc::{ClientAuth, Failure};
use catena_proto::status::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::call::send;
use crate::failover::{Connector, Endpoint};

/// The largest reply taken: a page of entries with long symbolic links in their attributes stays well below.
const MAX_REPLY: usize = 16 << 20;

/// Makes gRPC connections that prove membership of the cluster.
pub struct GrpcConnector {
    auth: ClientAuth,
    channels: usize,
    connect_timeout: Duration,
}

impl GrpcConnector {
    /// `channels` connections to every service (at least one), each made when it is first used.
    pub fn new(auth: ClientAuth, channels: usize, connect_timeout: Duration) -> GrpcConnector {
        GrpcConnector { auth, channels: channels.max(1), connect_timeout }
    }
}

struct GrpcEndpoint {
    channels: Vec<MetaClient<InterceptedService<Channel, ClientAuth>>>,
    next: AtomicUsize,
}

impl Connector for GrpcConnector {
    fn connect(&self, address: &str) -> Result<Arc<dyn Endpoint>, Failure> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| {
                Failure::new(Status::Invalid, format!("`{address}` is not a host:port address: {error}"))
            })?
            .tcp_nodelay(true)
            .connect_timeout(self.connect_timeout)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10));
        let channels = (0..self.channels)
            .map(|_| {
                MetaClient::with_interceptor(endpoint.connect_lazy(), self.auth.clone())
                    .max_decoding_message_size(MAX_REPLY)
            })
            .collect();
        Ok(Arc::new(GrpcEndpoint { channels, next: AtomicUsize::new(0) }))
    }
}

#[async_trait]
impl Endpoint for GrpcEndpoint {
    async fn call(&self, request: Request, deadline: Duration) -> Result<Reply, Failure> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        let mut client = self.channels[turn].clone();
        send(&mut client, request, deadline).await.map_err(Failure::from)
    }
}
