//! Deliberately broken rules, each of which the simulator has to notice.

use catena_craq::mutant::{self, Mutant};

use crate::faults::Kind;
use crate::run::{Choice, Outcome, Work, run_chosen};

/// A broken rule and the runs that are to show it.
#[derive(Clone, Copy)]
pub struct Case {
    /// As `ci/sim --mutants` prints it.
    pub name: &'static str,
    breaks: Breaks,
    choice: Choice,
}

#[derive(Clone, Copy)]
enum Breaks {
    Replication(Mutant),
    Service(&'static str),
}

const CHAINS: &[Kind] = &[Kind::CrashStorage, Kind::PowerStorage, Kind::Late, Kind::Cut];
const POWER: &[Kind] = &[Kind::PowerAll, Kind::PowerStorage, Kind::CrashStorage];
const RESYNC: &[Kind] = &[Kind::CrashStorage, Kind::PowerStorage, Kind::EmptyDisk, Kind::Weather, Kind::Late];
const FENCES: &[Kind] =
    &[Kind::CutFromMgmtd, Kind::PauseStorage, Kind::PauseMgmtd, Kind::CrashMgmtd, Kind::Late];
const STORE: &[Kind] = &[Kind::Store, Kind::Meta, Kind::CrashMgmtd, Kind::PauseMgmtd];

fn chunks(name: &'static str, mutant: Mutant, kinds: &'static [Kind]) -> Case {
    let choice = Choice { work: Some(Work::Chunks), kinds: Some(kinds), case: None };
    Case { name, breaks: Breaks::Replication(mutant), choice }
}

fn service(name: &'static str, work: Work, kinds: &'static [Kind]) -> Case {
    Case {
        name,
        breaks: Breaks::Service(name),
        choice: Choice { work: Some(work), kinds: Some(kinds), case: None },
    }
}

/// All of them, by the numbers of the replication rules' list first.
pub fn all() -> Vec<Case> {
    use Mutant::*;
    vec![
        chunks("1 no downward notice", NoNotice, POWER),
        chunks("2 notice ignores the predecessor's", NoticeIgnoresPredecessor, POWER),
        chunks("3a new tail commits all staged", NewTailCommitsStaged, POWER),
        chunks("3b new tail commits all locally durable", NewTailCommitsDurable, POWER),
        chunks("4 D cleared on a chain version", WatermarkCleared, CHAINS),
        chunks("5 no need", NoNeed, RESYNC),
        chunks("7 query asks the last serving target", QueryLastServing, RESYNC),
        chunks("9 unsynced tail answers queries", UnsyncedTailAnswers, RESYNC),
        chunks("11 old messages accepted", OldMessagesAccepted, CHAINS),
        chunks("12 pendings kept at session start", PendingsKept, RESYNC),
        chunks("13 late base overwrites", LateBaseOverwrites, RESYNC),
        chunks("15 session without joined-at version", SessionWithoutJoinedAt, RESYNC),
        chunks("20 dirty read answered locally", DirtyReadLocal, CHAINS),
        chunks("21a retry of a pending answered at once", RetryAnsweredAtOnce, CHAINS),
        chunks("21b pendings not sent again", PendingsNotResent, CHAINS),
        chunks("22 gap filled silently", GapFilled, CHAINS),
        service("10 fenced target answers", Work::Chunks, FENCES),
        service("17 lease renewed for a returned target", Work::Chunks, FENCES),
        service("18b tags lost in resync", Work::Chunks, RESYNC),
        service("19a an empty lastsrv serves", Work::Chunks, POWER),
        service("engine: log records acknowledged before they are synced", Work::Chunks, POWER),
        service("engine: recovery stops before the last batch", Work::Chunks, POWER),
        service("engine: a partial write leaves zeros beside it", Work::Chunks, CHAINS),
        service("mgmtd: writes without looking at the lease record", Work::Chunks, FENCES),
        service("meta: outcomes are not remembered", Work::Names, STORE),
        service("meta: sessions of the dead are not reaped", Work::Files, STORE),
    ]
}

impl Case {
    /// One run of the broken code.
    pub fn run(&self, seed: u64) -> Outcome {
        match self.breaks {
            Breaks::Replication(mutant) => mutant::with(Some(mutant), || run_chosen(seed, self.choice)),
            Breaks::Service(name) => catena_rt::sim::with_broken(name, || run_chosen(seed, self.choice)),
        }
    }
}
