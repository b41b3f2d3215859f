//! A client over loopback gRPC against the conformance suite, with either store behind the service.

use std::sync::Arc;

use catena_kv::MemDatabase;
use catena_kv::conformance::Backend;
use catena_kv::local::Store;
use catena_kv_embedded::{EmbeddedDatabase, Options as Embedded};
use catena_kv_remote::{GrpcKv, Options, RemoteDatabase, bind, start};
use catena_proto::ids::ClusterId;
use catena_proto::rpc::ClientAuth;
use catena_proto::token::Token;

/// The cases' runtimes come and go, so service and connection have one of their own.
fn backend(store: impl Store, keep: impl Send + Sync + 'static) -> Backend {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let database = runtime.block_on(async {
        let (cluster, token) = (ClusterId(7), Token([3; 32]));
        let listener = bind("127.0.0.1:0").await.unwrap();
        let running = start(listener, (cluster, token), Arc::new(store), 1).unwrap();
        let address = running.address().to_string();
        tokio::spawn(async move {
            let _running = running;
            std::future::pending::<()>().await
        });
        let api = GrpcKv::new(&address, ClientAuth::new(cluster, &token)).unwrap();
        RemoteDatabase::new(Arc::new(api), Options::new(address))
    });
    Backend { database: Arc::new(database), virtual_time: true, keep: Box::new((runtime, keep)) }
}

mod mem {
    use super::*;

    catena_kv::conformance_suite!(|| backend(MemDatabase::new(), ()));
}

mod embedded {
    use super::*;

    fn embedded() -> Backend {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        backend(EmbeddedDatabase::open(directory.path(), Embedded::default()).unwrap(), directory)
    }

    catena_kv::conformance_suite!(embedded);
}
