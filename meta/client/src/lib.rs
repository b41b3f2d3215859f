//! Typed calls to the metadata service, with failover between meta services.
//!
//! A [`MetaClient`] finds the meta services (a fixed list, or whatever routing information says), keeps a few HTTP/2 connections to
//! each, and sends every call with one request id and one deadline until it is answered: a retry after a lost connection reaches the
//! first application's recorded outcome, so nothing is applied twice.
//!
//! It knows nothing of chunks: contents are `catena-client`'s business.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use catena_meta_client::{Credentials, MetaClient, Options, Place, Servers};
//! use catena_proto::{ids::ClientId, rpc::ClientAuth, token::Token, ids::ClusterId};
//!
//! let auth = ClientAuth::new(ClusterId(1), &Token([0; 32]));
//! let servers = Servers::Fixed(vec!["127.0.0.1:9400".into()]);
//! let meta = MetaClient::new(servers, auth, ClientId(7), Options::default());
//! let who = Credentials::root();
//! meta.mkdir(&who, &Place::path("/data"), 0o755, false, None).await?;
//! let inode = meta.stat(&who, &Place::path("/data"), true).await?;
//! println!("{} links", inode.nlink);
//! # Ok(()) }
//! ```

mod call;
mod choice;
mod client;
mod error;
mod failover;
mod grpc;
mod place;

pub use call::Call;
pub use catena_proto::meta_call::{Reply, Request};
pub use client::{MetaClient, Open, OpenFlags, SetAttr, Settle, Usage, XattrMode};
pub use error::MetaError;
pub use failover::{Connector, Endpoint, Options, Servers};
pub use grpc::GrpcConnector;
pub use place::{Credentials, Place};
