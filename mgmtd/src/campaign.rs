//! The election's I/O: does what [`Election`] says, when it says so, and begins and ends terms accordingly. No decisions of its own.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use catena_kv::{KvError, KvFailure};
use catena_proto::ids::NodeId;
use catena_rt::time::sleep;
use tracing::{info, warn};

use crate::cluster::Cluster;
use crate::election::{Action, Candidate, Election};
use crate::number::{Claim, Number};
use crate::record::{LeaseRecord, MemberRecord};
use crate::reign::{Over, Reign, Until};
use crate::service::Service;
use crate::sessions::Sessions;
use crate::store::{Loaded, Look, Outcome, StoreError, Verdict};

/// Longest that one transaction of the election may take; less with short leases.
const PATIENCE: Duration = Duration::from_secs(2);

/// One mgmtd's part in the election.
pub struct Campaign {
    own: MemberRecord,
    lease: Duration,
    election: Election,
    number: Number,
    /// The store did not answer last time; said once.
    failing: bool,
}

impl Campaign {
    /// Of a mgmtd that has just started.
    pub fn new(own: Candidate, member: MemberRecord) -> Campaign {
        Campaign {
            number: Number::new(member.clone(), own.lease, own.exclusive),
            own: member,
            lease: own.lease,
            election: Election::new(own),
            failing: false,
        }
    }

    /// The first steps, as far as there is nothing to wait for. A store that does not answer yet is no failure.
    pub async fn open(&mut self, service: &Service) -> Result<(), StoreError> {
        for _ in 0..3 {
            match self.step(service).await {
                Ok(()) => {}
                Err(error) if error.verdict() == Verdict::Fatal => return Err(error),
                Err(error) => {
                    self.complain(&error);
                    return Ok(());
                }
            }
            let now = service.clock.monotonic();
            let (at, action) = self.election.next(now);
            if !matches!(action, Action::Take { .. }) || at > now {
                break;
            }
        }
        Ok(())
    }

    /// Everything else. Ends when the service has failed.
    pub async fn run(&mut self, service: &Service) {
        loop {
            let outcome = match service.reign() {
                Some(reign) => self.hold(service, &reign).await,
                None => {
                    let now = service.clock.monotonic();
                    let (at, _) = self.election.next(now);
                    if now < at {
                        // A runtime whose time runs faster than the clock comes back too early, and sleeps again.
                        sleep(at.since(now).max(Duration::from_millis(1))).await;
                        continue;
                    }
                    self.step(service).await
                }
            };
            match outcome {
                Ok(()) => {}
                Err(error) if error.verdict() == Verdict::Fatal => return service.fail(error.to_string()),
                Err(error) => self.complain(&error),
            }
        }
    }

    /// What is due for one who is not primary: a look at the record, or the attempt to take it.
    async fn step(&mut self, service: &Service) -> Result<(), StoreError> {
        let action = self.election.next(service.clock.monotonic()).1;
        let takes = matches!(action, Action::Take { .. });
        let outcome = match action {
            Action::Look => self.look(service).await,
            Action::Take { watched, record } => self.take(service, watched, record).await,
            Action::Renew { .. } | Action::StepDown => {
                self.election.lapsed();
                Ok(())
            }
        };
        match &outcome {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    info!("the mgmtd store answers again");
                }
            }
            // Looking writes too (the own number), but not the lease.
            Err(error) => self.election.failed(service.clock.monotonic(), takes && is_unknown(error)),
        }
        outcome
    }

    async fn look(&mut self, service: &Service) -> Result<(), StoreError> {
        let look = attend(&mut self.number, service, self.lease).await?;
        self.election.saw(service.clock.monotonic(), look.lease.clone());
        service.stand_by(look.lease);
        Ok(())
    }

    async fn take(
        &mut self,
        service: &Service,
        watched: Option<LeaseRecord>,
        record: LeaseRecord,
    ) -> Result<(), StoreError> {
        let sent = service.clock.monotonic();
        if let Outcome::Instead(found) = service.store.take(&watched, &record, patience(self.lease)).await? {
            self.election.saw(service.clock.monotonic(), found.clone());
            service.stand_by(found);
            return Ok(());
        }
        self.election.took(sent, record.clone());
        self.crown(service, watched, record).await
    }

    /// Loads what is in the store, and answers from then on.
    async fn crown(
        &mut self,
        service: &Service,
        before: Option<LeaseRecord>,
        record: LeaseRecord,
    ) -> Result<(), StoreError> {
        service.stand_by(None);
        let until = Arc::new(Until::default());
        until.raise(self.election.valid_until().unwrap_or_default());
        let own = self.own.clone();
        let begin = async {
            let loaded = load(service, self.lease).await?;
            let reign = begin(service, loaded, before.as_ref(), record.clone(), until.clone());
            let members = service.store.members(patience(self.lease)).await?;
            // What cannot be shown now is shown with the next roll call.
            if let Err(failure) = reign.roll_call(own, members).await {
                warn!(%failure, "the list of mgmtd is not up to date");
            }
            Ok::<_, StoreError>(reign)
        };
        let begun = lead(&mut self.election, service, self.lease, &until, begin).await?;
        let Some(begun) = begun else {
            service.stand_by(None);
            return Ok(());
        };
        let reign = begun?;
        let waited_for = before.as_ref().filter(|lease| !lease.released);
        info!(
            term = record.term,
            routing = reign.routing_version().0,
            lease = ?self.lease,
            replaced = waited_for.map_or_else(|| "nobody".into(), |lease| format!("n{} at {}", lease.holder, lease.address)),
            "this mgmtd is primary"
        );
        service.crown(reign);
        Ok(())
    }

    /// Is primary, until it is no longer.
    async fn hold(&mut self, service: &Service, reign: &Arc<Reign>) -> Result<(), StoreError> {
        let (lease, own) = (self.lease, self.own.clone());
        let number = &mut self.number;
        let term = async {
            tokio::select! {
                biased;
                over = reign.over() => Ok(over),
                error = roll(number, service, reign, own, lease) => Err(error),
                () = reign.watch_leases() => unreachable!("without end"),
            }
        };
        match lead(&mut self.election, service, lease, reign.until(), term).await? {
            None | Some(Ok(Over::Ended)) => {}
            Some(Ok(Over::Anew(reason))) => {
                warn!(reason, term = reign.term(), "no longer primary; standing by");
                self.election.lapsed();
            }
            Some(Ok(Over::Failed(reason))) => {
                service.fail(reason);
                return Ok(());
            }
            Some(Err(error)) => return Err(error),
        }
        service.stand_by(self.election.watched().cloned());
        Ok(())
    }

    fn complain(&mut self, error: &StoreError) {
        if !std::mem::replace(&mut self.failing, true) {
            warn!(%error, "the mgmtd store does not answer; this mgmtd stands by and tries on");
        }
    }
}

/// Renews the lease while `work` goes on; gives what comes of it, or nothing if the role was lost first.
async fn lead<T>(
    election: &mut Election,
    service: &Service,
    lease: Duration,
    until: &Until,
    work: impl Future<Output = T>,
) -> Result<Option<T>, StoreError> {
    let mut work = pin!(work);
    let mut failed = None;
    loop {
        let now = service.clock.monotonic();
        let (at, action) = election.next(now);
        if now < at {
            tokio::select! {
                biased;
                done = &mut work => return Ok(Some(done)),
                () = sleep(at.since(now).max(Duration::from_millis(1))) => continue,
            }
        }
        let Action::Renew { record } = action else {
            let why = failed
                .take()
                .map_or_else(|| "this process was paused".into(), |error: StoreError| error.to_string());
            warn!(why, "no longer primary: the lease was not renewed in time; standing by");
            election.lapsed();
            return Ok(None);
        };
        let left = election.valid_until().unwrap_or_default().since(now);
        let renewed = tokio::select! {
            biased;
            done = &mut work => return Ok(Some(done)),
            renewed = service.store.renew(&record, patience(lease).min(left)) => renewed,
        };
        match renewed {
            Ok(Outcome::Done) => {
                // Counted from before the renewal was sent: nobody takes over earlier than T after that.
                election.renewed(now, record);
                until.raise(election.valid_until().unwrap_or_default());
                failed = None;
            }
            Ok(Outcome::Instead(found)) => {
                let by = found.clone().unwrap_or_default();
                warn!(
                    primary = by.holder,
                    address = by.address,
                    term = by.term,
                    "no longer primary: another mgmtd has taken over"
                );
                election.saw(service.clock.monotonic(), found);
                return Ok(None);
            }
            Err(error) if error.verdict() == Verdict::Fatal => return Err(error),
            Err(error) => {
                if failed.is_none() {
                    warn!(%error, "the lease was not renewed; trying on");
                }
                failed = Some(error);
                election.failed(service.clock.monotonic(), false);
            }
        }
    }
}

/// Says that this mgmtd runs, and reads who is primary.
async fn attend(number: &mut Number, service: &Service, lease: Duration) -> Result<Look, StoreError> {
    let look = service.store.look(number.node(), patience(lease)).await?;
    match number.judge(service.clock.monotonic(), look.member.as_ref(), look.node.as_ref()) {
        Claim::Write(record) => {
            if service.store.enlist(&look.member, &record, patience(lease)).await? {
                number.claimed();
            }
        }
        Claim::Wait => {}
        Claim::Refused(why) => return Err(StoreError::Number(why)),
    }
    Ok(look)
}

/// The primary's list of those who run, every T/4. Ends only with an error that does not pass.
async fn roll(
    number: &mut Number,
    service: &Service,
    reign: &Arc<Reign>,
    own: MemberRecord,
    lease: Duration,
) -> StoreError {
    loop {
        sleep(lease / 4).await;
        let members = async {
            attend(number, service, lease).await?;
            service.store.members(patience(lease)).await
        };
        match members.await {
            Ok(members) => {
                if let Err(failure) = reign.roll_call(own.clone(), members).await {
                    warn!(%failure, "the list of mgmtd is not up to date");
                }
            }
            Err(error) if error.verdict() == Verdict::Fatal => return error,
            Err(error) => warn!(%error, "the list of mgmtd could not be read"),
        }
    }
}

async fn load(service: &Service, lease: Duration) -> Result<Loaded, StoreError> {
    loop {
        match service.store.load().await {
            Err(error) if error.verdict() == Verdict::Passing => {
                warn!(%error, "the cluster's state could not be loaded; trying on");
                sleep(lease / 16).await;
            }
            outcome => return outcome,
        }
    }
}

/// A term over what was loaded. Everyone gets a full lease, by the longer one of this mgmtd's and its predecessor's lease times.
fn begin(
    service: &Service,
    mut loaded: Loaded,
    before: Option<&LeaseRecord>,
    record: LeaseRecord,
    until: Arc<Until>,
) -> Arc<Reign> {
    let now = service.clock.monotonic();
    let millis = |read: fn(&LeaseRecord) -> u64| Duration::from_millis(before.map_or(0, read));
    let own = &service.own;
    let promised = own.client_lease.max(millis(|lease| lease.client_lease_ms));
    let sessions = std::mem::take(&mut loaded.sessions);
    let sessions = Sessions::new(sessions, own.client_lease, now + (promised - own.client_lease));
    let promised = own.lease.max(millis(|lease| lease.lease_ms));
    let cluster = Cluster::new(loaded, NodeId(own.node), own.lease, now + promised);
    let store = service.store.fenced(record);
    let (clock, metrics) = (service.clock.clone(), service.metrics.clone());
    Reign::new(clock, metrics, store, own.address.clone(), until, (cluster, sessions))
}

fn is_unknown(error: &StoreError) -> bool {
    error.kv().is_some_and(KvError::maybe_committed)
}

/// How long one transaction may take: short enough that several are tried before the lease runs out.
fn patience(lease: Duration) -> Duration {
    PATIENCE.min(lease / 8)
}
