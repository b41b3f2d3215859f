//! Callers of the namespace: a few directories, a few names, many hands. What they ask is drawn; what they were told is recorded.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use catena_client::{Catena, FileType, RenameMode};
use catena_proto::status::Status;
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;

use crate::directory::{Ask, Directories, Entry, Op, Place, Told};
use crate::linear::{self, Call};

const DIRECTORIES: u8 = 2;
const NAMES: u8 = 3;

/// Calls of all clients, below one directory that nobody else uses.
#[derive(Default)]
pub struct History {
    /// The directory: empty for the root, else without a slash at its end.
    pub base: String,
    /// In the order in which they began.
    pub calls: Mutex<Vec<Call<Op>>>,
    marks: AtomicU32,
    /// Errors that a client was told although the call should have succeeded in the end.
    pub errors: Mutex<Vec<String>>,
}

impl History {
    /// Nothing yet, below `base`.
    pub fn below(base: String) -> History {
        History { base, ..History::default() }
    }

    /// Draws a call, makes it, and records it with what was told. `now` is one clock for all callers.
    pub async fn one(&self, catena: &Catena, rng: &mut StdRng, now: impl Fn() -> u64) {
        let ask = draw(rng, &self.marks);
        let at = {
            let mut calls = self.calls.lock();
            calls.push(Call { begun: now(), ended: None, op: (ask.clone(), None) });
            calls.len() - 1
        };
        let told = match carry_out(catena, &self.base, &ask).await {
            Ok(told) => Some(told),
            Err(error) if is_an_answer(error.status()) => Some(Told::No(error.status())),
            Err(error) => {
                self.errors.lock().push(format!("{ask:?}: {error}"));
                None
            }
        };
        if told.is_some() {
            let call = &mut self.calls.lock()[at];
            call.ended = Some(now());
            call.op.1 = told;
        }
    }

    /// What is wrong with all that was told, if no order of the calls explains it.
    pub fn contradiction(&self) -> Option<String> {
        linear::explain(&Directories, "the namespace", &self.calls.lock())
    }
}

fn path(base: &str, (directory, name): Place) -> String {
    match name {
        None => format!("{base}/d{directory}"),
        Some(name) => format!("{base}/d{directory}/n{name}"),
    }
}

fn draw(rng: &mut StdRng, marks: &AtomicU32) -> Ask {
    let directory = |rng: &mut StdRng| rng.random_range(0..DIRECTORIES);
    let place = |rng: &mut StdRng| (rng.random_range(0..DIRECTORIES), Some(rng.random_range(0..NAMES)));
    match rng.random_range(0..16) {
        0..2 => Ask::Mkdir(directory(rng)),
        2 => Ask::Rmdir(directory(rng)),
        3..7 => Ask::Create(place(rng), marks.fetch_add(1, Relaxed) % 0o777 + 1),
        7 => Ask::Unlink(place(rng)),
        8..11 => Ask::Rename(place(rng), place(rng)),
        11 => Ask::Link(place(rng), place(rng)),
        12..14 => Ask::Stat(place(rng)),
        _ => Ask::List(directory(rng)),
    }
}

async fn carry_out(catena: &Catena, base: &str, ask: &Ask) -> Result<Told, catena_client::Error> {
    let done = |_| Told::Done;
    let path = |place: Place| path(base, place);
    match ask {
        Ask::Mkdir(directory) => catena.mkdir(path((*directory, None)), 0o777).await.map(done),
        Ask::Rmdir(directory) => catena.remove_dir(path((*directory, None))).await.map(|()| Told::Done),
        Ask::Create(place, mark) => catena.mknod(path(*place), FileType::File, *mark, 0).await.map(done),
        Ask::Unlink(place) => catena.remove(path(*place)).await.map(|()| Told::Done),
        Ask::Rename(from, to) => catena.rename(path(*from), path(*to), RenameMode::Replace).await.map(done),
        Ask::Link(from, to) => catena.link(path(*from), path(*to)).await.map(done),
        Ask::Stat(place) => catena.stat(path(*place)).await.map(|stat| {
            Told::Is(if stat.kind == FileType::Directory { Entry::Directory } else { Entry::File(stat.mode) })
        }),
        Ask::List(directory) => {
            let mut listing = catena.read_dir(path((*directory, None)), false);
            let mut names = Vec::new();
            while let Some(entry) = listing.next().await? {
                names.extend(entry.name.last().map(|digit| digit - b'0'));
            }
            names.sort_unstable();
            Ok(Told::Names(names))
        }
    }
}

/// What a call may be refused with for good.
fn is_an_answer(status: Status) -> bool {
    matches!(
        status,
        Status::NotFound | Status::Exists | Status::NotEmpty | Status::NotDirectory | Status::IsDirectory
    )
}
