//! Behaviours as text: one call a line, and what must come of it.
//!
//! `[UID[:GID[,GROUP...]]] CALL ARGUMENTS -> EXPECTATION`, `#` begins a comment. Without a user the superuser calls. An expectation is `ok`, the
//! name of a status, or `key=value` pairs that must hold of what is returned. In paths `{x*300}` is x three hundred times and
//! `{nul}` a NUL byte; `@S` is the inode that session S has open.

use std::collections::BTreeMap;

use bytes::Bytes;
use catena_proto::pb;
use catena_proto::pb::FileType;
use catena_proto::rpc::Failure;

use super::World;

pub struct Script {
    world: World,
    sessions: BTreeMap<String, ([u8; 16], pb::Inode)>,
    watched: BTreeMap<String, pb::Inode>,
}

/// What a call returned, as text.
type Answer = Result<Vec<(String, String)>, Failure>;

/// Runs a script and reports every line that did otherwise.
pub async fn run(name: &str, text: &str) {
    let mut script =
        Script { world: World::new().await, sessions: BTreeMap::new(), watched: BTreeMap::new() };
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (call, expected) = line.rsplit_once("->").unwrap_or((line, "ok"));
        let got = script.call(call.trim()).await;
        if let Err(what) = check(expected.trim(), &got) {
            wrong.push(format!("{name}:{}: {line}\n    {what}", number + 1));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn check(expected: &str, got: &Answer) -> Result<(), String> {
    match got {
        Err(failure) => {
            let status = format!("{:?}", failure.status);
            if status == expected { Ok(()) } else { Err(format!("{status}: {failure}")) }
        }
        Ok(_) if expected == "ok" => Ok(()),
        Ok(answer) => {
            if !expected.is_empty() && !expected.contains('=') {
                return Err(format!("ok {answer:?}"));
            }
            for pair in expected.split_whitespace() {
                let (key, value) = pair.split_once('=').ok_or(format!("bad expectation {pair}"))?;
                match answer.iter().find(|(name, _)| name == key) {
                    Some((_, found)) if found == value => {}
                    Some((_, found)) => return Err(format!("{key}={found}")),
                    None => return Err(format!("no {key} in {answer:?}")),
                }
            }
            Ok(())
        }
    }
}

fn expand(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        out.extend_from_slice(before.as_bytes());
        let (inside, after) = after.split_once('}').expect("a closing brace");
        match inside.split_once('*') {
            Some((what, times)) => out.extend(what.repeat(times.parse().expect("a count")).into_bytes()),
            None => out.push(0),
        }
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn octal(word: Option<&&str>) -> u32 {
    word.map_or(0o755, |word| u32::from_str_radix(word, 8).expect("an octal mode"))
}

fn number<T: std::str::FromStr>(word: Option<&&str>) -> T
where
    T::Err: std::fmt::Debug,
{
    word.expect("a number").parse().expect("a number")
}

fn inode(inode: Option<pb::Inode>) -> Answer {
    let inode = inode.expect("an inode");
    let kind = match inode.r#type() {
        FileType::File => "file",
        FileType::Directory => "dir",
        FileType::Symlink => "link",
        FileType::Fifo => "fifo",
        FileType::Socket => "sock",
        FileType::CharDevice => "chr",
        FileType::BlockDevice => "blk",
        FileType::Unspecified => "?",
    };
    let layout = inode.layout.map_or("-".into(), |layout| {
        format!("{}.{}/{}/{}", layout.table, layout.table_version, layout.chunk_size >> 10, layout.stripe)
    });
    let facts: [(&str, String); 17] = [
        ("type", kind.into()),
        ("mode", format!("{:o}", inode.mode)),
        ("uid", inode.uid.to_string()),
        ("gid", inode.gid.to_string()),
        ("nlink", inode.nlink.to_string()),
        ("length", inode.length.to_string()),
        ("atime", inode.atime.to_string()),
        ("mtime", inode.mtime.to_string()),
        ("ctime", inode.ctime.to_string()),
        ("btime", inode.btime.to_string()),
        ("layout", layout),
        ("seed", inode.layout.map_or(0, |layout| layout.seed).to_string()),
        ("target", text(&inode.symlink)),
        ("rdev", inode.rdev.to_string()),
        ("epoch", inode.truncate_epoch.to_string()),
        ("chains", inode.chains_used_hint.to_string()),
        ("id", inode.id.to_string()),
    ];
    Ok(facts.map(|(name, value)| (name.to_owned(), value)).into())
}

fn fact(name: &str, value: impl ToString) -> Answer {
    Ok(vec![(name.into(), value.to_string())])
}

impl Script {
    fn at(&self, word: Option<&&str>) -> Option<pb::At> {
        let word = word.expect("a path");
        match word.strip_prefix('@') {
            Some(session) => {
                let (session, path) = session.split_once('/').unwrap_or((session, ""));
                let parent = self.sessions[session].1.id;
                Some(pb::At { parent, path: Bytes::copy_from_slice(path.as_bytes()) })
            }
            None => Some(pb::At { parent: 1, path: expand(word).into() }),
        }
    }

    fn caller(&self, who: &str) -> Option<pb::Caller> {
        let (uid, groups) = who.split_once(':').unwrap_or((who, who));
        let mut groups = groups.split(',').map(|gid| gid.parse().expect("a group"));
        let gid = groups.next().unwrap_or(0);
        let groups: Vec<u32> = groups.collect();
        self.world.caller(uid.parse().expect("a user"), gid, &groups)
    }

    fn session(&mut self, word: Option<&&str>) -> (String, [u8; 16]) {
        let name = word.map_or("s", |word| *word).to_owned();
        let mut id = [0; 16];
        id[..name.len()].copy_from_slice(name.as_bytes());
        (name, id)
    }

    async fn look(&self, path: &str) -> pb::Inode {
        let at = self.at(Some(&path));
        let request = pb::StatRequest { caller: self.world.root(), at, follow: false };
        self.world.service.stat(request).await.expect("a watched path").inode.expect("an inode")
    }

    async fn call(&mut self, line: &str) -> Answer {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let who = match words[0].starts_with(|c: char| c.is_ascii_digit()) {
            true => words.remove(0),
            false => "0",
        };
        let caller = self.caller(who);
        let call = words.remove(0);
        let word = |nth: usize| words.get(nth);
        let path = words.first().map(|_| self.at(word(0)));
        let at = path.clone().flatten();
        let service = self.world.service.clone();
        match call {
            "mkdir" | "mkdirp" => {
                let layout = word(2).map(|word| layout(word));
                let (mode, parents) = (octal(word(1)), call == "mkdirp");
                inode(service.mkdir(pb::MkdirRequest { caller, at, mode, parents, layout }).await?.inode)
            }
            "mk" => {
                let mode = octal(word(1).or(Some(&"644")));
                let request = pb::OpenRequest {
                    caller,
                    at,
                    create: true,
                    exclusive: true,
                    mode,
                    layout: word(2).map(|word| layout(word)),
                    ..Default::default()
                };
                inode(service.open(request).await?.inode)
            }
            "open" => {
                let flags = *word(1).expect("flags");
                let (name, id) = self.session(word(2));
                let has = |flag| flags.contains(flag);
                let request = pb::OpenRequest {
                    caller,
                    at,
                    read: has('r'),
                    write: has('w'),
                    create: has('c'),
                    exclusive: has('x'),
                    truncate: has('t'),
                    no_follow: has('n'),
                    directory: has('d'),
                    mode: octal(word(3).or(Some(&"644"))),
                    session: if has('w') { Bytes::copy_from_slice(&id) } else { Bytes::new() },
                    layout: None,
                };
                let reply = service.open(request).await?;
                if let Some(opened) = &reply.inode {
                    self.sessions.insert(name, (id, opened.clone()));
                }
                let mut answer = inode(reply.inode)?;
                answer.push(("created".into(), reply.created.to_string()));
                Ok(answer)
            }
            // write SESSION CHUNK LENGTH: what a client does to the chunk store.
            "write" => {
                let opened = self.sessions[*word(0).expect("a session")].1.clone();
                self.world.write(&opened, number(word(1)), number(word(2)));
                Ok(vec![])
            }
            // sync|close SESSION [HIGH-WATER [EPOCH]] [acked]
            "sync" | "close" => {
                let (session, opened) = self.sessions[*word(0).expect("a session")].clone();
                let request = pb::SyncRequest {
                    caller,
                    inode: opened.id,
                    session: Bytes::copy_from_slice(&session),
                    close: call == "close",
                    wrote: words.len() > 1,
                    high_water: if words.len() > 1 { number(word(1)) } else { 0 },
                    truncate_epoch: word(2)
                        .filter(|word| **word != "acked")
                        .map_or(0, |word| number(Some(word))),
                    acknowledged: words.contains(&"acked"),
                    mtime: 0,
                };
                inode(service.sync(request).await?.inode)
            }
            // trunc PATH LENGTH [SESSION]
            "trunc" => {
                let session = word(2).map(|name| Bytes::copy_from_slice(&self.sessions[*name].0));
                let session = session.unwrap_or_default();
                let request = pb::TruncateRequest { caller, at, length: number(word(1)), session };
                inode(service.truncate(request).await?.inode)
            }
            "mknod" => {
                let kind = match *word(1).expect("a type") {
                    "file" => FileType::File,
                    "fifo" => FileType::Fifo,
                    "sock" => FileType::Socket,
                    "chr" => FileType::CharDevice,
                    "blk" => FileType::BlockDevice,
                    "dir" => FileType::Directory,
                    _ => FileType::Unspecified,
                };
                let rdev = word(3).map_or(0, |word| number(Some(word)));
                let request =
                    pb::MknodRequest { caller, at, r#type: kind as i32, mode: octal(word(2)), rdev };
                inode(service.mknod(request).await?.inode)
            }
            // lns PATH TARGET
            "lns" => {
                let target = expand(word(1).unwrap_or(&"")).into();
                inode(service.symlink(pb::SymlinkRequest { caller, at, target }).await?.inode)
            }
            // ln|lnf FROM TO
            "ln" | "lnf" => {
                let (to, follow) = (self.at(word(1)), call == "lnf");
                inode(service.link(pb::LinkRequest { caller, from: at, to, follow }).await?.inode)
            }
            "readlink" => {
                let reply = service.readlink(pb::ReadlinkRequest { caller, at }).await?;
                fact("target", text(&reply.target))
            }
            "rm" | "rmdir" | "rmr" => {
                let (directory, recursive) = (call == "rmdir", call == "rmr");
                service.remove(pb::RemoveRequest { caller, at, directory, recursive }).await?;
                Ok(vec![])
            }
            "mv" | "mvn" | "mvx" => {
                let mode = match call {
                    "mvn" => pb::RenameMode::Noreplace,
                    "mvx" => pb::RenameMode::Exchange,
                    _ => pb::RenameMode::Replace,
                };
                let to = self.at(word(1));
                let request = pb::RenameRequest { caller, from: at, to, mode: mode as i32 };
                inode(service.rename(request).await?.inode)
            }
            "stat" | "lstat" => {
                let follow = call == "stat";
                inode(service.stat(pb::StatRequest { caller, at, follow }).await?.inode)
            }
            "ls" => {
                let request = pb::ReaddirRequest { caller, at, ..Default::default() };
                let reply = service.readdir(request).await?;
                let names: Vec<_> = reply.entries.iter().map(|entry| text(&entry.name)).collect();
                fact("names", names.join(","))
            }
            "chmod" => {
                let mode = Some(octal(word(1)));
                let request = pb::SetAttrRequest { caller, at, follow: true, mode, ..Default::default() };
                inode(service.set_attr(request).await?.inode)
            }
            // chown|lchown PATH UID:GID, either may be missing
            "chown" | "lchown" => {
                let (uid, gid) = word(1).expect("owners").split_once(':').expect("uid:gid");
                let id = |text: &str| (!text.is_empty()).then(|| text.parse().expect("an id"));
                let request = pb::SetAttrRequest {
                    caller,
                    at,
                    follow: call == "chown",
                    uid: id(uid),
                    gid: id(gid),
                    ..Default::default()
                };
                inode(service.set_attr(request).await?.inode)
            }
            // utimes PATH ATIME MTIME, each a number, `now` or `-`
            "utimes" => {
                let (atime, mtime) = (word(1).expect("atime"), word(2).expect("mtime"));
                let request = pb::SetAttrRequest {
                    caller,
                    at,
                    atime: atime.parse().ok(),
                    mtime: mtime.parse().ok(),
                    atime_now: *atime == "now",
                    mtime_now: *mtime == "now",
                    ..Default::default()
                };
                inode(service.set_attr(request).await?.inode)
            }
            // layout PATH TABLE.VERSION/CHUNK_KIB/STRIPE
            "layout" => {
                let layout = Some(layout(word(1).expect("a layout")));
                inode(service.set_layout(pb::SetLayoutRequest { caller, at, layout }).await?.inode)
            }
            // setx PATH NAME VALUE [create|replace]; rmx PATH NAME
            "setx" | "rmx" => {
                let request = pb::SetXattrRequest {
                    caller,
                    at,
                    follow: false,
                    name: expand(word(1).expect("a name")).into(),
                    value: expand(word(2).unwrap_or(&"")).into(),
                    create: word(3) == Some(&"create"),
                    replace: word(3) == Some(&"replace"),
                    remove: call == "rmx",
                };
                service.set_xattr(request).await?;
                Ok(vec![])
            }
            "getx" => {
                let name = expand(word(1).expect("a name")).into();
                let request = pb::GetXattrRequest { caller, at, follow: false, name };
                fact("value", text(&service.get_xattr(request).await?.value))
            }
            "lsx" => {
                let reply = service.list_xattr(pb::ListXattrRequest { caller, at, follow: false }).await?;
                let names: Vec<_> = reply.names.iter().map(|name| text(name)).collect();
                fact("names", names.join(","))
            }
            "usage" => {
                let reply = service.usage(pb::UsageRequest { caller, at, ..Default::default() }).await?;
                Ok([
                    ("bytes", reply.bytes),
                    ("files", reply.files),
                    ("dirs", reply.directories),
                    ("unreadable", reply.unreadable),
                    ("linked", reply.linked.len() as u64),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_string()))
                .into())
            }
            "statfs" => {
                let reply = service.statfs(pb::StatfsRequest { caller }).await?;
                Ok([
                    ("capacity", reply.capacity),
                    ("used", reply.used),
                    ("files", reply.files),
                    ("dirs", reply.directories),
                    ("reclaim", reply.reclaim_files),
                    ("reclaim_bytes", reply.reclaim_bytes),
                    ("sessions", reply.sessions),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_string()))
                .into())
            }
            "reclaim" => {
                let done = service.reclaim().await?;
                Ok([("files", done.files), ("entries", done.entries), ("failed", done.failed)]
                    .map(|(name, value)| (name.to_owned(), value.to_string()))
                    .into())
            }
            // chunks @SESSION: how many chunks the file has.
            "chunks" => {
                let id = catena_proto::ids::InodeId(at.expect("a session").parent);
                fact("count", self.world.chunks.of(id).len())
            }
            "allchunks" => fact("count", self.world.chunks.count()),
            // watch PATH..., then touched PATH: which of a, m, c changed since, `-` if none.
            "watch" => {
                for path in &words {
                    let seen = self.look(path).await;
                    self.watched.insert((*path).to_owned(), seen);
                }
                Ok(vec![])
            }
            "touched" => {
                let path = *word(0).expect("a path");
                let now = self.look(path).await;
                let before = self.watched.insert(path.to_owned(), now.clone()).expect("watched before");
                let mut letters = String::new();
                for (letter, changed) in [
                    ('a', now.atime != before.atime),
                    ('m', now.mtime != before.mtime),
                    ('c', now.ctime != before.ctime),
                    ('b', now.btime != before.btime),
                ] {
                    if changed {
                        letters.push(letter);
                    }
                }
                fact("times", if letters.is_empty() { "-" } else { &letters })
            }
            other => panic!("unknown call {other}"),
        }
    }
}

/// `TABLE.VERSION/CHUNK_KIB/STRIPE`
fn layout(word: &str) -> pb::Layout {
    let parts: Vec<&str> = word.split('/').collect();
    let (table, version) = parts[0].split_once('.').expect("table.version");
    pb::Layout {
        table: table.parse().expect("a table"),
        table_version: version.parse().expect("a version"),
        chunk_size: (parts[1].parse::<f64>().expect("KiB") * 1024.0) as u32,
        stripe: parts[2].parse().expect("a stripe"),
        seed: 0,
    }
}
