//! A deterministic executor: one thread, one seed, virtual time.
//!
//! Every step takes one ready task, drawn by the seed, and polls it; a step takes a microsecond of virtual time. When nothing is ready
//! the clock jumps to the next alarm. Tasks belong to processes, which can be killed (their tasks are dropped where they are), paused
//! (their tasks wait, alarms ring meanwhile) and resumed. Nothing here looks at the real clock, so a seed gives one run.

mod alarm;
mod task;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::LazyLock;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(crate) use alarm::Alarm;
pub(crate) use task::{Join, Task};

use crate::process::Process;

/// Virtual time begins here in every run; only differences are ever seen.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What one step takes.
const STEP: Duration = Duration::from_micros(1);

thread_local! {
    static RUNNING: RefCell<Option<Owner>> = const { RefCell::new(None) };
}

thread_local! {
    static BROKEN: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// Runs `body` with one rule of the code broken: the one that [`crate::broken`] asks for by this name. For tests that must notice.
pub fn with_broken<T>(name: &'static str, body: impl FnOnce() -> T) -> T {
    struct Mend(Option<&'static str>);
    impl Drop for Mend {
        fn drop(&mut self) {
            BROKEN.set(self.0);
        }
    }
    let _mend = Mend(BROKEN.replace(Some(name)));
    body()
}

/// See [`crate::broken`].
pub(crate) fn is_broken(name: &str) -> bool {
    BROKEN.get() == Some(name)
}

/// Is told what happens: its name and what it is about.
pub type Witness = Arc<dyn Fn(&'static str, &[u64]) + Send + Sync>;

/// See [`crate::witness`].
pub(crate) fn witnessed(what: &'static str, about: impl FnOnce() -> Vec<u64>) {
    let witness = RUNNING.with_borrow(|owner| owner.as_ref()?.sim.witness.lock().clone());
    if let Some(witness) = witness {
        witness(what, &about());
    }
}

/// True within [`Sim::run`].
pub(crate) fn is_running() -> bool {
    RUNNING.with_borrow(Option::is_some)
}

pub(crate) fn now() -> Option<Instant> {
    RUNNING.with_borrow(|owner| owner.as_ref().map(|owner| *EPOCH + owner.sim.state.lock().now))
}

type ProcessId = u64;
/// The network and the test itself: never killed.
const WORLD: ProcessId = 0;

struct Life {
    name: String,
    paused: bool,
    tasks: BTreeMap<u64, Arc<Task>>,
    /// Ready tasks of a paused process.
    parked: Vec<Arc<Task>>,
}

struct State {
    now: Duration,
    random: u64,
    /// By number: the order in which tasks were woken does not count, because tokio's `watch` wakes in an order of its own.
    ready: BTreeMap<u64, Arc<Task>>,
    alarms: BTreeMap<(Duration, u64), Waker>,
    processes: BTreeMap<ProcessId, Life>,
    serial: u64,
    steps: u64,
    /// Everything that was decided, in one number.
    digest: u64,
    /// Every step, for finding where two runs part.
    trace: Option<Vec<(u64, u64, u64)>>,
}

impl State {
    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn note(&mut self, value: u64) {
        self.digest = (self.digest ^ value).wrapping_mul(0x100_0000_01b3).rotate_left(23);
    }

    fn make_ready(&mut self, task: Arc<Task>) {
        match self.processes.get_mut(&task.process) {
            Some(life) if life.paused => life.parked.push(task),
            Some(_) => drop(self.ready.insert(task.id, task)),
            None => {}
        }
    }

    fn ring(&mut self) -> Vec<Waker> {
        let later = self.alarms.split_off(&(self.now + Duration::from_nanos(1), 0));
        std::mem::replace(&mut self.alarms, later).into_values().collect()
    }
}

/// The shared part of a run.
pub(crate) struct Shared {
    state: Mutex<State>,
    witness: Mutex<Option<Witness>>,
}

/// A process within a run.
#[derive(Clone)]
pub(crate) struct Owner {
    pub sim: Arc<Shared>,
    pub id: ProcessId,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {}", self.id)
    }
}

impl Owner {
    pub fn current() -> Option<Owner> {
        RUNNING.with_borrow(Clone::clone)
    }

    pub fn world() -> Option<Owner> {
        RUNNING.with_borrow(|owner| owner.as_ref().map(|owner| Owner { sim: owner.sim.clone(), id: WORLD }))
    }

    pub fn spawn<F>(&self, future: F) -> Join<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let mut state = self.sim.state.lock();
        let id = state.serial();
        let (task, join) = task::make(self, id, future);
        match state.processes.get_mut(&self.id) {
            Some(life) => {
                life.tasks.insert(id, task.clone());
                state.make_ready(task);
                drop(state);
            }
            // The process is dead: what it still starts never runs.
            None => {
                drop(state);
                task.abort();
            }
        }
        join
    }

    /// Runs `work` as this process.
    fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Restore(Option<Owner>);
        impl Drop for Restore {
            fn drop(&mut self) {
                let before = self.0.take();
                RUNNING.with(|running| running.replace(before));
            }
        }
        let restore = Restore(RUNNING.with(|running| running.replace(Some(self.clone()))));
        let result = work();
        drop(restore);
        result
    }
}

/// Why a run did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Nothing is ready and no alarm is set.
    Nothing,
    /// More steps than allowed.
    Steps(u64),
    /// More virtual time than allowed.
    Time(Duration),
}

/// Bounds of a run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps.
    pub steps: u64,
    /// Virtual time.
    pub time: Duration,
}

/// A run of the simulator.
#[derive(Clone)]
pub struct Sim {
    shared: Arc<Shared>,
}

impl Sim {
    /// A run that has not begun; everything that chance decides follows from `seed`.
    pub fn new(seed: u64) -> Sim {
        let world = Life { name: "world".into(), paused: false, tasks: BTreeMap::new(), parked: Vec::new() };
        let state = State {
            now: Duration::from_secs(1),
            random: seed ^ 0x5eed,
            ready: BTreeMap::new(),
            alarms: BTreeMap::new(),
            processes: BTreeMap::from([(WORLD, world)]),
            serial: 0,
            steps: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            trace: None,
        };
        Sim { shared: Arc::new(Shared { state: Mutex::new(state), witness: Mutex::new(None) }) }
    }

    /// Who is told of what happens from now on; nobody unless somebody is named.
    pub fn set_witness(&self, witness: Option<Witness>) {
        *self.shared.witness.lock() = witness;
    }

    fn owner(&self, id: ProcessId) -> Owner {
        Owner { sim: self.shared.clone(), id }
    }

    /// Runs `main` and everything that it starts until `main` is done.
    ///
    /// # Errors
    /// If it cannot go on.
    pub fn run<T: Send + 'static>(
        &self,
        limits: Limits,
        main: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Stuck> {
        let world = self.owner(WORLD);
        let mut join = world.spawn(main);
        loop {
            if let Some(result) = join.take() {
                // `None` would be an aborted main, and nobody has its handle.
                return result.ok_or(Stuck::Nothing);
            }
            self.step(limits)?;
        }
    }

    fn step(&self, limits: Limits) -> Result<(), Stuck> {
        let task = {
            let mut state = self.shared.state.lock();
            if state.ready.is_empty() {
                let Some((&(at, _), _)) = state.alarms.first_key_value() else { return Err(Stuck::Nothing) };
                state.now = state.now.max(at);
            }
            state.now += STEP;
            let rung = state.ring();
            drop(state);
            rung.into_iter().for_each(Waker::wake);
            let mut state = self.shared.state.lock();
            state.steps += 1;
            if state.steps > limits.steps {
                return Err(Stuck::Steps(limits.steps));
            }
            if state.now > limits.time {
                return Err(Stuck::Time(limits.time));
            }
            if state.ready.is_empty() {
                return Ok(());
            }
            let draw = state.random();
            let at = (draw % state.ready.len() as u64) as usize;
            let Some(task) = state.ready.keys().nth(at).copied().and_then(|id| state.ready.remove(&id))
            else {
                return Ok(());
            };
            let now = state.now.as_nanos() as u64;
            if let Some(trace) = &mut state.trace {
                trace.push((now, task.process, task.id));
            }
            state.note(now ^ (task.id << 40) ^ task.process);
            task
        };
        self.owner(task.process).enter(|| task.run());
        Ok(())
    }

    /// A process that is about to start.
    pub fn process(&self, name: &str) -> SimProcess {
        let mut state = self.shared.state.lock();
        let id = state.serial();
        let life = Life { name: name.into(), paused: false, tasks: BTreeMap::new(), parked: Vec::new() };
        state.processes.insert(id, life);
        SimProcess { owner: self.owner(id) }
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        self.shared.state.lock().now
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.shared.state.lock().steps
    }

    /// A number that two runs share only if they took the same steps at the same times.
    pub fn digest(&self) -> u64 {
        self.shared.state.lock().digest
    }

    /// Keeps every step from now on: time in nanoseconds, process, task.
    pub fn keep_trace(&self) {
        self.shared.state.lock().trace = Some(Vec::new());
    }

    /// The steps that were kept.
    pub fn trace(&self) -> Vec<(u64, u64, u64)> {
        self.shared.state.lock().trace.take().unwrap_or_default()
    }

    /// Adds to the digest, so that what was computed counts too and not only when.
    pub fn note(&self, value: u64) {
        self.shared.state.lock().note(value);
    }

    /// Ends every process and drops everything, which breaks the cycles between tasks and this.
    pub fn end(&self) {
        loop {
            let owner = {
                let state = self.shared.state.lock();
                let Some((&id, _)) = state.processes.last_key_value() else { break };
                self.owner(id)
            };
            owner.enter(|| SimProcess { owner: owner.clone() }.kill());
        }
        let (alarms, ready) = {
            let mut state = self.shared.state.lock();
            (std::mem::take(&mut state.alarms), std::mem::take(&mut state.ready))
        };
        drop((alarms, ready));
    }
}

/// A simulated process.
#[derive(Clone, Debug)]
pub struct SimProcess {
    owner: Owner,
}

impl SimProcess {
    /// For what is to run in it.
    pub fn handle(&self) -> Process {
        Process { sim: Some(self.owner.clone()) }
    }

    /// Its tasks are dropped where they are, and it never starts another.
    pub fn kill(&self) {
        let life = self.owner.sim.state.lock().processes.remove(&self.owner.id);
        let Some(life) = life else { return };
        self.owner.enter(|| life.tasks.values().for_each(|task| task.abort()));
        drop(life.parked);
    }

    /// It has not been killed.
    pub fn is_alive(&self) -> bool {
        self.owner.sim.state.lock().processes.contains_key(&self.owner.id)
    }

    /// Its tasks stop where they are.
    pub fn pause(&self) {
        let mut state = self.owner.sim.state.lock();
        let id = self.owner.id;
        let Some(life) = state.processes.get_mut(&id) else { return };
        life.paused = true;
        let (mine, others): (BTreeMap<_, _>, _) =
            std::mem::take(&mut state.ready).into_iter().partition(|(_, task)| task.process == id);
        state.ready = others;
        let mut mine: Vec<Arc<Task>> = mine.into_values().collect();
        if let Some(life) = state.processes.get_mut(&id) {
            life.parked.append(&mut mine);
        }
    }

    /// They go on.
    pub fn resume(&self) {
        let mut state = self.owner.sim.state.lock();
        let Some(life) = state.processes.get_mut(&self.owner.id) else { return };
        life.paused = false;
        let parked = std::mem::take(&mut life.parked);
        state.ready.extend(parked.into_iter().map(|task| (task.id, task)));
    }

    /// As it was named.
    pub fn name(&self) -> String {
        let state = self.owner.sim.state.lock();
        state.processes.get(&self.owner.id).map_or_else(String::new, |life| life.name.clone())
    }
}
