//! Starts and stops a local cluster: a shared store and mgmtd first, then everything else, then the chain table; the other way round at the end.

use std::collections::BTreeSet;
use std::time::Duration;

use catena_mgmtd_client::{CallOptions, MgmtdClient};
use catena_proto::ids::TableId;
use catena_proto::pb::{CreateTableRequest, NodeState, PublicState};
use catena_proto::routing::RoutingInfo;
use catena_proto::rpc::ClientAuth;
use catena_rt::time::{Instant, sleep};
use tokio::sync::mpsc;

use crate::args::ServiceKind;
use crate::exit::{Exit, Failure, Result};
use crate::local::directory::{Directory, Spec};
use crate::progress;
use crate::supervise::{Event, Service, State, clear_orphan};

/// The table that files use unless told otherwise.
pub const TABLE: TableId = TableId(1);
/// A service that is not up after this long will not come up.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Replicas that are not all back after this long go on coming back in the background.
const RESYNC_PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);

/// A running local cluster.
pub struct LocalCluster {
    /// Its directory.
    pub directory: Directory,
    services: Vec<Service>,
    /// What happens to its services.
    pub events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    /// Services that were killed on purpose.
    killed: BTreeSet<String>,
    mgmtd: MgmtdClient,
    /// What mgmtd said when everything was up.
    pub routing: RoutingInfo,
}

impl LocalCluster {
    /// Starts all services and waits until every chain serves. On failure, or when `interrupt` comes, everything is stopped again.
    pub async fn start(
        directory: Directory,
        log_level: &str,
        interrupt: impl Future<Output = ()>,
    ) -> Result<LocalCluster> {
        for spec in directory.services() {
            clear_orphan(&spec).await;
        }
        directory.check_ports()?;
        directory.write_configs(log_level)?;
        let cluster = directory.cluster();
        let options = CallOptions::within(Duration::from_secs(5), Duration::from_secs(2));
        let auth = ClientAuth::new(cluster.id, &cluster.token);
        let mgmtd = MgmtdClient::connect(cluster.id, &cluster.mgmtd, auth, options)?;
        let (sender, events) = mpsc::unbounded_channel();
        let mut cluster = LocalCluster {
            directory,
            services: Vec::new(),
            events,
            sender: sender.clone(),
            killed: BTreeSet::new(),
            mgmtd,
            routing: RoutingInfo::default(),
        };
        let outcome = tokio::select! {
            outcome = cluster.bring_up(sender) => outcome,
            () = interrupt => Err(Failure::interrupted()),
        };
        match outcome {
            Ok(()) => Ok(cluster),
            Err(failure) => {
                cluster.stop().await;
                Err(failure)
            }
        }
    }

    async fn bring_up(&mut self, events: mpsc::UnboundedSender<Event>) -> Result<()> {
        let step = progress::step("starting mgmtd");
        let (stores, others): (Vec<Spec>, Vec<Spec>) =
            self.directory.services().into_iter().partition(|spec| spec.kind == ServiceKind::Kv);
        for spec in stores {
            let address = self.address(&spec);
            self.services.push(Service::start(spec, events.clone())?);
            self.wait_listening(&address).await?;
        }
        let (managers, others): (Vec<Spec>, Vec<Spec>) =
            others.into_iter().partition(|spec| spec.kind == ServiceKind::Mgmtd);
        for spec in managers {
            self.services.push(Service::start(spec, events.clone())?);
        }
        self.wait("mgmtd to answer", START_LIMIT, |_| true).await?;
        step.set_message(format!("starting meta and {} storage nodes", self.directory.shape().nodes));
        for spec in others {
            self.services.push(Service::start(spec, events.clone())?);
        }
        let all_up = self.registered();
        self.routing = self.wait("all services to register", START_LIMIT, all_up).await?;
        if self.routing.newest_table(TABLE).is_none() {
            step.set_message("computing the chain table");
            self.create_table().await?;
        }
        step.set_message("waiting for the chains to serve");
        self.routing = self.wait("every chain to serve", START_LIMIT, every_chain_serves).await?;
        step.set_message("waiting for all replicas");
        match self.wait("all replicas", RESYNC_PATIENCE, all_replicas_serve).await {
            Ok(routing) => self.routing = routing,
            Err(failure) if failure.exit == Exit::Unreachable => {
                step.suspend(|| {
                    eprintln!("catena: some replicas are still coming back; `catena admin chains` shows them")
                });
            }
            Err(failure) => return Err(failure),
        }
        step.finish_and_clear();
        self.services.iter().for_each(Service::keep_alive);
        Ok(())
    }

    async fn create_table(&self) -> Result<()> {
        let shape = self.directory.shape();
        let request = CreateTableRequest {
            table: TABLE.0,
            replicas: shape.replicas,
            min_nodes: shape.nodes,
            seed: rand::random(),
            request: bytes::Bytes::copy_from_slice(&rand::random::<[u8; 16]>()),
            ..Default::default()
        };
        self.mgmtd
            .create_table(request)
            .await
            .map_err(|failure| Failure::from(failure).about("chain table"))?;
        Ok(())
    }

    /// What happens to its services, from now on told to the caller alone.
    pub fn take_events(&mut self) -> mpsc::UnboundedReceiver<Event> {
        let (_, nothing) = mpsc::unbounded_channel();
        std::mem::replace(&mut self.events, nothing)
    }

    fn service(&self, name: &str) -> Result<usize> {
        let found = self.services.iter().position(|service| service.spec.name == name);
        found.ok_or_else(|| Failure::failed(format!("{name}: no such service in this cluster")))
    }

    /// Kills a service as a power cut would, and leaves it dead until [`LocalCluster::start_again`]. Returns its process id.
    pub async fn kill(&mut self, name: &str) -> Result<u32> {
        let at = self.service(name)?;
        self.killed.insert(name.to_owned());
        let pid = self.services[at].kill().await;
        pid.ok_or_else(|| Failure::failed(format!("{name} was not running")))
    }

    /// Starts a service that was killed.
    pub fn start_again(&mut self, name: &str) -> Result<()> {
        let at = self.service(name)?;
        let service = Service::start(self.services[at].spec.clone(), self.sender.clone())?;
        service.keep_alive();
        self.services[at] = service;
        self.killed.remove(name);
        Ok(())
    }

    /// Stops a service's process where it is, or lets it go on.
    pub fn freeze(&self, name: &str, frozen: bool) -> Result<()> {
        self.services[self.service(name)?].freeze(frozen);
        Ok(())
    }

    /// Waits until every replica of every chain serves, those of a node that was just started again by its new life: until that has
    /// registered, routing information still calls the targets of the old one serving.
    pub async fn full_strength(&self, limit: Duration) -> Result<RoutingInfo> {
        let all_up = self.registered();
        self.wait("all replicas", limit, |routing| all_up(routing) && all_replicas_serve(routing)).await
    }

    /// Whether every meta and storage service that runs now has registered. Told by process ids, because mgmtd may still list a
    /// service's last life as up.
    fn registered(&self) -> impl Fn(&RoutingInfo) -> bool + use<> {
        let registers = |spec: &Spec| matches!(spec.kind, ServiceKind::Meta | ServiceKind::Storage);
        let pids: Vec<(u32, u32)> = self
            .services
            .iter()
            .filter(|service| registers(&service.spec))
            .filter_map(|service| match service.state() {
                State::Running(pid) => Some((service.spec.node, pid)),
                State::Down(_) => None,
            })
            .collect();
        move |routing| {
            pids.iter().all(|(node, pid)| {
                let known = routing.nodes.values().find(|known| known.id == *node);
                known.is_some_and(|known| known.state() == NodeState::Up && known.pid == *pid)
            })
        }
    }

    /// Waits until somebody listens: the store of a key-value service is open by then.
    async fn wait_listening(&self, address: &str) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while let Err(error) = tokio::net::TcpStream::connect(address).await {
            self.check_alive()?;
            if Instant::now() >= deadline {
                let message = format!("waited {} s for {address}: {error}", START_LIMIT.as_secs());
                return Err(Failure::new(Exit::Unreachable, message));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Fails if a child has died that was not killed on purpose.
    fn check_alive(&self) -> Result<()> {
        let mut expected = self.services.iter().filter(|service| !self.killed.contains(&service.spec.name));
        expected.try_for_each(|service| match service.state() {
            State::Down(how) => Err(service.start_failure(&how)),
            State::Running(_) => Ok(()),
        })
    }

    /// Waits until routing information is as it should be, a child dies, or the time is over.
    pub async fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut good: impl FnMut(&RoutingInfo) -> bool,
    ) -> Result<RoutingInfo> {
        let deadline = Instant::now() + limit;
        let quick = Duration::from_millis(500);
        let quick = self.mgmtd.with_options(CallOptions::within(quick, quick));
        let mut last = "mgmtd has not answered".to_owned();
        let mut known = 0;
        loop {
            self.check_alive()?;
            match quick.get_routing(known, Duration::from_millis(300)).await {
                Ok(reply) => {
                    if let Some(wire) = reply.routing {
                        let routing = RoutingInfo::try_from(wire)
                            .map_err(|error| Failure::failed(error.to_string()))?;
                        known = routing.version.0;
                        if good(&routing) {
                            return Ok(routing);
                        }
                        last = describe(&routing);
                    }
                }
                Err(failure) => {
                    last = failure.message;
                    sleep(LOOK).await;
                }
            }
            if Instant::now() >= deadline {
                let logs = self.directory.root().join("logs");
                let message = format!("waited {} s for {what}: {last}", limit.as_secs());
                return Err(Failure::new(Exit::Unreachable, message)
                    .hint(format!("the logs are in {}", logs.display())));
            }
        }
    }

    /// The services' names, process ids and addresses.
    pub fn services(&self) -> impl Iterator<Item = (&Spec, State)> {
        self.services.iter().map(|service| (&service.spec, service.state()))
    }

    /// Where a service answers.
    pub fn address(&self, spec: &Spec) -> String {
        let node = self.routing.nodes.values().find(|known| known.id == spec.node);
        let address =
            node.map(
                |node| if node.data_address.is_empty() { &node.control_address } else { &node.data_address },
            );
        match address {
            Some(address) => address.clone(),
            // No node (yet): a stand-by mgmtd, the key-value service.
            None => self.directory.address(&spec.name),
        }
    }

    /// Where a node's metrics are.
    pub fn metrics_address(&self, node: u32) -> String {
        self.directory.metrics_address(node)
    }

    /// Stops everything: storage and meta together, then mgmtd, which hears of their stop, then the store that they share.
    pub async fn stop(mut self) -> Directory {
        let step = progress::step("stopping");
        let (stores, others): (Vec<_>, Vec<_>) =
            self.services.drain(..).partition(|service| service.spec.kind == ServiceKind::Kv);
        let (managers, others): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|service| service.spec.kind == ServiceKind::Mgmtd);
        for group in [others, managers, stores] {
            group.iter().for_each(Service::begin_stop);
            for service in group {
                service.stop().await;
            }
        }
        step.finish_and_clear();
        self.directory
    }
}

fn every_chain_serves(routing: &RoutingInfo) -> bool {
    routing.newest_table(TABLE).is_some()
        && routing
            .chains
            .keys()
            .all(|chain| routing.targets_in(*chain, PublicState::Serving).next().is_some())
}

fn all_replicas_serve(routing: &RoutingInfo) -> bool {
    every_chain_serves(routing) && routing.targets.values().all(|target| target.state == PublicState::Serving)
}

/// A line that says what is missing.
fn describe(routing: &RoutingInfo) -> String {
    let up = routing.nodes.values().filter(|node| node.state() == NodeState::Up).count();
    let serving = routing.targets.values().filter(|target| target.state == PublicState::Serving).count();
    format!(
        "{up} of {} nodes are up, {serving} of {} targets serve",
        routing.nodes.len(),
        routing.targets.len()
    )
}
