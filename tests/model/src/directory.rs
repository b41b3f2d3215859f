//! A few directories with a few names: a file is known by the permission bits that it was made with.

use std::collections::BTreeMap;

use catena_proto::status::Status;

use crate::linear::Model;

/// Where: a directory, or a name in it.
pub type Place = (u8, Option<u8>);

/// What is there: a directory, or the file with this mark.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A file.
    File(u32),
}

/// A call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Makes a directory.
    Mkdir(u8),
    /// Removes an empty one.
    Rmdir(u8),
    /// Makes a file that is not there.
    Create(Place, u32),
    /// Removes a file's name.
    Unlink(Place),
    /// Moves a file, over another one perhaps.
    Rename(Place, Place),
    /// Gives a file a second name.
    Link(Place, Place),
    /// Looks.
    Stat(Place),
    /// Lists a directory.
    List(u8),
}

/// What the caller was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// It is done.
    Done,
    /// That is there.
    Is(Entry),
    /// Those names.
    Names(Vec<u8>),
    /// It cannot be done.
    No(Status),
}

/// A call and its outcome; `None` if nobody was told.
pub type Op = (Ask, Option<Told>);

/// The specification.
pub struct Directories;

impl Model for Directories {
    type State = Vec<(Place, Entry)>;
    type Op = Op;

    fn initial(&self) -> Self::State {
        Vec::new()
    }

    fn step(&self, state: &Self::State, (ask, told): &Op) -> Option<Self::State> {
        let mut tree: BTreeMap<Place, Entry> = state.iter().copied().collect();
        let right = carry_out(&mut tree, ask);
        told.as_ref().is_none_or(|told| *told == right).then(|| tree.into_iter().collect())
    }
}

fn carry_out(tree: &mut BTreeMap<Place, Entry>, ask: &Ask) -> Told {
    let parent = |tree: &BTreeMap<Place, Entry>, place: &Place| tree.contains_key(&(place.0, None));
    let no = Told::No;
    match ask {
        Ask::Mkdir(dir) => {
            if tree.contains_key(&(*dir, None)) {
                return no(Status::Exists);
            }
            tree.insert((*dir, None), Entry::Directory);
            Told::Done
        }
        Ask::Rmdir(dir) => {
            if !tree.contains_key(&(*dir, None)) {
                return no(Status::NotFound);
            }
            if tree.keys().any(|(parent, name)| parent == dir && name.is_some()) {
                return no(Status::NotEmpty);
            }
            tree.remove(&(*dir, None));
            Told::Done
        }
        Ask::Create(place, mark) => {
            if !parent(tree, place) {
                return no(Status::NotFound);
            }
            if tree.contains_key(place) {
                return no(Status::Exists);
            }
            tree.insert(*place, Entry::File(*mark));
            Told::Done
        }
        Ask::Unlink(place) => match tree.remove(place) {
            Some(_) => Told::Done,
            None => no(Status::NotFound),
        },
        Ask::Rename(from, to) => {
            let Some(&entry) = tree.get(from) else { return no(Status::NotFound) };
            if !parent(tree, to) {
                return no(Status::NotFound);
            }
            // Two names of one file: nothing is done (rename(2)).
            if tree.get(to) != Some(&entry) {
                tree.remove(from);
                tree.insert(*to, entry);
            }
            Told::Done
        }
        Ask::Link(from, to) => {
            let Some(&entry) = tree.get(from) else { return no(Status::NotFound) };
            if !parent(tree, to) {
                return no(Status::NotFound);
            }
            if tree.contains_key(to) {
                return no(Status::Exists);
            }
            tree.insert(*to, entry);
            Told::Done
        }
        Ask::Stat(place) => tree.get(place).map_or(no(Status::NotFound), |entry| Told::Is(*entry)),
        Ask::List(dir) => {
            if !parent(tree, &(*dir, None)) {
                return no(Status::NotFound);
            }
            Told::Names(
                tree.keys().filter(|(parent, _)| parent == dir).filter_map(|(_, name)| *name).collect(),
            )
        }
    }
}
