//! Several services on one store, and a client that moves between them: services that die, stand still, lose requests and answers, and
//! carry out late what the client has long sent to another.

mod common;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use catena_kv::Database;
use catena_kv::fault::{Chances, Faulty, random};
use catena_kv_testing::{database, rounds};
use catena_meta::Service;
use catena_meta_client::{Connector, Credentials, Endpoint, MetaClient, Options, Servers};
use catena_proto::ids::ClientId;
use catena_proto::meta_call::{Reply, Request};
use catena_proto::pb;
use catena_proto::rpc::Failure;
use catena_proto::status::Status;
use catena_rt::JoinSet;
use catena_rt::time::{Instant, sleep};
use common::model::{self, Answer, Generator, Model, Op, tree};
use common::{World, at};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One service as its network shows it.
struct Host {
    service: Arc<Service>,
    /// What it is carrying out; dies with it.
    work: JoinSet<()>,
    /// Until when it answers nothing. What it is sent meanwhile is carried out afterwards.
    still_until: Instant,
    calls: u64,
}

struct Net {
    world: World,
    hosts: Mutex<Vec<Host>>,
    draws: Mutex<StdRng>,
    /// Chances of each fault, in percent.
    faults: u32,
}

impl Net {
    async fn new(db: Arc<dyn Database>, count: u64, seed: u64, faults: u32) -> Arc<Net> {
        let world = World::on(db).await;
        let host = |nth| Host {
            service: world.another(seed * 1000 + nth).service,
            work: JoinSet::new(),
            still_until: Instant::now(),
            calls: 0,
        };
        let hosts = Mutex::new((0..count).map(host).collect());
        Arc::new(Net { world, hosts, draws: Mutex::new(StdRng::seed_from_u64(seed)), faults })
    }

    fn hits(&self) -> bool {
        self.draws.lock().random_range(0..100) < self.faults
    }

    fn wait(&self, most: u64) -> Duration {
        Duration::from_millis(self.draws.lock().random_range(0..=most))
    }

    /// Ends a service where it is and starts another in its place.
    fn kill(&self, nth: usize) {
        let seed = self.draws.lock().random();
        let service = self.world.another(seed).service;
        let mut hosts = self.hosts.lock();
        hosts[nth].work = JoinSet::new();
        hosts[nth].service = service;
    }

    fn stop_for(&self, nth: usize, time: Duration) {
        self.hosts.lock()[nth].still_until = Instant::now() + time;
    }

    fn client(self: &Arc<Self>, options: Options) -> MetaClient {
        let servers = Servers::Fixed((0..self.hosts.lock().len()).map(|nth| nth.to_string()).collect());
        let connector = Arc::new(Link(self.clone()));
        MetaClient::with_connector(servers, connector, ClientId(42), options)
    }
}

struct Link(Arc<Net>);

struct Door(Arc<Net>, usize);

impl Connector for Link {
    fn connect(&self, address: &str) -> Result<Arc<dyn Endpoint>, Failure> {
        Ok(Arc::new(Door(self.0.clone(), address.parse().expect("a number"))))
    }
}

#[async_trait]
impl Endpoint for Door {
    async fn call(&self, request: Request, _: Duration) -> Result<Reply, Failure> {
        let Door(net, nth) = self;
        let lost = || Failure::new(Status::Disconnected, "the network lost it");
        let still_until = {
            let mut hosts = net.hosts.lock();
            hosts[*nth].calls += 1;
            hosts[*nth].still_until
        };
        if net.hits() {
            return Err(lost());
        }
        let (answered, answer) = tokio::sync::oneshot::channel();
        let late = net.hits().then(|| net.wait(5000));
        let unanswered = net.hits();
        let twice = (unanswered && net.hits()).then(|| net.wait(5000));
        let work = {
            let (service, request) = (net.hosts.lock()[*nth].service.clone(), request.clone());
            async move {
                catena_rt::time::sleep_until(still_until).await;
                if let Some(late) = late {
                    sleep(late).await;
                }
                let outcome = service.answer(request.clone()).await;
                // Nobody may be waiting any more.
                let _ = answered.send(outcome);
                if let Some(twice) = twice {
                    sleep(twice).await;
                    let _ = service.answer(request).await;
                }
            }
        };
        net.hosts.lock()[*nth].work.spawn(work);
        let outcome = answer.await.map_err(|_| lost())?;
        if unanswered { Err(lost()) } else { outcome }
    }
}

/// An operation through the client.
async fn perform(meta: &MetaClient, who: &Credentials, op: &Op) -> Answer {
    macro_rules! through {
        ($request:expr, $($name:ident)*) => {
            match $request {
                $(Request::$name(request) => meta.call(who, request).await.map(Reply::$name),)*
                other => panic!("no operation is a {}", other.name()),
            }
        };
    }
    let request = model::request(None, op);
    let outcome = through!(request, Mkdir Open Symlink Link Remove Rename SetAttr Stat Readdir);
    model::answer(outcome.map_err(|error| error.status()))
}

async fn run(seed: u64, steps: usize) {
    let chances =
        Chances { conflict: 30, unknown_applied: 60, unknown_lost: 40, too_old: 10, unavailable: 10 };
    let db = Arc::new(Faulty::new(database(), random(seed, chances)));
    let net = Net::new(db.clone(), 3, seed, 8).await;
    let meta = net.client(Options { seed: Some(seed), ..Options::default() });
    let (mut model, mut random) = (Model::default(), Generator::new(seed, 4));
    for step in 0..steps {
        match random.rng().random_range(0..12) {
            0 => net.kill(random.rng().random_range(0..3)),
            1 => {
                let time = Duration::from_millis(random.rng().random_range(0..9000));
                net.stop_for(random.rng().random_range(0..3), time);
            }
            _ => {}
        }
        let (who, op) = (random.who(), random.op());
        let got = perform(&meta, &Credentials::user(who.0, who.1), &op).await;
        assert_eq!(got, model.apply(who, &op), "seed {seed}, step {step}: {who:?} {op:?}");
        if matches!((&op, &got), (Op::RemoveAll(_), Answer::Done)) {
            net.world.service.reclaim().await.expect("reclaim");
        }
    }
    // What is still on its way arrives.
    sleep(Duration::from_secs(30)).await;
    db.set_hook(Box::new(|_| None));
    assert_eq!(tree(&net.world).await, model.tree(), "seed {seed}: the tree at the end");
}

#[tokio::test(start_paused = true)]
async fn no_failure_of_a_service_or_of_the_network_reaches_the_application() {
    for seed in 0..rounds(40) {
        run(seed, 60).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_stands_still_is_left_in_seconds_and_not_asked_first_again() {
    let net = Net::new(database(), 2, 1, 0).await;
    let meta = net.client(Options { seed: Some(1), ..Options::default() });
    let who = Credentials::root();
    let root = Op::Stat("/".into(), true);
    let stat = || perform(&meta, &who, &root);
    stat().await;
    let used = usize::from(net.hosts.lock()[1].calls > 0);
    net.stop_for(used, Duration::from_secs(3600));
    let began = Instant::now();
    let mkdir = perform(&meta, &who, &Op::Mkdir("/d".into(), 0o755)).await;
    assert!(matches!(mkdir, Answer::Node { .. }), "{mkdir:?}");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(4), "{took:?}");
    let asked = net.hosts.lock()[used].calls;
    for _ in 0..100 {
        let began = Instant::now();
        stat().await;
        assert!(began.elapsed() < Duration::from_millis(100));
        sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(net.hosts.lock()[used].calls, asked, "nobody goes back to it without need");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_when_its_outcome_may_be_forgotten_changes_nothing() {
    let world = World::new().await;
    let other = world.another(5);
    let _background = other.service.background(None);
    let period = world.service.period(pb::PeriodRequest { caller: world.caller(0, 0, &[]) }).await;
    let period = period.expect("a period").period;
    let mkdir = |caller| pb::MkdirRequest { caller, at: at("/d"), mode: 0o755, ..Default::default() };
    let first = |caller: Option<pb::Caller>| caller.map(|caller| pb::Caller { period, ..caller });
    // Sent to a service that stands still, then to one that answers. The directory is removed again, and another one is made.
    let request =
        pb::RemoveRequest { caller: first(world.root()), at: at("/d"), directory: true, recursive: false };
    world.service.mkdir(mkdir(world.root())).await.expect("mkdir");
    other.service.remove(request.clone()).await.expect("remove");
    world.service.mkdir(mkdir(world.root())).await.expect("mkdir again");
    // Soon after, the record answers.
    world.service.remove(request.clone()).await.expect("the recorded outcome");
    world.stat("/d").await.expect("still there");
    // Long after, nothing does.
    sleep(Duration::from_secs(3600)).await;
    let late = world.service.remove(request).await.unwrap_err();
    assert_eq!(late.status, Status::StaleSequence, "{late}");
    world.stat("/d").await.expect("still there");
}
