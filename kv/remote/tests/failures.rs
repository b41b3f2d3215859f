//! What a client is told when the service stops answering, at every place where it can.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catena_kv::{Database, Isolation, Jitter, KvError, MemDatabase, Retry, TxOptions, transact};
use catena_kv_remote::{CallError, GrpcKv, KvApi, Options, RemoteDatabase, Running, Service, bind, start};
use catena_proto::ids::ClusterId;
use catena_proto::pb::*;
use catena_proto::rpc::ClientAuth;
use catena_proto::token::Token;
use parking_lot::Mutex;

const CLUSTER: ClusterId = ClusterId(7);

fn token() -> Token {
    Token([3; 32])
}

async fn serve(listen: &str, store: &MemDatabase, opening: u64) -> Running<MemDatabase> {
    let listener = bind(listen).await.unwrap();
    start(listener, (CLUSTER, token()), Arc::new(store.clone()), opening).unwrap()
}

fn connect(address: &str) -> RemoteDatabase {
    let api = GrpcKv::new(address, ClientAuth::new(CLUSTER, &token())).unwrap();
    RemoteDatabase::new(Arc::new(api), Options::new(address))
}

#[tokio::test]
async fn a_service_that_is_not_there_is_unavailable_also_for_commits() {
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let db = connect(&address);
    let tx = db.begin(TxOptions::default()).unwrap();
    let error = tx.get(b"a", Isolation::Serializable).await.unwrap_err();
    assert!(matches!(&error, KvError::Unavailable(why) if why.contains(&address)), "{error}");
    tx.set(b"a", b"1").unwrap();
    let error = tx.commit().await.unwrap_err();
    assert!(matches!(error, KvError::Unavailable(_)) && !error.maybe_committed(), "{error}");
}

#[tokio::test]
async fn a_restart_ends_transactions_and_the_next_ones_go_on() {
    let store = MemDatabase::new();
    let first = serve("127.0.0.1:0", &store, 1).await;
    let address = first.address().to_string();
    let db = connect(&address);
    let begin = || db.begin(TxOptions::default()).unwrap();
    let (reading, writing) = (begin(), begin());
    reading.get(b"a", Isolation::Serializable).await.unwrap();
    writing.get(b"a", Isolation::Serializable).await.unwrap();
    writing.set(b"b", b"1").unwrap();
    first.stop().await;
    let second = serve(&address, &store, 2).await;
    // Whatever notices the broken connection first is unavailable; what reaches the new service is too old, although it has the version.
    let error = loop {
        match reading.get(b"a", Isolation::Snapshot).await.unwrap_err() {
            KvError::Unavailable(_) => {}
            error => break error,
        }
    };
    assert_eq!(error, KvError::TooOld);
    assert_eq!(writing.commit().await, Err(KvError::TooOld));
    let retry = Retry::default().idempotent();
    transact(&db, retry, &Jitter::new(1), |tx| async move { tx.set(b"b", b"2") }).await.unwrap();
    second.stop().await;
}

#[tokio::test]
async fn strangers_are_refused_and_told_why_and_do_not_try_again() {
    let running = serve("127.0.0.1:0", &MemDatabase::new(), 1).await;
    let address = running.address().to_string();
    let api = GrpcKv::new(&address, ClientAuth::new(CLUSTER, &Token([9; 32]))).unwrap();
    let db = RemoteDatabase::new(Arc::new(api), Options::new(address));
    let tx = db.begin(TxOptions::default()).unwrap();
    let error = tx.get(b"a", Isolation::Serializable).await.unwrap_err();
    assert!(!error.retryable() && error.to_string().contains("token"), "{error}");
    tx.set(b"a", b"1").unwrap();
    let error = tx.commit().await.unwrap_err();
    assert!(!error.retryable() && !error.maybe_committed(), "{error}");
    running.stop().await;
}

/// The service in this process, with a way to lose what is said.
struct Line {
    service: Arc<Service<MemDatabase>>,
    /// What happens to the next call.
    next: Mutex<Option<Loss>>,
    commits: Mutex<u32>,
}

#[derive(Clone, Copy, PartialEq)]
enum Loss {
    Request,
    Reply,
    Silence,
}

impl Line {
    fn new() -> (Arc<Line>, RemoteDatabase) {
        let service = Service::new(Arc::new(MemDatabase::new()), 1);
        let line = Arc::new(Line { service, next: Mutex::new(None), commits: Mutex::new(0) });
        (line.clone(), RemoteDatabase::new(line, Options::new("test")))
    }

    async fn carry<T>(&self, call: impl Future<Output = T>) -> Result<T, CallError> {
        let loss = self.next.lock().take();
        match loss {
            Some(Loss::Request) => Err(CallError::Lost("reset".into())),
            Some(Loss::Silence) => std::future::pending().await,
            loss => {
                let reply = call.await;
                if loss.is_some() { Err(CallError::Lost("reset".into())) } else { Ok(reply) }
            }
        }
    }
}

#[async_trait]
impl KvApi for Line {
    async fn read_version(&self, request: KvReadVersionRequest) -> Result<KvReadVersionReply, CallError> {
        self.carry(self.service.read_version(request)).await
    }
    async fn get(&self, request: KvGetRequest) -> Result<KvGetReply, CallError> {
        self.carry(self.service.get(request)).await
    }
    async fn get_range(&self, request: KvRangeRequest) -> Result<KvRangeReply, CallError> {
        self.carry(self.service.get_range(request)).await
    }
    async fn commit(&self, request: KvCommitRequest) -> Result<KvCommitReply, CallError> {
        *self.commits.lock() += 1;
        self.carry(self.service.commit(request)).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_is_lost_is_unknown_and_never_sent_again() {
    for (loss, there) in [(Loss::Request, false), (Loss::Reply, true), (Loss::Silence, false)] {
        let (line, db) = Line::new();
        let tx = db.begin(TxOptions::default()).unwrap();
        tx.get(b"a", Isolation::Serializable).await.unwrap();
        tx.set(b"a", b"1").unwrap();
        *line.next.lock() = Some(loss);
        assert_eq!(tx.commit().await, Err(KvError::CommitUnknown));
        assert_eq!(*line.commits.lock(), 1);
        let value = db.begin(TxOptions::default()).unwrap().get(b"a", Isolation::Snapshot).await.unwrap();
        assert_eq!(value.is_some(), there);
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_not_answered_is_unavailable() {
    for loss in [Loss::Request, Loss::Reply, Loss::Silence] {
        let (line, db) = Line::new();
        let tx = db.begin(TxOptions::default()).unwrap();
        *line.next.lock() = Some(loss);
        let error = tx.read_version().await.unwrap_err();
        assert!(matches!(&error, KvError::Unavailable(why) if why.contains("test")), "{error}");
        // The transaction has read nothing yet, so it can begin again.
        tx.read_version().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_service_forgets_versions_that_no_transaction_can_read_at() {
    let (line, db) = Line::new();
    let at = line.service.read_version(KvReadVersionRequest {}).await.at;
    let read = async || line.service.get(KvGetRequest { at, key: "a".into() }).await.failure;
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(read().await, None);
    tokio::time::advance(Duration::from_secs(2)).await;
    db.begin(TxOptions::default()).unwrap().read_version().await.unwrap();
    // The same version is handed out again while nothing is committed; after a commit the old one goes.
    assert_eq!(read().await, None);
    let tx = db.begin(TxOptions::default()).unwrap();
    tx.set(b"a", b"1").unwrap();
    tx.commit().await.unwrap();
    tokio::time::advance(Duration::from_secs(7)).await;
    db.begin(TxOptions::default()).unwrap().read_version().await.unwrap();
    assert_eq!(read().await.map(|failure| failure.code()), Some(KvCode::TooOld));
}

#[tokio::test]
async fn what_no_transaction_of_ours_would_send_does_not_reach_the_store() {
    let (line, _) = Line::new();
    let bytes = bytes::Bytes::from_static;
    let mutation = |op: KvOp, key, value, offset| KvMutation { op: op as i32, key, value, offset };
    let long = bytes::Bytes::from(vec![b'k'; 10_001]);
    for (mutation, code) in [
        (mutation(KvOp::Set, bytes(b"\xff/version"), bytes(b"1"), 0), KvCode::KeyOutsideRange),
        (mutation(KvOp::ClearRange, bytes(b""), bytes(b"\xff\xff"), 0), KvCode::KeyOutsideRange),
        (mutation(KvOp::ClearRange, bytes(b"b"), bytes(b"a"), 0), KvCode::InvertedRange),
        (mutation(KvOp::Set, long, bytes(b"1"), 0), KvCode::KeyTooLarge),
        (mutation(KvOp::StampedKey, bytes(b"a"), bytes(b"1"), 0), KvCode::BadVersionstampOffset),
        (mutation(KvOp::StampedValue, bytes(b"a"), bytes(b"1"), u32::MAX), KvCode::BadVersionstampOffset),
        (mutation(KvOp::Add, bytes(b"a"), vec![0; 100_001].into(), 0), KvCode::ValueTooLarge),
        (KvMutation { op: 77, ..Default::default() }, KvCode::Backend),
    ] {
        let request = KvCommitRequest { mutations: vec![mutation.clone()], ..Default::default() };
        let failure = line.service.commit(request).await.failure.expect("refused");
        assert_eq!(failure.code(), code, "{mutation:?}");
    }
    let get = line.service.get(KvGetRequest { key: bytes(b"\xff/version"), at: None }).await;
    assert_eq!(get.failure.expect("refused").code(), KvCode::KeyOutsideRange);
    let range = KvRangeRequest { begin: bytes(b""), end: bytes(b"\xff\xff"), ..Default::default() };
    assert!(line.service.get_range(range).await.failure.is_some());
}
