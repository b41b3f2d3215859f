//! From a service's `[store]` configuration to its database: the one place that knows every backend.

use std::sync::Arc;

use catena_kv::{Database, FdbConfig, MemDatabase, Prefixed, StoreConfig, Subspace};
use catena_kv_embedded::EmbeddedDatabase;
use catena_kv_fdb::FdbDatabase;
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
    /// FoundationDB's library or cluster file.
    #[error(transparent)]
    Fdb(#[from] catena_kv_fdb::OpenError),
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
        StoreConfig::Fdb(fdb) => {
            Arc::new(Prefixed::new(Arc::new(FdbDatabase::open(fdb)?), subspace(fdb, cluster)))
        }
        StoreConfig::Mem => Arc::new(MemDatabase::new()),
    })
}

/// Where a cluster's keys are in a FoundationDB database, which several clusters may share.
pub fn subspace(fdb: &FdbConfig, cluster: ClusterId) -> Subspace {
    match &fdb.prefix {
        Some(prefix) => Subspace::new(prefix.clone()),
        None => Subspace::new(format!("catena/{cluster}/")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_share_a_database_without_meeting() {
        let fdb = FdbConfig::default();
        let [one, other] = [7, 8].map(|id| subspace(&fdb, ClusterId(id)));
        assert_eq!(one.prefix(), "catena/00000000000000000000000000000007/");
        assert!(!one.prefix().starts_with(other.prefix()));
        let own = FdbConfig { prefix: Some("x/".into()), ..fdb };
        assert_eq!(subspace(&own, ClusterId(7)).prefix(), "x/");
    }

    #[test]
    fn a_store_that_cannot_be_used_says_what_is_missing() {
        let open = |file: &str| {
            let fdb = FdbConfig { cluster_file: file.into(), ..FdbConfig::default() };
            open(&StoreConfig::Fdb(fdb), ClusterId(7), &Token([0; 32])).err().unwrap().to_string()
        };
        assert!(open("/nowhere/fdb.cluster").contains("/nowhere/fdb.cluster"));
        assert!(open("/etc/hostname").contains("is no FoundationDB cluster file"));
    }
}
