//! The namespace as a reference: a plain tree in memory, written for clarity, against which the service is checked call by call.

use std::collections::BTreeMap;

use bytes::Bytes;
use catena_proto::meta_call::{Reply, Request};
use catena_proto::pb;
use catena_proto::pb::FileType;
use catena_proto::status::Status;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{World, at};

/// A user with one group.
pub type Who = (u32, u32);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Mkdir(String, u32),
    Create(String, u32, bool),
    Symlink(String, String),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    RemoveAll(String),
    Rename(String, String, pb::RenameMode),
    Chmod(String, u32),
    Chown(String, u32, u32),
    Stat(String, bool),
    List(String),
}

/// What a call returned, as far as it can be foretold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Node { kind: FileType, mode: u32, uid: u32, gid: u32, nlink: u32 },
    Names(Vec<String>),
    Refused(Status),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Node {
    kind: i32,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    parent: u64,
    entries: BTreeMap<String, u64>,
    target: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Model {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

const ROOT: u64 = 1;
type Tried<T> = Result<T, Status>;

/// Where a path leads: to a name in a directory, or to a node without one (`.`, `..`, the root).
enum Place {
    Slot { dir: u64, name: String, node: Option<u64> },
    Node(u64),
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Keep,
    Follow,
}

impl Default for Model {
    fn default() -> Model {
        let root = Node { nlink: 1, parent: ROOT, ..node(FileType::Directory, 0o755, (0, 0)) };
        Model { nodes: [(ROOT, root)].into(), next: 2 }
    }
}

fn node(kind: FileType, mode: u32, (uid, gid): Who) -> Node {
    Node {
        kind: kind as i32,
        mode,
        uid,
        gid,
        nlink: 1,
        parent: 0,
        entries: BTreeMap::new(),
        target: String::new(),
    }
}

impl Node {
    fn is_dir(&self) -> bool {
        self.kind == FileType::Directory as i32
    }
    fn is_link(&self) -> bool {
        self.kind == FileType::Symlink as i32
    }
}

impl Model {
    /// Carries out a call.
    pub fn apply(&mut self, who: Who, op: &Op) -> Answer {
        let before = self.clone();
        match self.try_apply(who, op) {
            Ok(answer) => answer,
            Err(status) => {
                *self = before;
                Answer::Refused(status)
            }
        }
    }

    /// The whole tree as text, for comparing.
    pub fn tree(&self) -> BTreeMap<String, Answer> {
        let mut out = BTreeMap::new();
        self.collect(ROOT, "", &mut out);
        out
    }

    fn collect(&self, id: u64, path: &str, out: &mut BTreeMap<String, Answer>) {
        out.insert(if path.is_empty() { "/".into() } else { path.to_owned() }, self.answer(id));
        for (name, &child) in &self.nodes[&id].entries {
            self.collect(child, &format!("{path}/{name}"), out);
        }
    }

    fn answer(&self, id: u64) -> Answer {
        let node = &self.nodes[&id];
        let children = node.entries.values().filter(|child| self.nodes[child].is_dir()).count() as u32;
        Answer::Node {
            kind: FileType::try_from(node.kind).expect("a type"),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            nlink: if node.is_dir() { 2 + children } else { node.nlink },
        }
    }

    fn may(&self, (uid, gid): Who, id: u64, want: u32) -> Tried<()> {
        let node = &self.nodes[&id];
        let granted = match (uid, node.uid == uid, node.gid == gid) {
            (0, _, _) => 7,
            (_, true, _) => node.mode >> 6,
            (_, _, true) => node.mode >> 3,
            _ => node.mode,
        };
        if granted & want == want { Ok(()) } else { Err(Status::AccessDenied) }
    }

    fn owns(&self, (uid, _): Who, id: u64) -> bool {
        uid == 0 || self.nodes[&id].uid == uid
    }

    fn may_unlink(&self, who: Who, dir: u64, id: u64) -> Tried<()> {
        self.may(who, dir, 3)?;
        let sticky = self.nodes[&dir].mode & 0o1000 != 0;
        if sticky && !self.owns(who, dir) && !self.owns(who, id) { Err(Status::NotPermitted) } else { Ok(()) }
    }

    fn walk(&self, who: Who, from: u64, path: &str, end: End, links: &mut u32) -> Tried<Place> {
        let mut here = if path.starts_with('/') { ROOT } else { from };
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        for (nth, part) in parts.iter().enumerate() {
            let last = nth + 1 == parts.len();
            let dir = &self.nodes[&here];
            if !dir.is_dir() {
                return Err(Status::NotDirectory);
            }
            self.may(who, here, 1)?;
            if *part == "." || *part == ".." {
                here = if *part == "." { here } else { dir.parent };
                continue;
            }
            let found = dir.entries.get(*part).copied();
            let link = found.filter(|id| self.nodes[id].is_link() && !(last && end == End::Keep));
            if let Some(link) = link {
                *links += 1;
                if *links > 40 {
                    return Err(Status::Loop);
                }
                let target = self.nodes[&link].target.clone();
                let end = if last { end } else { End::Follow };
                match self.walk(who, here, &target, end, links)? {
                    place if last => return Ok(place),
                    Place::Node(id) => here = id,
                    Place::Slot { node, .. } => here = node.ok_or(Status::NotFound)?,
                }
                continue;
            }
            if last {
                return Ok(Place::Slot { dir: here, name: (*part).to_owned(), node: found });
            }
            here = found.ok_or(Status::NotFound)?;
        }
        Ok(Place::Node(here))
    }

    fn find(&self, who: Who, path: &str, end: End) -> Tried<u64> {
        match self.walk(who, ROOT, path, end, &mut 0)? {
            Place::Node(id) => Ok(id),
            Place::Slot { node, .. } => node.ok_or(Status::NotFound),
        }
    }

    fn slot(&self, who: Who, path: &str) -> Tried<(u64, String, Option<u64>)> {
        match self.walk(who, ROOT, path, End::Keep, &mut 0)? {
            Place::Slot { dir, name, node } => Ok((dir, name, node)),
            Place::Node(_) => Err(Status::Invalid),
        }
    }

    fn free(&self, who: Who, path: &str) -> Tried<(u64, String)> {
        match self.walk(who, ROOT, path, End::Keep, &mut 0)? {
            Place::Slot { dir, name, node: None } => self.may(who, dir, 3).map(|()| (dir, name)),
            _ => Err(Status::Exists),
        }
    }

    fn make(&mut self, (uid, gid): Who, dir: u64, name: String, mut new: Node) -> Answer {
        let parent = &self.nodes[&dir];
        new.uid = uid;
        new.gid = gid;
        if parent.mode & 0o2000 != 0 {
            new.gid = parent.gid;
            new.mode |= if new.is_dir() { 0o2000 } else { 0 };
        }
        if !new.is_dir() && new.mode & 0o2010 == 0o2010 && uid != 0 && new.gid != gid {
            new.mode &= !0o2000;
        }
        new.parent = if new.is_dir() { dir } else { 0 };
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, new);
        self.nodes.get_mut(&dir).expect("a directory").entries.insert(name, id);
        self.answer(id)
    }

    /// Takes a name away, and what is left without one.
    fn drop_name(&mut self, dir: u64, name: &str) {
        let id = self.nodes.get_mut(&dir).expect("a directory").entries.remove(name).expect("a name");
        let node = self.nodes.get_mut(&id).expect("a node");
        node.nlink -= 1;
        if node.nlink == 0 {
            let gone = self.nodes.remove(&id).expect("a node");
            let mut below = gone;
            while let Some(name) = below.entries.keys().next().cloned() {
                let child = below.entries.remove(&name).expect("a name");
                let one = BTreeMap::from([(name.clone(), child)]);
                self.nodes.insert(0, Node { entries: one, ..below.clone() });
                self.drop_name(0, &name);
                self.nodes.remove(&0);
            }
        }
    }

    fn below(&self, mut id: u64, above: u64) -> bool {
        loop {
            match id {
                _ if id == above => return true,
                ROOT => return false,
                _ => id = self.nodes[&id].parent,
            }
        }
    }

    fn try_apply(&mut self, who: Who, op: &Op) -> Tried<Answer> {
        match op {
            Op::Stat(path, follow) => {
                let end = if *follow { End::Follow } else { End::Keep };
                Ok(self.answer(self.find(who, path, end)?))
            }
            Op::List(path) => {
                let id = self.find(who, path, End::Follow)?;
                if !self.nodes[&id].is_dir() {
                    return Err(Status::NotDirectory);
                }
                self.may(who, id, 4)?;
                Ok(Answer::Names(self.nodes[&id].entries.keys().cloned().collect()))
            }
            Op::Mkdir(path, mode) => {
                let (dir, name) = self.free(who, path)?;
                Ok(self.make(who, dir, name, node(FileType::Directory, *mode, who)))
            }
            Op::Symlink(path, target) => {
                let (dir, name) = self.free(who, path)?;
                let new = Node { target: target.clone(), ..node(FileType::Symlink, 0o777, who) };
                Ok(self.make(who, dir, name, new))
            }
            Op::Create(path, mode, exclusive) => {
                let end = if *exclusive { End::Keep } else { End::Follow };
                match self.walk(who, ROOT, path, end, &mut 0)? {
                    Place::Slot { dir, name, node: None } => {
                        self.may(who, dir, 3)?;
                        Ok(self.make(who, dir, name, node(FileType::File, *mode, who)))
                    }
                    _ if *exclusive => Err(Status::Exists),
                    Place::Slot { node: Some(id), .. } | Place::Node(id) => {
                        if self.nodes[&id].is_dir() {
                            return Err(Status::IsDirectory);
                        }
                        self.may(who, id, 4)?;
                        Ok(self.answer(id))
                    }
                }
            }
            Op::Link(from, to) => {
                let id = self.find(who, from, End::Keep)?;
                let (dir, name) = self.free(who, to)?;
                if self.nodes[&id].is_dir() {
                    return Err(Status::NotPermitted);
                }
                self.nodes.get_mut(&id).expect("a node").nlink += 1;
                self.nodes.get_mut(&dir).expect("a directory").entries.insert(name, id);
                Ok(self.answer(id))
            }
            Op::Unlink(path) | Op::Rmdir(path) | Op::RemoveAll(path) => {
                let (dir, name, id) = match self.walk(who, ROOT, path, End::Keep, &mut 0)? {
                    Place::Slot { dir, name, node } => (dir, name, node.ok_or(Status::NotFound)?),
                    Place::Node(_) if matches!(op, Op::Unlink(_)) => return Err(Status::IsDirectory),
                    Place::Node(_) if path.ends_with("..") => return Err(Status::NotEmpty),
                    Place::Node(_) => return Err(Status::Invalid),
                };
                self.may_unlink(who, dir, id)?;
                match (op, self.nodes[&id].is_dir()) {
                    (Op::Unlink(_), true) => return Err(Status::IsDirectory),
                    (Op::Rmdir(_), false) => return Err(Status::NotDirectory),
                    (Op::Rmdir(_), true) if !self.nodes[&id].entries.is_empty() => {
                        return Err(Status::NotEmpty);
                    }
                    (Op::RemoveAll(_), true)
                        if !self.nodes[&id].entries.is_empty() && !self.owns(who, id) =>
                    {
                        return Err(Status::NotPermitted);
                    }
                    _ => {}
                }
                self.drop_name(dir, &name);
                Ok(Answer::Done)
            }
            Op::Rename(from, to, mode) => self.rename(who, from, to, *mode),
            Op::Chmod(path, mode) => {
                let id = self.find(who, path, End::Follow)?;
                if !self.owns(who, id) {
                    return Err(Status::NotPermitted);
                }
                let node = self.nodes.get_mut(&id).expect("a node");
                let member = who.0 == 0 || node.gid == who.1;
                node.mode = if member { *mode } else { mode & !0o2000 };
                Ok(self.answer(id))
            }
            Op::Chown(path, uid, gid) => {
                let id = self.find(who, path, End::Follow)?;
                let node = self.nodes.get_mut(&id).expect("a node");
                let owner = who.0 == node.uid && *uid == node.uid && (*gid == node.gid || *gid == who.1);
                if who.0 != 0 && !owner {
                    return Err(Status::NotPermitted);
                }
                (node.uid, node.gid) = (*uid, *gid);
                if !node.is_dir() {
                    node.mode &= if node.mode & 0o010 != 0 { !0o6000 } else { !0o4000 };
                }
                Ok(self.answer(id))
            }
        }
    }

    fn rename(&mut self, who: Who, from: &str, to: &str, mode: pb::RenameMode) -> Tried<Answer> {
        let (from_dir, from_name, id) = self.slot(who, from)?;
        let (to_dir, to_name, other) = self.slot(who, to)?;
        let id = id.ok_or(Status::NotFound)?;
        match mode {
            pb::RenameMode::Noreplace if other.is_some() => return Err(Status::Exists),
            pb::RenameMode::Exchange if other.is_none() => return Err(Status::NotFound),
            _ => {}
        }
        self.may_unlink(who, from_dir, id)?;
        match other {
            Some(other) => self.may_unlink(who, to_dir, other)?,
            None => self.may(who, to_dir, 3)?,
        }
        if other == Some(id) {
            return Ok(self.answer(id));
        }
        let moves = from_dir != to_dir;
        let is_dir = self.nodes[&id].is_dir();
        let check = |model: &Model, id: u64, dir: u64| {
            if !moves || !model.nodes[&id].is_dir() {
                return Ok(());
            }
            model.may(who, id, 2)?;
            if model.below(dir, id) { Err(Status::Invalid) } else { Ok(()) }
        };
        check(self, id, to_dir)?;
        if let Some(other) = other {
            if mode == pb::RenameMode::Exchange {
                check(self, other, from_dir)?;
                self.put(from_dir, &from_name, other);
                self.put(to_dir, &to_name, id);
                return Ok(self.answer(id));
            }
            match (is_dir, self.nodes[&other].is_dir()) {
                (true, false) => return Err(Status::NotDirectory),
                (false, true) => return Err(Status::IsDirectory),
                (true, true) if !self.nodes[&other].entries.is_empty() => return Err(Status::NotEmpty),
                _ => self.drop_name(to_dir, &to_name),
            }
        }
        self.nodes.get_mut(&from_dir).expect("a directory").entries.remove(&from_name);
        self.put(to_dir, &to_name, id);
        Ok(self.answer(id))
    }

    fn put(&mut self, dir: u64, name: &str, id: u64) {
        self.nodes.get_mut(&dir).expect("a directory").entries.insert(name.to_owned(), id);
        let node = self.nodes.get_mut(&id).expect("a node");
        if node.is_dir() {
            node.parent = dir;
        }
    }
}

/// Random calls about few names, so that they meet.
pub struct Generator {
    rng: StdRng,
    depth: usize,
}

impl Generator {
    pub fn new(seed: u64, depth: usize) -> Generator {
        Generator { rng: StdRng::seed_from_u64(seed), depth }
    }

    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    pub fn who(&mut self) -> Who {
        *[(0, 0), (0, 0), (10, 10), (11, 10)].choose(&mut self.rng).expect("someone")
    }

    fn path(&mut self) -> String {
        let mut path = String::new();
        for _ in 0..self.rng.random_range(1..=self.depth) {
            let names: &[&str] = if self.rng.random_ratio(1, 12) { &[".", ".."] } else { &["a", "b", "c"] };
            path.push('/');
            path.push_str(names.choose(&mut self.rng).expect("a name"));
        }
        path
    }

    fn mode(&mut self) -> u32 {
        *[0o755, 0o777, 0o777, 0o1777, 0o2777, 0o700, 0o644].choose(&mut self.rng).expect("a mode")
    }

    pub fn op(&mut self) -> Op {
        let (one, two) = (self.path(), self.path());
        match self.rng.random_range(0..100) {
            0..20 => Op::Mkdir(one, self.mode()),
            20..35 => Op::Create(one, self.mode(), self.rng.random()),
            35..40 => {
                let target = if self.rng.random() { two } else { two.trim_start_matches('/').to_owned() };
                Op::Symlink(one, target)
            }
            40..45 => Op::Link(one, two),
            45..52 => Op::Unlink(one),
            52..58 => Op::Rmdir(one),
            58..61 => Op::RemoveAll(one),
            61..76 => {
                let modes = [pb::RenameMode::Replace, pb::RenameMode::Noreplace, pb::RenameMode::Exchange];
                Op::Rename(one, two, *modes.choose(&mut self.rng).expect("a mode"))
            }
            76..80 => Op::Chmod(one, self.mode()),
            80..84 => {
                let (uid, gid) = (*[0, 10, 11].choose(&mut self.rng).expect("a user"), 10);
                Op::Chown(one, uid, gid)
            }
            84..94 => Op::Stat(one, self.rng.random()),
            _ => Op::List(one),
        }
    }
}

fn facts(inode: Option<pb::Inode>) -> Answer {
    let inode = inode.expect("an inode");
    Answer::Node {
        kind: inode.r#type(),
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        nlink: inode.nlink,
    }
}

/// An operation as a request.
pub fn request(caller: Option<pb::Caller>, op: &Op) -> Request {
    let text = |path: &str| Bytes::copy_from_slice(path.as_bytes());
    match op {
        Op::Mkdir(path, mode) => Request::Mkdir(pb::MkdirRequest {
            caller,
            at: at(path),
            mode: *mode,
            parents: false,
            layout: None,
        }),
        Op::Create(path, mode, exclusive) => Request::Open(pb::OpenRequest {
            caller,
            at: at(path),
            read: true,
            create: true,
            exclusive: *exclusive,
            mode: *mode,
            ..Default::default()
        }),
        Op::Symlink(path, target) => {
            Request::Symlink(pb::SymlinkRequest { caller, at: at(path), target: text(target) })
        }
        Op::Link(from, to) => {
            Request::Link(pb::LinkRequest { caller, from: at(from), to: at(to), follow: false })
        }
        Op::Unlink(path) | Op::Rmdir(path) | Op::RemoveAll(path) => Request::Remove(pb::RemoveRequest {
            caller,
            at: at(path),
            directory: matches!(op, Op::Rmdir(_)),
            recursive: matches!(op, Op::RemoveAll(_)),
        }),
        Op::Rename(from, to, mode) => {
            Request::Rename(pb::RenameRequest { caller, from: at(from), to: at(to), mode: *mode as i32 })
        }
        Op::Chmod(path, mode) => Request::SetAttr(pb::SetAttrRequest {
            caller,
            at: at(path),
            follow: true,
            mode: Some(*mode),
            ..Default::default()
        }),
        Op::Chown(path, uid, gid) => Request::SetAttr(pb::SetAttrRequest {
            caller,
            at: at(path),
            follow: true,
            uid: Some(*uid),
            gid: Some(*gid),
            ..Default::default()
        }),
        Op::Stat(path, follow) => Request::Stat(pb::StatRequest { caller, at: at(path), follow: *follow }),
        Op::List(path) => Request::Readdir(pb::ReaddirRequest { caller, at: at(path), ..Default::default() }),
    }
}

/// What the model would say of this outcome.
pub fn answer(outcome: Result<Reply, Status>) -> Answer {
    match outcome {
        Err(status) => Answer::Refused(status),
        Ok(Reply::Open(reply)) => facts(reply.inode),
        Ok(Reply::Stat(reply)) => facts(reply.inode),
        Ok(Reply::Rename(reply)) => facts(reply.inode),
        Ok(Reply::Mkdir(reply) | Reply::Symlink(reply) | Reply::Link(reply) | Reply::SetAttr(reply)) => {
            facts(reply.inode)
        }
        Ok(Reply::Readdir(reply)) => {
            let name = |entry: &pb::DirEntry| String::from_utf8_lossy(&entry.name).into_owned();
            Answer::Names(reply.entries.iter().map(name).collect())
        }
        Ok(_) => Answer::Done,
    }
}

/// Carries out a call on the service. `request` names it; the same request may be sent again.
pub async fn perform(world: &World, caller: Option<pb::Caller>, op: &Op) -> Answer {
    answer(world.service.answer(request(caller, op)).await.map_err(|failure| failure.status))
}

/// The service's whole tree, as [`Model::tree`] has the model's.
pub async fn tree(world: &World) -> BTreeMap<String, Answer> {
    let mut out = BTreeMap::new();
    let mut ahead = vec![String::new()];
    while let Some(path) = ahead.pop() {
        let shown = if path.is_empty() { "/".to_owned() } else { path.clone() };
        let found = perform(world, world.root(), &Op::Stat(shown.clone(), false)).await;
        if let Answer::Node { kind: FileType::Directory, .. } = found {
            match perform(world, world.root(), &Op::List(shown.clone())).await {
                Answer::Names(names) => ahead.extend(names.iter().map(|name| format!("{path}/{name}"))),
                other => panic!("{shown}: {other:?}"),
            }
        }
        out.insert(shown, found);
    }
    out
}
