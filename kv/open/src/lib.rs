//! From a service's `[store]` configuration to its database: the one place that knows every backend.

use std::sync::Arc;

use catena_kv::{Database, MemDatabase, StoreConfig};
use catena_kv_embedded::EmbeddedDatabase;
use catena_kv_remote::{GrpcKv, RemoteDatabase};
use catena_proto::ids::ClusterId;
use catena_proto::rpc::{ClientAuth, Failure};
use catena_proto::token::Token;

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The embedded store.
    #[error(transparent)]
    Embedded(#[from] catena_kv_embedded::OpenError),
    /// The key-value service's address.
    #[error("{0}")]
    Remote(Failure),
    /// A store that this program cannot open.
    #[error("this program cannot use {0} as a store")]
    Unsupported(&'static str),
}

/// Opens the store of `cluster`. Only an embedded store is touched; whether the others answer is seen at the first transaction.
/// Must be called inside a tokio runtime, which must live as long as the database.
pub fn open(config: &StoreConfig, cluster: ClusterId, token: &Token) -> Result<Arc<dyn Database>, OpenError> {
    Ok(match config {
        StoreConfig::Embedded { path } => Arc::new(EmbeddedDatabase::open(path, Default::default())?),
        StoreConfig::Remote { address } => {
            let api = GrpcKv::new(address, ClientAuth::new(cluster, token)).map_err(OpenError::Remote)?;
            Arc::new(RemoteDatabase::new(Arc::new(api), catena_kv_remote::Options::new(address)))
        }
        StoreConfig::Fdb(_) => {
            return Err(OpenError::Unsupported("FoundationDB"));
        }
        StoreConfig::Mem => Arc::new(MemDatabase::new()),
    })
}

/// What to call a store in messages.
pub fn name(config: &StoreConfig) -> String {
    match config {
        StoreConfig::Embedded { path } => format!("the embedded store {}", path.display()),
        StoreConfig::Remote { address } => format!("the key-value service {address}"),
        StoreConfig::Fdb(fdb) => format!("FoundationDB ({})", fdb.cluster_file.display()),
        StoreConfig::Mem => "memory".into(),
    }
}
