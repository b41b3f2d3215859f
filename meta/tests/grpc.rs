//! The service behind its sockets, through the client: every call once, failover, strangers, large directories.

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use catena_kv::Database;
use catena_kv_testing::database;
use catena_meta::{Config, EXAMPLE, Env, MemChunks, Running, start_with};
use catena_meta_client::{
    Credentials, MetaClient, OpenFlags, Options, Place, Servers, SetAttr, Settle, XattrMode,
};
use catena_mgmtd_client::RoutingWatch;
use catena_proto::ids::{ClientId, ClusterId, InodeId, RoutingVersion};
use catena_proto::pb;
use catena_proto::rpc::ClientAuth;
use catena_proto::status::Status;
use catena_proto::token::Token;
use common::Ticks;
use prometheus_client::registry::Registry;

struct Cluster {
    db: Arc<dyn Database>,
    chunks: Arc<MemChunks>,
    routing: RoutingWatch,
    config: Config,
    clock: Arc<Ticks>,
}

impl Cluster {
    fn new() -> Cluster {
        let (_, routing) = RoutingWatch::manual(common::routing());
        let mut config: Config = toml::from_str(EXAMPLE).expect("the example");
        config.listen = "127.0.0.1:0".into();
        let clock = Arc::new(Ticks::new());
        Cluster { db: database(), chunks: Arc::new(MemChunks::new()), routing, config, clock }
    }

    async fn start(&self, seed: u64) -> Running {
        let env = Env { clock: self.clock.clone(), seed };
        let (config, db, chunks) = (self.config.clone(), self.db.clone(), self.chunks.clone());
        start_with(config, env, db, chunks, self.routing.clone(), None).await.expect("a service")
    }

    fn client(&self, servers: &[&Running]) -> MetaClient {
        let auth = ClientAuth::new(self.config.cluster, &self.config.token);
        let servers = servers.iter().map(|running| running.control_address().to_string()).collect();
        let options = Options { seed: Some(3), ..Options::default() };
        MetaClient::new(Servers::Fixed(servers), auth, ClientId(42), options)
    }
}

#[tokio::test]
async fn every_call_goes_through() {
    let cluster = Cluster::new();
    let running = cluster.start(1).await;
    let meta = cluster.client(&[&running]);
    let who = Credentials::root();
    let path = |text: &str| Place::path(text);

    meta.mkdir(&who, &path("/d/e"), 0o755, true, None).await.unwrap();
    let flags = OpenFlags { write: true, create: true, ..OpenFlags::default() };
    let open = meta.open(&who, &path("/d/f"), flags, 0o644, None).await.unwrap();
    assert!(open.created);
    let (inode, session) = (InodeId(open.inode.id), open.session.expect("a session"));
    let settle = Settle { close: true, wrote: true, high_water: 9, acknowledged: true, ..Settle::default() };
    assert_eq!(meta.sync(&who, inode, session, settle).await.unwrap().length, 9);
    assert_eq!(meta.truncate(&who, &path("/d/f"), 5, None).await.unwrap().length, 5);
    meta.mknod(&who, &path("/d/p"), pb::FileType::Fifo, 0o600, 0).await.unwrap();
    meta.symlink(&who, &path("/d/l"), "f").await.unwrap();
    assert_eq!(meta.readlink(&who, &path("/d/l")).await.unwrap(), "f");
    assert_eq!(meta.link(&who, &path("/d/f"), &path("/d/h"), false).await.unwrap().nlink, 2);
    meta.rename(&who, &path("/d/h"), &path("/d/i"), pb::RenameMode::Noreplace).await.unwrap();
    let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    assert_eq!(meta.set_attr(&who, &path("/d/f"), change, true).await.unwrap().mode, 0o600);
    let layout = pb::Layout { stripe: 2, ..Default::default() };
    meta.set_layout(&who, &path("/d/e"), layout).await.unwrap();
    meta.set_xattr(&who, &path("/d/f"), "user.a", Bytes::from_static(b"1"), XattrMode::Create, true)
        .await
        .unwrap();
    assert_eq!(meta.get_xattr(&who, &path("/d/f"), "user.a", true).await.unwrap(), "1");
    assert_eq!(meta.list_xattr(&who, &path("/d/f"), true).await.unwrap(), ["user.a"]);
    meta.remove_xattr(&who, &path("/d/f"), "user.a", true).await.unwrap();
    let page = meta.readdir(&who, &path("/d"), Bytes::new(), 2, true).await.unwrap();
    assert_eq!((page.entries.len(), page.more), (2, true));
    let found = meta.batch_stat(&who, &[path("/d/f"), path("/none"), path("/d")], true).await.unwrap();
    assert_eq!(found[0].as_ref().map(|inode| inode.id), Ok(inode.0));
    assert_eq!(found[1], Err(Status::NotFound));
    assert_eq!(found[2].as_ref().map(|inode| inode.nlink), Ok(3));
    let found = meta.batch_stat_inodes(&who, &[inode, InodeId(999)]).await.unwrap();
    assert_eq!(found[0].as_ref().map(|inode| inode.nlink), Ok(2));
    assert_eq!(found[1], Err(Status::NotFound));
    let usage = meta.usage(&who, &path("/")).await.unwrap();
    assert_eq!((usage.bytes, usage.files, usage.directories), (5, 3, 3));
    let statfs = meta.statfs(&who).await.unwrap();
    assert_eq!((statfs.files, statfs.directories, statfs.capacity), (3, 3, 1000));
    meta.unlink(&who, &path("/d/i")).await.unwrap();
    let error = meta.rmdir(&who, &path("/d")).await.unwrap_err();
    assert_eq!(error.status(), Status::NotEmpty);
    assert_eq!(error.to_string(), "remove /d: directory not empty");
    meta.remove_all(&who, &path("/d")).await.unwrap();
    assert_eq!(meta.stat(&who, &path("/d"), true).await.unwrap_err().errno(), 2);

    let mut registry = Registry::with_prefix("catena");
    running.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("catena_meta_call_seconds_count{call=\"open\"} 1"), "{text}");
    running.stop().await;
}

#[tokio::test]
async fn a_client_goes_to_another_service_without_an_error() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.start(1).await, cluster.start(2).await);
    let meta = cluster.client(&[&one, &two]);
    let who = Credentials::root();
    meta.mkdir(&who, &Place::path("/d"), 0o755, false, None).await.unwrap();
    let calls: Vec<_> = (0..8)
        .map(|caller| {
            let (meta, who) = (meta.clone(), who.clone());
            tokio::spawn(async move {
                for nth in 0..50 {
                    let place = Place::path(format!("/d/{caller}-{nth}"));
                    meta.mkdir(&who, &place, 0o755, false, None).await.expect("no error reaches the caller");
                }
            })
        })
        .collect();
    tokio::task::yield_now().await;
    one.stop().await;
    for call in calls {
        call.await.unwrap();
    }
    let one = cluster.start(3).await;
    let meta = cluster.client(&[&two, &one]);
    two.stop().await;
    assert_eq!(meta.stat(&who, &Place::path("/d"), true).await.unwrap().nlink, 402);
    one.stop().await;
}

#[tokio::test]
async fn services_are_found_through_routing_information() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.start(1).await, cluster.start(2).await);
    let node = |id, running: &Running, state: pb::NodeState| pb::Node {
        id,
        kind: pb::NodeKind::Meta as i32,
        state: state as i32,
        control_address: running.advertised().to_owned(),
        ..Default::default()
    };
    let with = |version, nodes: [pb::Node; 2]| {
        let mut info = common::routing();
        info.version = RoutingVersion(version);
        info.nodes.extend(nodes.map(|node| (catena_proto::ids::NodeId(node.id), node)));
        info
    };
    let (up, down) = (pb::NodeState::Up, pb::NodeState::Down);
    let (setter, watch) = RoutingWatch::manual(with(2, [node(1, &one, up), node(2, &two, down)]));
    let auth = ClientAuth::new(cluster.config.cluster, &cluster.config.token);
    let meta = MetaClient::new(Servers::Routing(watch), auth, ClientId(42), Options::default());
    let who = Credentials::root();
    meta.mkdir(&who, &Place::path("/a"), 0o755, false, None).await.unwrap();
    setter.set(with(3, [node(1, &one, down), node(2, &two, up)]));
    one.stop().await;
    meta.mkdir(&who, &Place::path("/b"), 0o755, false, None).await.unwrap();
    two.stop().await;
}

#[tokio::test]
async fn strangers_are_refused_and_a_missing_service_is_named() {
    let cluster = Cluster::new();
    let running = cluster.start(1).await;
    let servers = Servers::Fixed(vec![running.control_address().to_string()]);
    let who = Credentials::root();
    for (auth, status) in [
        (ClientAuth::new(ClusterId(1), &cluster.config.token), Status::WrongCluster),
        (ClientAuth::new(cluster.config.cluster, &Token([0; 32])), Status::BadToken),
    ] {
        let meta = MetaClient::new(servers.clone(), auth, ClientId(42), Options::default());
        assert_eq!(meta.stat(&who, &Place::path("/"), true).await.unwrap_err().status(), status);
    }
    running.stop().await;
    let auth = ClientAuth::new(cluster.config.cluster, &cluster.config.token);
    let options = Options { deadline: Duration::from_millis(50), ..Options::default() };
    for servers in [servers, Servers::Fixed(vec![])] {
        let meta = MetaClient::new(servers, auth.clone(), ClientId(42), options.clone());
        let error = meta.stat(&who, &Place::path("/"), true).await.unwrap_err();
        assert_eq!(error.status(), Status::Disconnected, "{error}");
    }
}

#[tokio::test]
async fn a_port_in_use_and_a_bad_configuration_are_named() {
    let cluster = Cluster::new();
    let running = cluster.start(1).await;
    let mut config = cluster.config.clone();
    config.listen = running.control_address().to_string();
    let env = Env { clock: cluster.clock.clone(), seed: 2 };
    let (db, chunks, routing) = (cluster.db.clone(), cluster.chunks.clone(), cluster.routing.clone());
    let start = start_with(config.clone(), env.clone(), db.clone(), chunks.clone(), routing.clone(), None);
    let error = start.await.err().expect("refused").to_string();
    assert!(error.contains(&config.listen), "{error}");
    config.node = 0;
    let error = start_with(config, env, db, chunks, routing, None).await.err().expect("refused").to_string();
    assert!(error.contains("`node`"), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn large_directories_are_listed_in_pages_and_measured() {
    let cluster = Cluster::new();
    let running = cluster.start(1).await;
    let meta = cluster.client(&[&running]);
    let who = Credentials::root();
    meta.mkdir(&who, &Place::path("/d/sub"), 0o755, true, None).await.unwrap();
    let creations: Vec<_> = (0..16)
        .map(|caller| {
            let (meta, who) = (meta.clone(), who.clone());
            tokio::spawn(async move {
                for nth in 0..50 {
                    // Long links fill a page long before its number of entries does.
                    let place = Place::path(format!("/d/{:04}", caller * 50 + nth));
                    meta.symlink(&who, &place, [b'x'; 4000]).await.unwrap();
                }
            })
        })
        .collect();
    for creation in creations {
        creation.await.unwrap();
    }
    let (mut after, mut names, mut pages) = (Bytes::new(), Vec::new(), 0);
    loop {
        let page = meta.readdir(&who, &Place::path("/d"), after, 4096, true).await.unwrap();
        pages += 1;
        let size: usize =
            page.entries.iter().map(|entry| entry.attributes.as_ref().unwrap().symlink.len()).sum();
        assert!(size < 1 << 21);
        names.extend(page.entries.iter().map(|entry| entry.name.clone()));
        match page.entries.last() {
            Some(last) if page.more => after = last.name.clone(),
            _ => break,
        }
    }
    assert!(pages > 2);
    assert_eq!(names.len(), 801);
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "in order, each once");

    let mut cursor = Bytes::new();
    let (mut files, mut directories, mut pages) = (0, 0, 0);
    loop {
        let at = Some(pb::At { parent: 1, path: Bytes::new() });
        let page =
            meta.call(&who, pb::UsageRequest { at, cursor, limit: 100, ..Default::default() }).await.unwrap();
        (files, directories, pages) = (files + page.files, directories + page.directories, pages + 1);
        cursor = page.cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!((files, directories), (800, 3));
    assert!(pages > 7);
    running.stop().await;
}
