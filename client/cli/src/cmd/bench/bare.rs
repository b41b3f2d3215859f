//! The bare loop beside `bench meta --kv`: transactions of the shape and size of meta's create, on the store itself, without meta, the
//! way to it, or what it works out. Keys and values are meta's own; a test compares reads and writes with those of a real create.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use catena_kv::{Atomic, Database, Isolation, Jitter, KvError, Retry, Tx, transact};
use catena_meta::schema::key::{self, Counter, SHARDS};
use catena_meta::schema::{DirTimes, Dirent, Inode, Outcome, ROOT, encode};
use catena_proto::ids::{InodeId, RequestId};
use catena_proto::pb::{self, FileType};
use futures_util::future::try_join_all;

use crate::clock::wall_nanos;

/// The period that outcomes are recorded in.
const PERIOD: u32 = 7;

/// Inode ids as meta hands them out: small, which keys spread and replies have few bytes for.
const DIRECTORIES: u64 = 4096;
const FILES: u64 = 1 << 20;

/// A store with a root and the directories in it, nothing else.
pub struct Bare {
    db: Arc<dyn Database>,
    dirs: Vec<(Bytes, InodeId)>,
    chunk_size: u32,
    made: AtomicU64,
    jitter: Jitter,
}

impl Bare {
    /// Puts root and `dirs` directories into an empty database.
    pub async fn prepare(db: Arc<dyn Database>, dirs: usize, chunk_size: u32) -> Result<Bare, KvError> {
        let dir = |n: usize| (Bytes::from(format!("d{n}")), InodeId(DIRECTORIES + n as u64));
        let dirs: Vec<_> = (0..dirs).map(dir).collect();
        let jitter = Jitter::new(rand::random());
        let bare = Bare { db, dirs, chunk_size, made: AtomicU64::new(0), jitter };
        let retry = Retry::default().idempotent();
        transact(&*bare.db, retry, &bare.jitter, |tx| async move { bare_root(&tx) }).await?;
        for some in bare.dirs.chunks(1000) {
            let make = |tx: Tx| async move {
                some.iter().try_for_each(|(name, id)| {
                    tx.set(&key::entry(ROOT, name), &entry(*id, FileType::Directory))?;
                    tx.set(&key::inode(*id), &encode(&directory(ROOT)))
                })
            };
            transact(&*bare.db, retry, &bare.jitter, make).await?;
        }
        Ok(bare)
    }

    /// One transaction: what creating a new file in one of the directories reads and writes.
    pub async fn create(&self) -> Result<(), KvError> {
        let n = self.made.fetch_add(1, Relaxed);
        let (dir_name, dir) = &self.dirs[n as usize % self.dirs.len()];
        let (name, request) = (format!("f{n}"), RequestId(rand::random()));
        // A second attempt after an unknown outcome writes the same again.
        let (id, inode) = (InodeId(FILES + n), file(self.chunk_size));
        let reply = pb::InodeReply { inode: Some(inode.to_wire(id, None)) };
        // As it is inside of another value: without the byte in front.
        let reply = encode(&reply).slice(1..);
        let outcome = Outcome { call: "mknod".into(), reply, ..Default::default() };
        let writes = [
            (key::entry(*dir, name.as_bytes()), entry(id, FileType::File)),
            (key::dir_times(*dir), DirTimes { mtime: inode.mtime, ctime: inode.ctime }.encode()),
            (key::inode(id), encode(&inode)),
            (key::outcome(PERIOD, request), encode(&outcome)),
        ];
        let counter = key::counter(Counter::Files, rand::random_range(0..SHARDS));
        // As meta asks: at once what it knows, then what that leads to. Read one by one, the loop would be slower and flatter meta.
        let copy = (request.0 % u128::from(SHARDS)) as u8;
        let [now, before] = [PERIOD, PERIOD - 1].map(|period| key::outcome(period, request));
        let reads = [
            vec![key::period_copy(copy), now, before],
            vec![key::inode(ROOT), key::entry(ROOT, dir_name)],
            vec![key::inode(*dir), writes[0].0.clone()],
        ];
        let (reads, writes, counter) = (&reads, &writes, &counter);
        transact(&*self.db, Retry::default().idempotent(), &self.jitter, |tx| async move {
            for together in reads {
                try_join_all(together.iter().map(|key| tx.get(key, Isolation::Serializable))).await?;
            }
            writes.iter().try_for_each(|(key, value)| tx.set(key, value))?;
            tx.atomic(counter, Atomic::Add, &1_i64.to_le_bytes())
        })
        .await
    }
}

fn bare_root(tx: &Tx) -> Result<(), KvError> {
    for copy in 0..SHARDS {
        tx.set(&key::period_copy(copy), &i64::from(PERIOD).to_le_bytes())?;
    }
    tx.set(&key::inode(ROOT), &encode(&directory(ROOT)))
}

fn entry(id: InodeId, kind: FileType) -> Bytes {
    encode(&Dirent { inode: id.0, kind: kind as i32 })
}

fn blank(kind: FileType, mode: u32) -> Inode {
    let now = wall_nanos();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    Inode {
        kind: kind as i32,
        mode,
        uid,
        gid,
        nlink: 1,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        ..Default::default()
    }
}

fn directory(parent: InodeId) -> Inode {
    Inode { parent: parent.0, ..blank(FileType::Directory, 0o755) }
}

fn file(chunk_size: u32) -> Inode {
    let layout = pb::Layout { table: 1, table_version: 1, chunk_size, stripe: 1, seed: rand::random() };
    Inode { layout: Some(layout), ..blank(FileType::File, 0o644) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use catena_kv::fault::{Faulty, Point};
    use catena_kv::{MemDatabase, RangeQuery, TxOptions, USER_KEY_END, key_after};
    use catena_meta::{MemChunks, Parts, Service, Settings};
    use catena_mgmtd_client::RoutingWatch;
    use catena_proto::ids::{ChainId, ChainVersion, ClusterId, TableId};
    use catena_proto::layout::DEFAULT_CHUNK_SIZE;
    use catena_proto::routing::{Chain, RoutingInfo, Table};

    use super::*;
    use crate::clock::SystemClock;

    /// A database that counts the reads of its transactions.
    fn counted() -> (Arc<MemDatabase>, Arc<dyn Database>, Arc<AtomicU64>) {
        let (inner, reads) = (Arc::new(MemDatabase::new()), Arc::new(AtomicU64::new(0)));
        let counter = reads.clone();
        let hook = move |point| {
            counter.fetch_add(u64::from(point == Point::Read), Relaxed);
            None
        };
        let db = Arc::new(Faulty::new(inner.clone(), Box::new(hook)));
        (inner, db, reads)
    }

    async fn contents(db: &dyn Database) -> BTreeMap<Bytes, Bytes> {
        let (mut all, mut begin) = (BTreeMap::new(), Bytes::new());
        let tx = db.begin(TxOptions::default()).unwrap();
        loop {
            let page = tx.get_range(RangeQuery::new(begin, Bytes::from_static(USER_KEY_END))).await.unwrap();
            let Some(last) = page.items.last() else { return all };
            begin = key_after(&last.key);
            all.extend(page.items.into_iter().map(|item| (item.key, item.value)));
        }
    }

    /// First letters and lengths of what differs, in key order.
    fn written(
        before: &BTreeMap<Bytes, Bytes>,
        after: &BTreeMap<Bytes, Bytes>,
    ) -> Vec<(Bytes, usize, usize)> {
        let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(*value));
        changed.map(|(key, value)| (key.slice(..4), key.len(), value.len())).collect()
    }

    async fn service(db: Arc<dyn Database>) -> Arc<Service> {
        let chains = vec![ChainId(1)];
        let chain = Chain { id: ChainId(1), version: ChainVersion(1), targets: vec![] };
        let routing = RoutingInfo {
            chains: [(ChainId(1), chain)].into(),
            tables: [((TableId(1), 1), Table { id: TableId(1), version: 1, replicas: 1, chains })].into(),
            ..Default::default()
        };
        let (_, routing) = RoutingWatch::manual(routing);
        let settings = Settings {
            cluster: ClusterId(7),
            root: Default::default(),
            layout: Default::default(),
            reclaim: Default::default(),
            requests: Default::default(),
            reads: Default::default(),
            slow: std::time::Duration::MAX,
        };
        let clock = Arc::new(SystemClock::new());
        let parts = Parts { db, chunks: Arc::new(MemChunks::new()), routing, clock, seed: 1 };
        let service = Service::new(settings, parts);
        service.initialise().await.unwrap();
        service
    }

    fn caller() -> Option<pb::Caller> {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let request = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
        Some(pb::Caller { uid, gid, client: 42, request, ..Default::default() })
    }

    #[tokio::test]
    async fn the_bare_transaction_reads_and_writes_what_a_create_does() {
        let (store, db, reads) = counted();
        let meta = service(db).await;
        let at = |path: &str| Some(pb::At { parent: ROOT.0, path: Bytes::copy_from_slice(path.as_bytes()) });
        let root = pb::Caller { uid: 0, ..caller().unwrap() };
        let mkdir = pb::MkdirRequest { caller: Some(root), at: at("/d0"), mode: 0o777, ..Default::default() };
        meta.mkdir(mkdir).await.unwrap();
        let create = |path: &str| {
            let kind = FileType::File as i32;
            pb::MknodRequest { caller: caller(), at: at(path), r#type: kind, mode: 0o644, rdev: 0 }
        };
        // The first takes inode ids into reserve.
        meta.mknod(create("/d0/f0")).await.unwrap();
        let before = contents(&*store).await;
        reads.store(0, Relaxed);
        meta.mknod(create("/d0/f1")).await.unwrap();
        let meta_reads = reads.load(Relaxed);
        let by_meta = written(&before, &contents(&*store).await);

        let (store, db, reads) = counted();
        let bare = Bare::prepare(db, 1, DEFAULT_CHUNK_SIZE).await.unwrap();
        bare.create().await.unwrap();
        let before = contents(&*store).await;
        reads.store(0, Relaxed);
        bare.create().await.unwrap();
        assert_eq!(reads.load(Relaxed), meta_reads);
        let by_bare = written(&before, &contents(&*store).await);

        assert_eq!(by_bare.len(), by_meta.len(), "{by_bare:?} {by_meta:?}");
        for (ours, theirs) in by_bare.iter().zip(&by_meta) {
            assert_eq!((&ours.0, ours.1), (&theirs.0, theirs.1));
            // Random numbers in values take a byte or two more or less.
            assert!(ours.2.abs_diff(theirs.2) <= 6, "{ours:?} {theirs:?}");
        }
    }
}
