//! Deliberately broken rules, each of which the simulator has to notice.

use catena_craq::mutant::{self, Mutant};

use crate::cases::Case as Story;
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
const OLD: &[Kind] =
    &[Kind::Weather, Kind::CutFromMgmtd, Kind::CrashStorage, Kind::PowerStorage, Kind::PauseStorage];
const PRIMARIES: &[Kind] = &[
    Kind::PauseMgmtd,
    Kind::PauseMgmtd,
    Kind::Store,
    Kind::CrashStorage,
    Kind::CrashStorage,
    Kind::PowerStorage,
];
const STORE: &[Kind] = &[Kind::Store, Kind::Meta, Kind::CrashMgmtd, Kind::PauseMgmtd];

/// Under these kinds of fault, or in this story, with a reader at every replica.
fn biased(work: Work, kinds: Option<&'static [Kind]>, case: Option<Story>) -> Choice {
    Choice { work: Some(work), kinds, case, watchers: true }
}

fn chunks(name: &'static str, mutant: Mutant, kinds: &'static [Kind]) -> Case {
    let choice = biased(Work::Chunks, Some(kinds), None);
    Case { name, breaks: Breaks::Replication(mutant), choice }
}

fn story(name: &'static str, mutant: Mutant, story: Story) -> Case {
    let choice = biased(Work::Chunks, None, Some(story));
    Case { name, breaks: Breaks::Replication(mutant), choice }
}

/// A switch's name is what the table calls it.
fn service(name: &'static str, work: Work, kinds: &'static [Kind]) -> Case {
    Case { name, breaks: Breaks::Service(name), choice: biased(work, Some(kinds), None) }
}

fn service_in(name: &'static str, story: Story) -> Case {
    Case { name, breaks: Breaks::Service(name), choice: biased(Work::Chunks, None, Some(story)) }
}

/// All of them, by the numbers of the replication rules' list first.
pub fn all() -> Vec<Case> {
    use Mutant::*;
    vec![
        chunks("1 no downward notice", NoNotice, POWER),
        chunks("2 notice ignores the predecessor's", NoticeIgnoresPredecessor, POWER),
        chunks("3a new tail commits all staged", NewTailCommitsStaged, POWER),
        chunks("3b new tail commits all locally durable", NewTailCommitsDurable, POWER),
        story("4 D cleared on a chain version", WatermarkCleared, Story::TailCommitsThenDies),
        chunks("5 no need", NoNeed, RESYNC),
        chunks("6 last serving replica commits early", LastServingCommits, RESYNC),
        chunks("7 query asks the last serving target", QueryLastServing, RESYNC),
        story("8 query without chain version", QueryWithoutVersion, Story::HeadCutOff),
        chunks("9 unsynced tail answers queries", UnsyncedTailAnswers, RESYNC),
        service("10 fenced target answers", Work::Chunks, FENCES),
        chunks("11 old messages accepted", OldMessagesAccepted, OLD),
        chunks("12 pendings kept at session start", PendingsKept, RESYNC),
        story("13 late base overwrites", LateBaseOverwrites, Story::CutsDuringResync),
        chunks("14 replace committed at once", ReplaceCommitted, RESYNC),
        service("15 up-to-date counts in any session", Work::Chunks, FENCES),
        service("16 a restart goes on in the same chain version", Work::Chunks, CHAINS),
        service("17 lease renewed for a returned target", Work::Chunks, FENCES),
        service("18a only a chunk's last tag is kept", Work::Chunks, RESYNC),
        service_in("18b tags lost in resync", Story::RetriesMeetOthers),
        service_in("18c a tag outlives its dropped pending", Story::RetriesMeetOthers),
        service_in("19a an empty lastsrv serves", Story::LastServingLost),
        service("19b a sole replica discards its pendings", Work::Chunks, POWER),
        chunks("20 dirty read answered locally", DirtyReadLocal, CHAINS),
        chunks("21a retry of a pending answered at once", RetryAnsweredAtOnce, CHAINS),
        story("21b pendings not sent again", PendingsNotResent, Story::PredecessorIsLate),
        chunks("22 gap filled silently", GapFilled, CHAINS),
        service("engine: log records acknowledged before they are synced", Work::Chunks, POWER),
        service("engine: recovery stops before the last batch", Work::Chunks, POWER),
        service("engine: a partial write leaves zeros beside it", Work::Chunks, CHAINS),
        service(
            "storage: a target answers after it has reported an outage",
            Work::Chunks,
            &[Kind::DiskError],
        ),
        service("mgmtd: writes without looking at the lease record", Work::Chunks, PRIMARIES),
        service("meta: outcomes are not remembered", Work::Names, STORE),
        service("meta: sessions of the dead are not reaped", Work::Files, STORE),
    ]
}

impl Case {
    /// The same run with every rule in force: what it shows, the broken rule has nothing to do with.
    pub fn control(&self, seed: u64) -> Outcome {
        run_chosen(seed, self.choice)
    }

    /// One run of the broken code.
    pub fn run(&self, seed: u64) -> Outcome {
        match self.breaks {
            Breaks::Replication(mutant) => mutant::with(Some(mutant), || run_chosen(seed, self.choice)),
            Breaks::Service(name) => catena_rt::sim::with_broken(name, || run_chosen(seed, self.choice)),
        }
    }
}
